"""Few steps, planned with the grid: the numbers of a plan, what is fitted, and runs over other levels."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from hicache_compile import HiCache, HiCacheError, PlannedSteps, Policy, Reuse, hicache_compile
from hicache_compile.cli import app
from hicache_compile.generate.pipelines import sampled_over
from hicache_compile.policy.json_codec import as_policy
from hicache_compile.policy.packs import as_pack
from hicache_compile.tune import fit_forecasts, measure
from hicache_compile.tune.grid_plan import GridPlan, _Fitter, fit_grid
from hicache_compile.tune.measured import tried
from tests.pipelines import by_name
from tests.support.models import ToyDiT

STEPS = 12


class Toy:
    """A toy flow, sampled by Euler steps over any levels."""

    def __init__(self) -> None:
        self.model = ToyDiT()
        self.denoiser = hicache_compile(self.model, HiCache(4, scope="stack"), backend="eager")
        self.times: list[float] = []

    def levels(self, sigmas: Any, steps: int = STEPS) -> list[float]:
        return list(sigmas) if sigmas is not None else [1 - step / steps for step in range(steps)]

    def sampled(self, denoise: Any, levels: list[float], seed: int) -> Tensor:
        x = torch.randn(3, 5, 16, generator=torch.Generator().manual_seed(seed))
        for now, then in zip(levels, [*levels[1:], 0.0], strict=True):
            x = x - (now - then) * denoise(x, torch.full((3,), now))
        return x

    def run(self, sigmas: Any = None, seed: int = 0) -> Tensor:
        levels = self.levels(sigmas)
        self.times = [1000 * level for level in levels]
        with torch.no_grad(), self.denoiser.trajectory(len(levels), timesteps=self.times):
            return self.sampled(self.denoiser, levels, seed)

    def error(self, found: Tensor, seed: int = 0) -> float:
        with torch.no_grad():
            wanted = self.sampled(ToyDiT(), self.levels(None), seed)
        return float((found - wanted).norm() / wanted.norm())


def test_a_plan_is_its_numbers() -> None:
    plan = GridPlan.start("101010")
    assert plan.mask == "101010"
    assert plan.sigmas == pytest.approx([1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6])
    assert plan.weights == ((1.0,), (1.0, 0.0), (1.0, 0.0, 0.0))
    assert plan.with_numbers(plan.numbers) == plan
    other = plan.with_numbers(np.arange(8) / 10)
    assert other.gaps == (0.0, 0.1)
    assert other.weights == ((0.2,), (0.3, 0.4), (0.5, 0.6, 0.7))
    falling = other.sigmas
    assert falling[0] == 1.0
    assert all(a > b > 0 for a, b in itertools.pairwise(falling))
    table = other.forecaster().table
    assert table.rows == ((1, (0,), (0.2,)), (3, (2, 0), (0.3, 0.4)), (5, (4, 2, 0), (0.5, 0.6, 0.7)))
    shifted = GridPlan.start("10101010", 2.0).sigmas[::2]  # s sigma / (1 + (s - 1) sigma) of 1, .75, .5, .25
    assert shifted == pytest.approx([1, 1.5 / 1.75, 1 / 1.5, 0.5 / 1.25])


def test_a_fitted_plan_is_nearer_than_sampling_as_many_steps() -> None:
    """The oracle is the uncached model, on noise that was not fitted to too."""
    toy = Toy()
    before = toy.denoiser.policy
    found = fit_grid(toy.denoiser, [toy.run], 4, lambda: toy.times)
    assert toy.denoiser.policy == before
    policy = found.policy
    assert isinstance(policy.schedule, PlannedSteps)
    assert policy.sigmas is not None
    assert policy.schedule.times == pytest.approx([1000 * level for level in policy.sigmas])
    toy.denoiser.policy = policy
    assert toy.error(toy.run(policy.sigmas)) == pytest.approx(found.error, rel=1e-3)
    assert toy.denoiser.report().decisions() == "F.F.F.F."
    with torch.no_grad():
        simply = toy.error(toy.sampled(ToyDiT(), toy.levels(None, 4), 1), 1)
    assert toy.error(toy.run(policy.sigmas, seed=1), 1) < 0.5 * simply
    assert found.runs >= 1 + 4 + 12  # in full, the starts, and one for each number of a round


def test_a_plan_of_a_mask_has_a_row_for_each_forecast() -> None:
    plan = GridPlan.start("1100101000", 3.0)
    even = [1 - step / 10 for step in range(10)]
    shifted = [3 * level / (1 + 2 * level) for level in even]
    computed = [0, 1, 4, 6]
    assert [plan.sigmas[step] for step in computed] == pytest.approx([shifted[step] for step in computed])
    assert plan.sigmas[2:4] == pytest.approx([shifted[1] + (shifted[4] - shifted[1]) * part / 3 for part in (1, 2)])
    assert plan.sigmas[6:] == pytest.approx([shifted[6] * (1 - part / 4) for part in range(4)])
    assert [len(row) for row in plan.weights] == [2, 2, 3, 3, 3, 3]
    table = plan.forecaster().table
    assert [row[:2] for row in table.rows[:3]] == [(2, (1, 0)), (3, (1, 0)), (5, (4, 1, 0))]
    assert plan.with_numbers(plan.numbers) == plan
    in_full = GridPlan.start("111")
    assert in_full.sigmas == pytest.approx([1, 2 / 3, 1 / 3])
    assert in_full.forecaster().weights([1, 0], 2)


def test_levels_are_fitted_to_an_annealed_mask() -> None:
    """BudCache's two stages: a mask under the levels as they are, then levels for it."""
    toy = Toy()
    measured = measure(toy.denoiser, [toy.run], "stack")
    found = fit_forecasts(measured, "sigma", 4, 24, search="anneal")
    mask = found.policy.schedule.mask  # type: ignore[attr-defined]  # a StepMask
    planned = fit_grid(toy.denoiser, [toy.run], mask, lambda: toy.times)
    assert isinstance(planned.policy.schedule, PlannedSteps)
    assert planned.policy.schedule.mask == mask
    assert len(planned.policy.schedule.times) == STEPS
    assert planned.error < 0.5 * tried(measured, Policy(found.policy.schedule, Reuse(), "stack")).error
    toy.denoiser.policy = planned.policy
    assert toy.error(toy.run(planned.policy.sigmas)) == pytest.approx(planned.error, rel=1e-3)
    for mask, allowed in (("0101", "must start with 1"), ("1000", "must compute two or more steps")):
        with pytest.raises(HiCacheError, match=allowed):
            fit_grid(toy.denoiser, [toy.run], mask, lambda: toy.times)


