"""Calibrating forecasts and planning schedules: what is recorded, what is solved, for whom it holds."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

from hicache_compile import (
    Calibrated,
    CompiledDenoiser,
    HiCache,
    HiCacheError,
    Interval,
    MeanVelocity,
    Newton,
    Policy,
    Reuse,
    StepMask,
    Taylor,
    hicache_compile,
)
from hicache_compile.cli import app
from hicache_compile.demo import digits
from hicache_compile.demo.sampling import load_model, sample
from hicache_compile.policy.json_codec import as_policy
from hicache_compile.runtime.step import Context, Step
from hicache_compile.tune import fit_forecasts, measure, with_weights
from hicache_compile.tune.bases import mean_velocity
from hicache_compile.tune.calibrate import _Fitter
from hicache_compile.tune.measured import tried
from hicache_compile.tune.planning import mask_of, search, shortest_path
from hicache_compile.tune.reference import Reference
from tests.pipelines import by_name
from tests.support.models import ToyDiT

STEPS = 10
MASK = "1011001000"
GUIDANCE = 2.5


class Toy:
    """A toy flow with two guidance branches and an Euler sampler, compiled or plain."""

    def __init__(self, scope: str = "stack", backend: str = "eager") -> None:
        self.denoiser = hicache_compile(ToyDiT(), HiCache(4, scope=scope), backend=backend)

    def run(self, seed: int = 0) -> Tensor:
        x = torch.randn(3, 5, 16, generator=torch.Generator().manual_seed(seed))
        with torch.no_grad(), self.denoiser.trajectory(STEPS):
            for step in range(STEPS):
                t = torch.full((3,), 1 - step / STEPS)
                branches = []
                for name, shift in (("cond", 0.3), ("uncond", 0.0)):
                    with self.denoiser.cache_context(name):
                        branches.append(self.denoiser(x, t + shift))
                cond, uncond = branches
                x = x - (uncond + GUIDANCE * (cond - uncond)) / STEPS
        return x

    @property
    def runs(self) -> list[Callable[[], Tensor]]:
        return [lambda: self.run(0), lambda: self.run(1)]


def features(model: nn.Module, seed: int) -> dict[str, list[Tensor]]:
    """The residual over the blocks at each step of the plain run, by branch."""
    found: dict[str, list[Tensor]] = {"cond": [], "uncond": []}
    entering: list[Tensor] = []
    model.layers[0].register_forward_pre_hook(lambda m, a: entering.append(a[0]))  # type: ignore[union-attr,index]
    model.layers[-1].register_forward_hook(lambda m, a, o: entering.append(o - entering.pop()))  # type: ignore[union-attr,index]
    x = torch.randn(3, 5, 16, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        for step in range(STEPS):
            t = torch.full((3,), 1 - step / STEPS)
            cond = model(x, t + 0.3)
            found["cond"].append(entering.pop())
            uncond = model(x, t)
            found["uncond"].append(entering.pop())
            x = x - (uncond + GUIDANCE * (cond - uncond)) / STEPS
    return found


def test_what_is_measured_is_what_hooks_see() -> None:
    toy = Toy()
    before = toy.denoiser.policy
    measured = measure(toy.denoiser, toy.runs)
    assert toy.denoiser.policy == before
    expected = []
    for seed in (0, 1):
        for values in features(ToyDiT(), seed).values():
            flat = torch.stack([value.flatten() for value in values]).double()
            apart = torch.cdist(flat, flat, compute_mode="donot_use_mm_for_euclid_dist").square()
            expected.append((apart / flat.square().sum(1).mean()).numpy())
    np.testing.assert_allclose(measured.distances, np.mean(expected, 0), rtol=1e-4, atol=1e-9)
    for reference, run in zip(measured.references, toy.runs, strict=True):
        for gains in reference.gains:
            assert gains == pytest.approx({"cond": -GUIDANCE / STEPS, "uncond": (GUIDANCE - 1) / STEPS}, rel=1e-2)
        with toy.denoiser.disabled():
            torch.testing.assert_close(reference.result, run())


def test_features_beyond_a_sketch_keep_their_distances(monkeypatch: pytest.MonkeyPatch) -> None:
    toy = Toy()
    exact = measure(toy.denoiser, toy.runs).distances
    monkeypatch.setattr("hicache_compile.tune.reference.BUCKETS", 128)  # of 240 values
    sketched = measure(toy.denoiser, toy.runs).distances
    upper = np.triu_indices(STEPS, 1)
    assert not np.allclose(exact[upper], sketched[upper], rtol=1e-6)
    np.testing.assert_allclose(exact[upper], sketched[upper], rtol=0.5)


def solved(
    model: nn.Module, mask: str, seed: int, correction: float, reads: int
) -> tuple[dict[int, list[float]], Tensor]:
    """Calibration by hand, in one branch: the run is made with the weights as they are found, by plain algebra."""
    reference_x, reference_v = [], []
    start = torch.randn(3, 5, 16, generator=torch.Generator().manual_seed(seed))
    times = [torch.full((3,), 1 - step / STEPS) for step in range(STEPS)]
    with torch.no_grad():
        x = start
        for t in times:
            reference_x.append(x)
            reference_v.append(model(x, t))
            x = x - reference_v[-1] / STEPS

        def cached(x: Tensor, t: Tensor, residual: Tensor) -> Tensor:
            return model.head(model.embed(x) + residual)  # type: ignore[operator]

        def full(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
            h = stream = model.embed(x)  # type: ignore[operator]
            for layer in model.layers:  # type: ignore[union-attr]
                h = layer(h, model.time(t[:, None]))  # type: ignore[operator]
            return model.head(h), h - stream  # type: ignore[operator]

        rows: dict[int, list[float]] = {}
        kept: list[Tensor] = []
        x = start
        for step, t in enumerate(times):
            if mask[step] == "1":
                v, residual = full(x, t)
                kept.insert(0, residual)
            else:
                anchors = kept[:reads]
                alone = [cached(x, t, residual).flatten().double() for residual in anchors]
                left = next((s for s in range(step, STEPS) if mask[s] == "1"), STEPS) - step
                target = reference_v[step] - correction * (x - reference_x[step]) / (-left / STEPS)
                older = torch.stack([a - alone[0] for a in alone[1:]], 1) if alone[1:] else torch.zeros(240, 0).double()
                wanted = target.flatten().double() - alone[0]
                found = torch.linalg.lstsq(older, wanted[:, None]).solution.flatten() if alone[1:] else torch.zeros(0)
                rows[step] = [1 - float(found.sum()), *found.tolist()]
                v = cached(x, t, sum(w * a for w, a in zip(rows[step], anchors, strict=True)))  # type: ignore[arg-type]
            x = x - v / STEPS
    return rows, x


@pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])
@pytest.mark.parametrize("correction", [0.0, 1.0])
def test_weights_are_the_least_squares_solution(
    backend: str, correction: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    denoiser = hicache_compile(ToyDiT(), HiCache(4, scope="stack"), backend=backend)

    def run() -> Tensor:
        x = torch.randn(3, 5, 16, generator=torch.Generator().manual_seed(7))
        with torch.no_grad(), denoiser.trajectory(STEPS):
            for step in range(STEPS):
                x = x - denoiser(x, torch.full((3,), 1 - step / STEPS)) / STEPS
        return x

    monkeypatch.setattr("hicache_compile.tune.calibrate.RIDGE", 1e-9)
    measured = measure(denoiser, [run], reads=3)
    found = with_weights(measured, StepMask(MASK), correction=correction)
    rows, x = solved(ToyDiT(), MASK, 7, correction, 3)
    assert isinstance(found.policy.forecaster, Calibrated)
    for step, anchors, weights in found.policy.forecaster.table.rows:
        assert sum(weights) == pytest.approx(1.0)
        assert list(anchors) == [s for s in range(step)[::-1] if MASK[s] == "1"][:3]
        assert weights == pytest.approx(rows[step], rel=2e-2, abs=2e-2), step
    assert [row[0] for row in found.policy.forecaster.table.rows] == sorted(rows)
    denoiser.policy = found.policy
    torch.testing.assert_close(run(), x, rtol=1e-3, atol=1e-4)
    reference = measured.references[0].result
    assert reference is not None
    assert found.error == pytest.approx(float((x - reference).norm() / reference.norm()), rel=0.02)


def test_several_runs_and_branches_are_fitted_together() -> None:
    """Better for both runs than the weights of either, and than plain reuse."""
    toy = Toy()
    both = measure(toy.denoiser, toy.runs)
    found = with_weights(both, StepMask(MASK))
    toy.denoiser.policy = Policy(StepMask(MASK), Reuse(), "stack")
    left = sum(float((run() - r.result).square().sum()) for run, r in zip(toy.runs, both.references, strict=True))
    size = sum(float(r.result.square().sum()) for r in both.references if r.result is not None)
    assert found.error < 0.5 * (left / size) ** 0.5


def test_branches_are_fitted_as_guidance_takes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last step alone is forecast, from the path of the run in full: one least-squares problem, solved by hand."""
    monkeypatch.setattr("hicache_compile.tune.calibrate.RIDGE", 1e-9)
    toy, model = Toy(), ToyDiT()
    measured = measure(toy.denoiser, toy.runs[:1], reads=3)
    found = with_weights(measured, StepMask("1" * (STEPS - 1) + "0"))
    residuals = features(ToyDiT(), 0)
    combined: list[Tensor] = []
    for name, share in (("cond", GUIDANCE), ("uncond", 1 - GUIDANCE)):
        (reference,) = measured.references
        x = reference.samples[name][-1]
        with torch.no_grad():
            outputs = [model.head(model.embed(x) + residuals[name][step]) for step in (8, 7, 6)]
        combined.append(share * torch.stack([*outputs, reference.outputs[name][-1]]).flatten(1).double())
    newest, *older, wanted = sum(combined)  # type: ignore[misc]  # tensors
    differences = torch.stack([one - newest for one in older], 1)
    solution = torch.linalg.lstsq(differences, (wanted - newest)[:, None]).solution.flatten().tolist()
    assert isinstance(found.policy.forecaster, Calibrated)
    ((step, anchors, weights),) = found.policy.forecaster.table.rows
    assert (step, anchors) == (9, (8, 7, 6))
    assert weights == pytest.approx([1 - sum(solution), *solution], rel=1e-2, abs=1e-2)


