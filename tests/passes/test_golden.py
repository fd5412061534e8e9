"""The graphs of a toy DiT and of a FLUX block pair at every stage, as text that is reviewed like code.

``EXPECTTEST_ACCEPT=1`` writes what comes out into ``tests/golden``.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch import fx
from torch.torch_version import TorchVersion

from hicache_compile import Chipmunk, Tokens
from hicache_compile.passes import Choice, rewrite
from hicache_compile.passes.lowering.cond import both_branches
from hicache_compile.policy.layout import Layout
from hicache_compile.policy.sparsity.phases import Phase
from tests.support.captured_graphs import captured, count, listing
from tests.support.models import ToyDiT, flux_inputs, random_flux

GOLDEN = Path(__file__).parents[1] / "golden"
pytestmark = pytest.mark.skipif(TorchVersion(torch.__version__) < (2, 13), reason="Dynamo named values otherwise")


@pytest.fixture(scope="module", params=["toy", "flux"])
def model(request: pytest.FixtureRequest) -> tuple[str, fx.GraphModule]:
    if request.param == "toy":
        return "toy", captured(ToyDiT(depth=2), torch.zeros(2, 5, 16), torch.zeros(2))
    return "flux", captured(random_flux(1, 1), **flux_inputs(), timestep=torch.ones(2), return_dict=False)


@pytest.mark.parametrize("scope", ["module", "stack"])
def test_every_stage(model: tuple[str, fx.GraphModule], scope: str) -> None:
    name, graph = model
    made = rewrite(graph, Layout(scope, depth=2))
    both = both_branches(made)
    stages = {**made.levels(), "either": both}
    stages |= {f"either.{branch}": both.get_submodule(branch) for branch in ("full", "forecast")}
    for stage, module in stages.items():
        assert isinstance(module, fx.GraphModule)
        assert _is_golden(GOLDEN / f"{name}-{scope}-{stage}.txt", module), stage


def test_every_phase_of_a_sparse_step(model: tuple[str, fx.GraphModule]) -> None:
    name, graph = model
    sparsity = Chipmunk(top_keys=0.4, mlp_keys=0.25, first_dense=1, group=4, mlp_block=4)
    made = rewrite(graph, Layout("module", depth=2, sparsity=sparsity))
    for phase in (Phase.SELECT, Phase.REFRESH, Phase.SPARSE):
        program = made.programs[Choice.FULL.with_phases((("", phase),))]
        assert _is_golden(GOLDEN / f"{name}-module-{phase}.txt", program), phase


def test_a_tokenwise_step() -> None:
    graph = captured(ToyDiT(depth=2), torch.zeros(2, 5, 16), torch.zeros(2))
    tokens = Tokens("clusters", 2, spread="value", iterations=2)
    made = rewrite(graph, Layout("module", depth=2, tokens=tokens))
    for choice in (Choice.FULL, Choice.FORECAST, Choice.FORECAST.with_tokens()):
        assert _is_golden(GOLDEN / f"toy-tokens-{choice}.txt", made.programs[choice]), choice


def _is_golden(path: Path, module: fx.GraphModule) -> bool:
    if os.environ.get("EXPECTTEST_ACCEPT"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(listing(module) + "\n", encoding="utf-8")
    return listing(module) + "\n" == path.read_text(encoding="utf-8")


@pytest.mark.parametrize("scope", ["module", "stack"])
def test_what_the_last_stage_adds_and_loses(model: tuple[str, fx.GraphModule], scope: str) -> None:
    made = rewrite(model[1], Layout(scope, depth=2))
    both = both_branches(made)
    rings = sum("slot" in node.meta for node in both.graph.nodes)
    outputs = 1
    for choice in (Choice.FULL, Choice.FORECAST):
        program, inside = made.programs[choice], both.get_submodule(str(choice))
        assert isinstance(inside, fx.GraphModule)
        writes = rings if choice == Choice.FULL else 0
        before, after = count(program), count(inside)
        added = {"clone": outputs + rings - writes, "index_copy": writes, "row_to_keep": writes}
        assert after - before == {op: n for op, n in added.items() if n}
        assert before - after == ({"remember": rings} if writes else {})
    assert count(both)["cond"] == 1