def test_the_jacobian_is_that_of_the_runs() -> None:
    toy = Toy()
    fitter = _Fitter(toy.denoiser, [toy.run], "stack")
    plan = GridPlan.start("101010", 1.5)
    found = fitter.jacobian(plan)
    for number, unit in enumerate(np.eye(len(plan.numbers))):
        ahead, back = (fitter.off(plan.with_numbers(plan.numbers + by * 1e-2 * unit)) for by in (1, -1))
        central = (ahead - back) / 2e-2
        assert np.linalg.norm(found[:, number] - central) <= 0.1 * np.linalg.norm(central) + 1e-3


def test_a_plan_runs_over_its_own_levels_and_no_others() -> None:
    toy = Toy()
    plan = GridPlan.start("101010")
    times = tuple(1000 * level for level in plan.sigmas)
    fitter = _Fitter(toy.denoiser, [toy.run], "stack")
    toy.denoiser.policy = fitter.policy(plan, PlannedSteps(plan.mask, times, plan.sigmas))
    toy.run(plan.sigmas)
    with pytest.raises(
        HiCacheError, match=r"PlannedSteps\.times: planned for 1000, 833.333, .*, the run has 1000, 852"
    ):
        toy.run(GridPlan.start("101010", 1.2).sigmas)
    unknown = pytest.raises(HiCacheError, match=r"the timesteps of the run must be known.*timesteps=\.\.\.")
    with unknown, torch.no_grad(), toy.denoiser.trajectory(6):
        toy.sampled(toy.denoiser, list(plan.sigmas), 0)
    toy.run(plan.sigmas)  # nothing is lost by it
    with torch.no_grad(), toy.denoiser.disabled():  # in full a run may have any length
        torch.testing.assert_close(toy.run(), toy.sampled(toy.model, toy.levels(None), 0))
    inputs = {"x": torch.randn(3, 5, 16), "t": torch.ones(3)}
    toy.denoiser.warmup(inputs, num_steps=6)
    assert toy.denoiser.explain(6).num_steps == 6