def test_later_runs_add_to_what_earlier_ones_said() -> None:
    """The weights after two runs are the least squares over both; a run that is made again replaces what it said."""
    rng = torch.Generator().manual_seed(0)
    older = [torch.randn(2, 50, generator=rng, dtype=torch.float64) for _ in range(3)]
    wanted = [torch.randn(50, generator=rng, dtype=torch.float64) for _ in range(3)]
    fitter = _Fitter(Policy(StepMask(MASK), Reuse(), "stack"), 1.0, STEPS)
    for run, one, target in zip((1, 0, 1), older, wanted, strict=True):
        fitter.begin(run, Reference({}, {}, [{"default": -0.1}] * STEPS, 1))
        (found,), going = fitter._weights(Step(Context("default", fitter.policy), 3, STEPS), one, target, 1)
    expected = torch.linalg.lstsq(torch.cat(older[1:], 1).T, torch.cat(wanted[1:])[:, None]).solution.flatten()
    assert going == [found]
    assert found[1:] == pytest.approx(expected.tolist(), rel=1e-2, abs=1e-3)
    assert sum(found) == pytest.approx(1.0)


def demo_error(denoiser: CompiledDenoiser, policy: Policy, labels: Tensor, steps: int, seed: int) -> float:
    denoiser.policy = policy
    with denoiser.disabled():
        wanted = sample(denoiser, labels, steps, seed).images
    return float((sample(denoiser, labels, steps, seed).images - wanted).norm() / wanted.norm())


