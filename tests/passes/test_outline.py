"""Blocks that are alike become calls of one subgraph."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import Tensor, fx, nn

from hicache_compile import HiCache, hicache_compile
from hicache_compile.backends import lower
from hicache_compile.passes import Choice, rewrite
from hicache_compile.passes.graph import ops
from hicache_compile.passes.graph.graphs import placeholders
from hicache_compile.passes.lowering.outline import invoke_subgraph, outline
from hicache_compile.policy.layout import Layout
from tests.support.captured_graphs import captured
from tests.support.models import ToyBlock, ToyDiT, flux_inputs, random_flux


def programs(model: nn.Module, scope: str = "stack", **inputs: Tensor) -> dict[Choice, fx.GraphModule]:
    return rewrite(captured(model, **inputs), Layout(scope, depth=2)).programs


def calls(program: fx.GraphModule) -> list[str]:
    return [str(node.args[1]) for node in program.graph.nodes if node.target is invoke_subgraph]


def toy_inputs() -> dict[str, Tensor]:
    return {"x": torch.randn(2, 5, 16), "t": torch.rand(2)}


def test_alike_blocks_share_one_subgraph() -> None:
    program, count = outline(programs(ToyDiT(depth=4), **toy_inputs())[Choice.FULL])
    assert count == 4
    assert calls(program) == ["layers_0_and_alike"] * 4


def test_no_op_is_lost_or_doubled() -> None:
    full = programs(random_flux(3, 4), "module", **flux_inputs(), timestep=torch.ones(2))[Choice.FULL]
    outlined, count = outline(full)
    assert count == 6  # at batch 2 the streams of the first single block lie otherwise than slices of one tensor
    found: Counter[str] = Counter(ops.op(n) for n in outlined.graph.nodes)
    for name in calls(outlined):
        found.update(ops.op(n) for n in outlined.get_submodule(name).graph.nodes)  # type: ignore[union-attr]
    wanted = Counter(ops.op(n) for n in full.graph.nodes)
    for heavy in ("linear", "scaled_dot_product_attention", "remember", "layer_norm"):
        assert found[heavy] == wanted[heavy]


@pytest.mark.parametrize(
    ("scope", "choice"),
    [*((scope, Choice.FULL) for scope in ("module", "stack", "block", "output")), ("stack", Choice.PLAIN)],
)
def test_the_same_numbers(scope: str, choice: Choice) -> None:
    model = random_flux(2, 3)
    program = programs(model, scope, **flux_inputs(), timestep=torch.ones(2))[choice]
    outlined, count = outline(program)
    assert count == 4
    generator = torch.Generator().manual_seed(0)

    def given() -> list[Tensor]:
        generator.manual_seed(0)
        values = [ops.value(node) for node in placeholders(program)]
        return [
            torch.randn(v.shape, generator=generator).to(v.dtype) / 10
            if v.is_floating_point()
            else torch.ones(1, dtype=v.dtype)
            for v in values
        ]

    mine, theirs = given(), given()
    with torch.no_grad():
        found = lower(outlined, "aot_eager")(*mine)
        wanted = lower(program, "aot_eager")(*theirs)
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)
    torch.testing.assert_close(mine, theirs, rtol=0, atol=0)  # the rings, written in place


def test_blocks_that_differ_stay() -> None:
    model = ToyDiT(depth=3)
    model.layers[1].up, model.layers[1].down = nn.Linear(16, 24), nn.Linear(24, 16)
    program, count = outline(programs(model, **toy_inputs())[Choice.FULL])
    assert count == 2
    assert len(set(calls(program))) == 1


def test_a_constant_makes_a_difference() -> None:
    class Scaled(ToyBlock):
        scale = 1.0

        def forward(self, x: Tensor, c: Tensor) -> Tensor:
            return super().forward(x * self.scale, c)

    class ScaledDiT(ToyDiT):
        block = Scaled

    model = ScaledDiT(depth=4)
    model.layers[2].scale = 0.5
    _, count = outline(programs(model, **toy_inputs())[Choice.FULL])
    assert count == 3


def test_random_numbers_stay() -> None:
    class Noisy(ToyBlock):
        def forward(self, x: Tensor, c: Tensor) -> Tensor:
            return super().forward(nn.functional.dropout(x, 0.5), c)

    class NoisyDiT(ToyDiT):
        block = Noisy

    graph = captured(NoisyDiT(), **toy_inputs())
    assert outline(rewrite(graph, Layout("output", depth=2)).programs[Choice.PLAIN])[1] == 0


def test_gates_of_a_forecast_stay_in_one_kernel() -> None:
    forecasting = programs(ToyDiT(depth=4), "module", **toy_inputs())[Choice.FORECAST]
    assert outline(forecasting)[1] == 0


@pytest.mark.slow
def test_inductor_gives_the_same_as_without() -> None:
    model = random_flux(2, 3)
    inputs = {**flux_inputs(), "timestep": torch.ones(2)}
    compiled = hicache_compile(model, HiCache(interval=3, warmup=2, scope="module"))
    plain = hicache_compile(model, HiCache(interval=3, warmup=2, scope="module"), backend="eager")
    with torch.no_grad(), compiled.trajectory(6), plain.trajectory(6):
        for step in range(6):
            found, wanted = (
                m(**inputs | {"timestep": torch.full((2,), 1 - step / 6)}).sample for m in (compiled, plain)
            )
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    assert compiled.report().decisions() == "FF..F."


def test_at_batch_one_the_first_single_block_is_like_the_others() -> None:
    model = random_flux(2, 3)
    inputs = flux_inputs(batch=1)
    program = programs(model, "stack", **inputs, timestep=torch.ones(1))[Choice.PLAIN]
    outlined, count = outline(program)
    assert (count, len(set(calls(outlined)))) == (5, 2)
    generator = torch.Generator().manual_seed(0)
    given = [torch.randn(ops.value(node).shape, generator=generator) / 10 for node in placeholders(program)]
    with torch.no_grad():
        found, wanted = (lower(graph, "aot_eager")(*given) for graph in (outlined, program))
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)
