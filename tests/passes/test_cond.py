"""``backend="cond"``: one program with both branches samples as two programs do."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hicache_compile import HiCache, HiCacheError, Policy, hicache_compile
from hicache_compile.passes import rewrite
from hicache_compile.passes.lowering.cond import both_branches
from hicache_compile.policy.layout import Layout
from tests.support.captured_graphs import captured
from tests.support.models import ToyDiT, flux_inputs, random_flux, sample

TWINS = {"cond_eager": "eager", "cond_aot_eager": "aot_eager", "cond": "inductor"}


def run(backend: str, policy: Policy, steps: int = 12, **options: bool) -> tuple[Tensor, str, int]:
    compiled = hicache_compile(random_flux(1, 2), policy, backend=backend, **options)
    for _ in range(2):
        with compiled.trajectory(steps):
            x = sample(compiled, flux_inputs(), steps)
    report = compiled.report()
    assert (report.recompiles, report.graph_breaks) == (0, 0)
    return x, report.decisions(), report.programs


@pytest.mark.parametrize(
    ("backend", "scope"),
    [
        *(("cond_eager", scope) for scope in ("module", "block", "stack", "output")),
        *(("cond_aot_eager", scope) for scope in ("module", "stack")),
        *(pytest.param("cond", scope, marks=pytest.mark.slow) for scope in ("module", "stack")),
    ],
)
def test_one_program_samples_as_two_do(backend: str, scope: str) -> None:
    policy = HiCache(interval=4, scope=scope)
    mine, decisions, programs = run(backend, policy)
    theirs, expected, two = run(TWINS[backend], policy)
    assert (decisions, programs, two) == (expected, 1, 2)
    tolerance = 1e-5 if backend == "cond" else 0.0  # Inductor fuses what surrounds the branches otherwise
    torch.testing.assert_close(mine, theirs, rtol=tolerance, atol=tolerance)


def test_interval_one_is_bit_equal() -> None:
    mine, decisions, _ = run("cond_aot_eager", HiCache(interval=1))
    assert decisions == "F" * 12
    torch.testing.assert_close(mine, sample(random_flux(1, 2), flux_inputs(), 12), rtol=0, atol=0)


def test_with_offloaded_anchors() -> None:
    policy = HiCache(interval=4)
    torch.testing.assert_close(
        run("cond_eager", policy, offload=True)[0], run("eager", policy, offload=True)[0], rtol=0, atol=0
    )


def test_without_rings_there_is_nothing_to_choose() -> None:
    graph = captured(torch.nn.Linear(4, 4), torch.zeros(2, 4))
    with pytest.raises(HiCacheError, match="the policy must cache something to have two branches"):
        both_branches(rewrite(graph, Layout("module", depth=2)))


def test_disabled_runs_the_denoiser() -> None:
    compiled = hicache_compile(ToyDiT(), HiCache(interval=3), backend="cond_aot_eager")
    x, t = torch.randn(2, 5, 16), torch.rand(2)
    with torch.no_grad(), compiled.trajectory(5), compiled.disabled():
        for _ in range(5):
            torch.testing.assert_close(compiled(x, t), ToyDiT()(x, t), rtol=0, atol=0)