@pytest.fixture(scope="module")
def demo() -> tuple[CompiledDenoiser, Any]:
    denoiser = hicache_compile(load_model(), HiCache(7, scope="stack"), backend="eager")
    labels = torch.arange(10)
    return denoiser, measure(denoiser, [lambda: digits.pack(sample(denoiser, labels, 50, 5000).images)], "stack")


def test_calibrated_forecasts_are_truer_on_digits_they_were_not_fitted_to(demo: tuple[CompiledDenoiser, Any]) -> None:
    """At the 9 of 50 steps of N = 7, with a planned schedule."""
    denoiser, measured = demo
    held_out = torch.arange(10).repeat(2), 50, 1
    taylor = demo_error(denoiser, Policy(Interval(7), Taylor(2), "stack"), *held_out)
    hicache = demo_error(denoiser, HiCache(7, scope="stack"), *held_out)
    assert demo_error(denoiser, with_weights(measured, Interval(7)).policy, *held_out) < 0.8 * hicache
    planned = fit_forecasts(measured, "calibrated", 9, 6).policy
    assert planned.decisions(50).count("F") == 9
    error = demo_error(denoiser, planned, *held_out)
    assert error < 0.45 * hicache
    assert error < 0.8 * taylor


def test_weights_help_another_length(demo: tuple[CompiledDenoiser, Any]) -> None:
    denoiser, measured = demo
    policy = with_weights(measured, Interval(7)).policy
    shorter = Policy(Interval(5), policy.forecaster, "stack")
    args = torch.arange(10), 30, 1
    assert demo_error(denoiser, shorter, *args) < 0.75 * demo_error(denoiser, HiCache(5, scope="stack"), *args)


