"""What a denoiser under guards is captured as, shows of itself, and hands to another."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from hicache_compile import (
    PAB,
    DiCache,
    DiTango,
    FBCache,
    FBCacheTeaCache,
    Hermite,
    Policy,
    TeaCache,
    hicache_compile,
)
from tests.runtime.test_guarded_runs import STEPS
from tests.support.models import ToyDiT, flux_inputs, random_flux, sample
from tests.support.resume import assert_it_goes_on
from tests.zoo import video


def test_a_run_goes_on_in_another_denoiser(tmp_path: Path) -> None:
    assert_it_goes_on(FBCacheTeaCache(0.3, 0.4, forecaster=Hermite(1)), "eager", tmp_path)


@pytest.mark.parametrize("policy", [DiTango(0.5, 2, 2), PAB(), DiCache(0.3), TeaCache(1e9, max_skips=2)])
def test_any_course_goes_on_in_another_denoiser(policy: Policy, tmp_path: Path) -> None:
    assert_it_goes_on(policy, "eager", tmp_path)


GRAPHS = {
    "teacache": (TeaCache(0.5), {"probe_0"}),
    "both": (FBCacheTeaCache(0.3, 0.3), {"probe_0", "probe_1", "forecast_from_1"}),
    "pab": (PAB(), set()),
    "ditango": (DiTango(0.5, 2, 2), set()),
}


@pytest.mark.parametrize("name", GRAPHS)
def test_graphs_explain_and_dump(name: str, tmp_path: Path) -> None:
    policy, more = GRAPHS[name]
    compiled = hicache_compile(random_flux(), policy, backend="eager")
    with compiled.trajectory(STEPS):
        sample(compiled, flux_inputs(batch=1), STEPS)
    names = {"captured", "guarded", "full", "forecast"} | more
    partial = {graph for graph in compiled.graphs if graph.startswith("forecast_")} - more
    assert set(compiled.graphs) - partial == names
    for graph in compiled.graphs.values():
        compile(str(graph), "graph", "exec")
    explained = compiled.explain(STEPS)
    assert [row.scope for row in explained.scopes] == [policy.scope]
    assert 0 < explained.flops_forecast < explained.flops_full
    assert 1 < explained.flops_speedup <= STEPS
    assert name == "ditango" or len(explained.sites) > 0
    compiled.dump(tmp_path / "dump", num_steps=STEPS)
    written = {path.name for path in (tmp_path / "dump").iterdir()}
    assert {"index.html", "policy.json", "explain.txt", "report.json", "schedule.tsv"} < written


@pytest.mark.parametrize("name", GRAPHS)
def test_warmup_compiles_every_program(name: str) -> None:
    policy, _ = GRAPHS[name]
    compiled = hicache_compile(random_flux(), policy, backend="eager")
    inputs = flux_inputs(batch=1)
    compiled.warmup({**inputs, "timestep": torch.ones(1), "return_dict": False}, num_steps=STEPS)
    before = compiled.report().programs
    with compiled.trajectory(STEPS):
        sample(compiled, inputs, STEPS)
    report = compiled.report()
    assert (report.programs, report.recompiles) == (before, 0)
    assert set(report.decisions()) > {"F"}


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_blocks_that_cast_their_sums_and_fill_tensors_in_place(backend: str) -> None:
    """Wan adds in float32 (``x.float() + y``, ``.type_as(x)``), and its rotary embeddings fill an empty tensor."""
    case = next(case for case in video.CASES if case.name == "WanTransformer3DModel")
    model = case.build(2)

    def run(denoiser: nn.Module) -> Tensor:
        x = case.noise()
        for step in range(6):
            with torch.no_grad():
                x = x - case.call(denoiser, x, 1 - step / 6) / 6
        return x

    expected = run(model)
    compiled = hicache_compile(model, FBCache(threshold=0.0), backend=backend)
    with compiled.trajectory(6):
        assert torch.equal(run(compiled), expected)
    compiled.policy = FBCache(threshold=0.5)
    with compiled.trajectory(6):
        cached = run(compiled)
    assert "." in compiled.report().decisions()
    assert (cached - expected).norm() / (expected - case.noise()).norm() < 0.3


def test_a_guard_hands_over_sizes_that_depend_on_data() -> None:
    """Tokens that a mask picks before the blocks: their FLOPs are counted at the most that there can be."""

    class Masked(ToyDiT):
        def forward(self, x: Tensor, time: Tensor, drop: Tensor) -> Tensor:
            x = x.clone()
            x[drop] *= 0.0
            made: Tensor = super().forward(x, time)
            made[drop] += 1.0
            return made

    model = Masked(depth=2)
    compiled = hicache_compile(model, FBCache(threshold=1e9, max_skips=2), backend="eager")
    x, drop = torch.randn(1, 6, 16), torch.tensor([[True, False, True, False, False, False]])
    with compiled.trajectory(4), torch.no_grad():
        for t in (1.0, 0.7, 0.4, 0.1):
            compiled(x, torch.full((1,), t), drop)
    report = compiled.report()
    assert report.decisions() == "F..F"
    assert 0 < report.flops_forecast < report.flops_full