def test_a_pipeline_takes_the_levels_of_a_plan_and_refuses_others() -> None:
    case = by_name("FluxPipeline")
    pipeline = hicache_compile(case.build(), "HiCache", backend="eager")
    plan = GridPlan.start("1010")
    times = tuple(1000 * level for level in plan.sigmas)
    pipeline.transformer.policy = Policy(PlannedSteps(plan.mask, times, plan.sigmas), Reuse(), "stack")
    case.run(pipeline, steps=4, sigmas=list(plan.sigmas))
    assert pipeline.transformer.report().decisions() == "F.F."
    with pytest.raises(HiCacheError, match=r"call the pipeline with sigmas=policy\.sigmas"):
        case.run(pipeline, steps=4, sigmas=[1.0, 0.9, 0.5, 0.2])


def test_tune_and_eval_plan_a_pipeline_from_its_folder(tmp_path: Path) -> None:
    folder = by_name("FluxPipeline").saved(tmp_path / "pipeline")
    how = ["--steps", "6", "--height", "16", "--width", "16", "--backend", "eager", "--json", "--prompt", "a cat"]
    policy, pack = tmp_path / "policy.json", tmp_path / "pack.json"
    runner = CliRunner()
    done = runner.invoke(app, ["tune", str(folder), "--fit", "plan", "--computed", "2", "--out", str(policy), *how])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["decisions"] == "F.F."
    assert as_policy(policy).sigmas == pytest.approx(found["sigmas"], abs=1e-4)
    masked = [*how, "--out", str(tmp_path / "masked.json")]
    done = runner.invoke(app, ["tune", str(folder), "--fit", "plan", "--mask", "1100", *masked])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["decisions"] == "FF.."
    assert json.loads(done.stdout)["computed"] == [0, 1]
    for wrong in (["--fit", "plan", "--computed", "2"], ["--fit", "sigma"], []):
        done = runner.invoke(app, ["tune", str(folder), *wrong, "--mask", "1100", *masked])
        assert done.exit_code == 2
        assert "mask = '1100': must be given with" in done.output
    done = runner.invoke(app, ["eval", str(folder), "--policy", str(policy), "--samples", "2", *how])
    assert done.exit_code == 0, done.output
    measured = json.loads(done.stdout)["policy"]
    assert measured["computed"]["value"] == 2
    assert measured["flops_speedup"]["value"] == pytest.approx(3, rel=0.2)  # 6 steps of the run in full, 2 computed
    more = ["--policy", "FORA", "--samples", "19", "--pack"]
    done = runner.invoke(app, ["eval", str(folder), *more, str(pack.with_suffix(".txt")), *how])
    assert "eval.pack" in done.output
    assert "must end in .json" in done.output
    done = runner.invoke(app, ["eval", str(folder), *more, str(pack), *how])
    assert done.exit_code == 0, done.output
    picked = hicache_compile(by_name("FluxPipeline").build(), pack, max_error=1e6, backend="eager").transformer
    assert picked.contract.entry.name in ("FORA", "in full")  # whichever was faster here
    assert as_pack(pack).steps == 6
    done = runner.invoke(
        app, ["tune", "demo", "--fit", "plan", "--steps", "4", "--computed", "2", "--backend", "eager"]
    )
    assert done.exit_code == 2
    assert "sampled over their own noise levels" in done.output


def test_levels_beyond_flow_matching_are_refused() -> None:
    from diffusers import EulerDiscreteScheduler

    pipeline = by_name("FluxPipeline").build()
    assert sampled_over(pipeline, (1.0, 0.5)) == {"sigmas": [1.0, 0.5]}
    pipeline.scheduler = EulerDiscreteScheduler()
    with pytest.raises(HiCacheError, match="the noise levels of EulerDiscreteScheduler are not from 0 to 1"):
        sampled_over(pipeline, (1.0, 0.5))