def test_the_shortest_path_is_the_shortest() -> None:
    """Against all paths, where a forecast reads one anchor."""
    rng = np.random.default_rng(6)
    features = np.cumsum(rng.normal(size=(11, 6)) * rng.uniform(0.2, 2, size=(11, 1)), 0)
    distances = np.square(features[:, None] - features[None]).sum(-1)

    def errors(steps: tuple[int, ...]) -> list[float]:
        newest = [max(s for s in steps if s <= t) for t in range(11)]
        return [float(distances[s, t] ** 0.5) for t, s in enumerate(newest)]

    paths = [(0, *rest) for rest in itertools.combinations(range(1, 11), 3)]
    longest = 3 * 11 // 4
    paths = [p for p in paths if max(np.diff([*p, 11])) <= longest]
    least = min(paths, key=lambda p: sum(errors(p)))
    assert shortest_path(distances, Reuse(), 4, "sum") == list(least)
    assert shortest_path(distances, Reuse(), 4, "minimax") == list(
        min(paths, key=lambda p: (max(errors(p)), sum(errors(p))))
    )
    assert shortest_path(distances, Reuse(), 11) == list(range(11))
    assert shortest_path(distances, Reuse(), 1) == [0]


@pytest.mark.parametrize("objective", ["sum", "minimax", "peak"])
def test_the_shortest_path_over_triples_is_the_shortest(objective: str) -> None:
    """Against all paths, where a forecast is the line through two anchors; the errors by the features themselves."""
    rng = np.random.default_rng(31)  # where paths told apart by their last step alone lose the shortest
    features = np.cumsum(np.cumsum(rng.normal(size=(12, 6)), 0) * rng.uniform(0.2, 2, size=(12, 1)), 0)
    distances = np.square(features[:, None] - features[None]).sum(-1)

    def errors(steps: tuple[int, ...]) -> list[float]:
        found = []
        for step in range(12):
            *_, older, newest = -1, *(one for one in steps if one <= step)
            slope = (features[newest] - features[older]) / (newest - older) if older >= 0 else 0
            found.append(float(np.linalg.norm(features[newest] + slope * (step - newest) - features[step])))
        return found

    paths = [(0, *rest) for rest in itertools.combinations(range(1, 12), 4)]
    paths = [path for path in paths if max(np.diff([*path, 12])) <= 3 * 12 // 5]

    def cost(path: tuple[int, ...]) -> tuple[float, float]:
        made = errors(path)
        return {"sum": sum(made), "minimax": max(made), "peak": sum(error**4 for error in made)}[objective], sum(made)

    found = shortest_path(distances, Newton(1), 5, objective)
    assert cost(tuple(found))[0] == pytest.approx(min(map(cost, paths))[0])


def test_of_several_forecasters_each_step_of_a_path_takes_the_best() -> None:
    """Reuse and the line through two anchors, against all paths."""
    rng = np.random.default_rng(5)
    features = np.cumsum(rng.normal(size=(10, 3)) * rng.uniform(0.1, 2, size=(10, 1)), 0)
    distances = np.square(features[:, None] - features[None]).sum(-1)

    def cost(path: tuple[int, ...], both: bool) -> float:
        total = 0.0
        for step in range(10):
            older, newest = [0, *(one for one in path if one <= step)][-2:]
            slope = (features[newest] - features[older]) / max(1, newest - older)
            values = [features[newest], features[newest] + slope * (step - newest)]
            total += min(float(np.linalg.norm(one - features[step])) for one in values[: 2 if both else 1])
        return total

    paths = [(0, *rest) for rest in itertools.combinations(range(1, 10), 3)]
    paths = [path for path in paths if max(np.diff([*path, 10])) <= 3 * 10 // 4]
    found = tuple(shortest_path(distances, [Reuse(), Newton(1)], 4))
    assert cost(found, True) == pytest.approx(min(cost(path, True) for path in paths))
    assert cost(found, True) < cost(tuple(shortest_path(distances, Reuse(), 4)), True)


def test_spans_are_those_of_the_least_error_step_by_step() -> None:
    """On features whose every forecast is known by the published recursion."""
    rng = np.random.default_rng(3)
    features = np.cumsum(np.cumsum(rng.normal(size=(14, 4)), 0), 0)
    distances = np.square(features[:, None] - features[None]).sum(-1)
    times = [1000 * (1 - step / 14) ** 1.5 for step in range(14)]
    schedule = StepMask("11010010000100")
    found = mean_velocity(distances, schedule, times)
    levels, values = [*times, 0.0], list[np.ndarray]()
    for step in range(14):
        if schedule.mask[step] == "1":
            values.append(features[step])
            continue
        drafts = []
        for span in range(1, 7):
            start = max(0, step - span)
            width = levels[step] - levels[start]
            mean = sum((levels[i + 1] - levels[i]) * values[i] for i in range(start, step)) / width
            jvp = (mean - values[start]) / width
            drafts.append(values[-1] + (levels[step + 1] - levels[step]) * jvp)
        errors = [float(np.linalg.norm(one - features[step])) for one in drafts]
        assert errors[found.span_at(step) - 1] == pytest.approx(min(errors))
        values.append(drafts[found.span_at(step) - 1])
    assert len(set(found.span)) > 2  # type: ignore[arg-type]  # one for each step


def test_mean_velocities_are_planned_for_the_timesteps_of_the_runs() -> None:
    toy = Toy("output")
    measured = measure(toy.denoiser, toy.runs, "output")
    times = measured.references[0].times
    assert times == pytest.approx([1.3 - step / STEPS for step in range(STEPS)])
    found = fit_forecasts(measured, "mean", 4, 6)
    assert isinstance(found.policy.forecaster, MeanVelocity)
    assert found.policy.decisions(STEPS).count("F") == 4
    reused = Policy(found.policy.schedule, Reuse(), "output")
    assert found.error <= tried(measured, reused).error
    annealed = fit_forecasts(measured, "mean", 4, 40, search="anneal")
    assert annealed.error <= found.error
    with pytest.raises(HiCacheError, match=r"plan\.search = 'best': must be one of local, anneal"):
        fit_forecasts(measured, "mean", 4, search="best")


def test_the_search_stops_where_nothing_is_better() -> None:
    seen = []

    def error(steps: Any) -> float:
        seen.append(tuple(steps))
        return float(sum((s - t) ** 2 for s, t in zip(steps, (0, 3, 7), strict=True)))

    assert search([0, 5, 6], 10, error, 100) == ([0, 3, 7], 0.0)
    assert len(seen) == len(set(seen))
    seen.clear()
    search([0, 5, 6], 10, error, 4)
    assert len(seen) <= 4


def test_fitting_says_what_is_wrong() -> None:
    toy = Toy()
    with pytest.raises(HiCacheError, match=r"measure\.denoiser, runs: must be"):
        measure(toy.denoiser, [])
    with pytest.raises(HiCacheError, match="must sample at least two steps"):
        measure(toy.denoiser, [lambda: None])
    measured = measure(toy.denoiser, toy.runs)
    with pytest.raises(HiCacheError, match=r"plan\.computed = 11: must be an integer from 1 to 10"):
        fit_forecasts(measured, "calibrated", 11)
    with pytest.raises(HiCacheError, match=r"fit\.method = 'magic': must be one of calibrated, sigma, gates"):
        fit_forecasts(measured, "magic", 3)
    with pytest.raises(HiCacheError, match="must be within a run of 10"):
        mask_of([0, 10], 10)


@pytest.mark.parametrize("method", ["calibrated", "sigma", "gates", "mean", "channels"])
def test_the_command_writes_a_policy(method: str, tmp_path: Path) -> None:
    out = tmp_path / "policy.json"
    options = ["--fit", method, "--steps", "12", "--computed", "4", "--backend", "eager", "--out", str(out)]
    options += ["--evaluations", "3", "--samples", "1", "--prompt", "3", "--prompt", "7", "--json"]
    options += ["--search", "anneal"] if method == "mean" else []
    result = CliRunner().invoke(app, ["tune", "demo", *options])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    policy = as_policy(str(out))
    assert found["decisions"] == policy.decisions(12)
    assert found["computed"][0] == 0
    assert len(found["computed"]) == 4
    assert 0 < found["error"] < 0.5


@pytest.mark.slow
def test_a_pipeline_is_calibrated(tmp_path: Path) -> None:
    """Through its own loop, with guidance, prompt by prompt."""
    folder = by_name("FluxPipeline").saved(tmp_path / "flux")
    out = tmp_path / "policy.json"
    options = ["--fit", "calibrated", "--steps", "6", "--computed", "3", "--backend", "eager", "--out", str(out)]
    options += [
        "--evaluations",
        "2",
        "--prompt",
        "a cat",
        "--prompt",
        "a dog",
        "--height",
        "16",
        "--width",
        "16",
        "--json",
    ]
    result = CliRunner().invoke(app, ["tune", str(folder), *options, "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["error"] < 0.5
