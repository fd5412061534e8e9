"""Forecasters whose numbers come from a model or from the run itself, against plain algebra on real features."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hicache_compile import (
    DMD,
    Calibrated,
    FBCache,
    Forecaster,
    Gated,
    GlobalChebyshev,
    Hermite,
    HiCacheError,
    Interval,
    MeanVelocity,
    Mixed,
    Newton,
    Policy,
    ResidualGate,
    Reuse,
    Smoothing,
    Spectrum,
    StepMask,
    SteppedHermite,
    Table,
    Taylor,
    hicache_compile,
)
from hicache_compile.policy.forecasters import MeasuredForecaster, measured_weights, weights
from hicache_compile.policy.forecasters.kriging import cross_product, kriging_weights, squared_error
from hicache_compile.policy.run import RunInfo
from hicache_compile.tune.bases import SIGMAS, forecasts, gated, stepped_hermite
from tests.support.models import ToyDiT

T = 12
RNG = np.random.default_rng(0)
FEATURES = np.cumsum(np.cumsum(RNG.normal(size=(T, 40)), 0), 0) + 5.0  # smooth along the run
DISTANCES = np.square(FEATURES[:, None] - FEATURES[None]).sum(-1)
TABLE = Table(T, tuple(DISTANCES[np.triu_indices(T, 1)]))


def best(anchors: list[int], target: int) -> np.ndarray:
    """Least squares on the features themselves, of weights that sum to 1."""
    newest = FEATURES[anchors[0]]
    older = np.stack([FEATURES[a] - newest for a in anchors[1:]], 1)
    found = np.linalg.lstsq(older, FEATURES[target] - newest, rcond=None)[0]
    return np.array([1 - found.sum(), *found])


@pytest.mark.parametrize(("anchors", "target"), [([3, 0], 5), ([6, 4, 1], 9), ([8, 7, 3, 0], 11), ([2, 1, 0], 3)])
def test_kriging_is_least_squares_on_the_features(anchors: list[int], target: int) -> None:
    found = Calibrated(TABLE, 4, 0.0).weights(anchors, target)
    np.testing.assert_allclose(found, best(anchors, target), rtol=1e-6)
    assert sum(found) == pytest.approx(1.0)
    error = FEATURES[target] - np.array(found) @ FEATURES[anchors]
    assert squared_error(DISTANCES, anchors, found, target) == pytest.approx(error @ error, rel=1e-9)


def test_the_ridge_pulls_towards_the_newest_anchor() -> None:
    rows = [kriging_weights(DISTANCES, [6, 4, 1], [9], ridge)[0] for ridge in (0.0, 0.1, 1e3)]
    assert abs(rows[0][0] - 1) > abs(rows[1][0] - 1) > abs(rows[2][0] - 1)
    older = np.stack([FEATURES[a] - FEATURES[6] for a in (4, 1)])
    gram = older @ older.T
    moments = older @ (FEATURES[9] - FEATURES[6])
    expected = np.linalg.solve(gram + 0.1 * np.trace(gram) / 2 * np.eye(2), moments)
    np.testing.assert_allclose(rows[1][1:], expected, rtol=1e-9)


def test_sums_of_features_need_only_distances() -> None:
    one, other = [(1.0, 3), (-2.0, 5), (1.0, 7)], [(0.5, 0), (-0.5, 11)]
    left, right = (sum(w * FEATURES[s] for w, s in pairs) for pairs in (one, other))
    assert cross_product(DISTANCES, one, other) == pytest.approx(float(left @ right), rel=1e-9)


def test_steps_between_the_measured_ones_are_linear_there() -> None:
    """A run of twice the steps less one: every other step is a measured one."""
    longer = Calibrated(TABLE, 3, 0.0).bind(RunInfo(2 * T - 1))
    np.testing.assert_allclose(longer.weights([12, 8, 2], 18), best([6, 4, 1], 9), rtol=1e-6)
    halfway = np.vstack([FEATURES, (FEATURES[4] + FEATURES[5]) / 2])
    newest = halfway[12]
    older = (halfway[3] - newest)[:, None]
    expected = np.linalg.lstsq(older, FEATURES[7] - newest, rcond=None)[0]
    np.testing.assert_allclose(longer.weights([9, 6], 14)[1:], expected, rtol=1e-6)


def test_rows_hold_for_their_anchors_and_length_only() -> None:
    table = Table(T, TABLE.distances, ((5, (4, 2), (3.0, -2.0)),))
    fitted = Calibrated(table, 3, 0.0)
    assert fitted.weights([4, 2, 0], 5) == [3.0, -2.0]
    assert fitted.bind(RunInfo(T)).weights([4, 2, 0], 5) == [3.0, -2.0]
    elsewhere = Calibrated(TABLE, 3, 0.0)
    assert fitted.weights([4, 1, 0], 5) == elsewhere.weights([4, 1, 0], 5)
    assert fitted.weights([4, 2, 0], 6) == elsewhere.weights([4, 2, 0], 6)
    assert fitted.bind(RunInfo(T + 1)).weights([4, 2, 0], 5) == elsewhere.bind(RunInfo(T + 1)).weights([4, 2, 0], 5)


@pytest.mark.parametrize("suffix", ["json", "safetensors"])
def test_a_table_is_kept_in_a_file(suffix: str, tmp_path: Path) -> None:
    table = Table(T, TABLE.distances, ((5, (4, 2), (3.0, -2.0)),))
    path = tmp_path / f"table.{suffix}"
    table.save(path)
    assert Table.load(path) == table
    assert Calibrated(str(path), 2) == Calibrated(table, 2)  # type: ignore[arg-type]  # a path is allowed
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(HiCacheError, match="must be a file that Table"):
        Table.load(path)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_steps": 1}, "Table.num_steps = 1: must be an integer >= 2"),
        ({"distances": (1.0, 2.0)}, "must be 66 numbers >= 0, one for each two of 12 steps"),
        ({"distances": (-1.0,) * 66}, "must be 66 numbers >= 0"),
        ({"distances": "ab"}, "must be 66 numbers >= 0"),
        ({"rows": ((5, (2, 4), (1.0, 0.0)),)}, "anchors newest first"),
        ({"rows": ((5, (4, 2), (1.0,)),)}, "a weight for each"),
        ({"rows": ((5, (5, 2), (1.0, 0.0)),)}, "from earlier steps"),
        ({"rows": ((12, (4, 2), (1.0, 0.0)),)}, "one below 12"),
        ({"rows": (7,)}, "must be a step"),
    ],
)
def test_a_table_says_what_is_wrong_with_it(fields: dict[str, object], message: str) -> None:
    with pytest.raises(HiCacheError, match=message.replace(".", r"\.")):
        Table(**({"num_steps": T, "distances": TABLE.distances} | fields))  # type: ignore[arg-type]  # the point


def test_global_chebyshev_is_a_ridge_regression_over_the_run() -> None:
    anchors, target, degree, ridge = [30, 22, 13, 4, 0], 36, 4, 0.1
    found = GlobalChebyshev(degree, ridge).bind(RunInfo(50)).weights(anchors, target)

    def features(step: int) -> list[float]:
        tau = 2 * step / 49 - 1
        return [float(np.cos(m * np.arccos(tau))) for m in range(degree + 1)]

    phi = np.array([features(step) for step in anchors])
    expected = features(target) @ np.linalg.inv(phi.T @ phi + ridge * np.eye(degree + 1)) @ phi.T
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    assert len(GlobalChebyshev(reads=3).bind(RunInfo(50)).weights(anchors, target)) == 3


def test_spectrum_computes_ever_fewer_steps() -> None:
    policy = Spectrum(alpha=3.0, warmup=2)
    computed = [step for step, letter in enumerate(policy.decisions(50)) if letter == "F"]
    assert computed == [0, 1, 4, 10, 19, 31, 46]
    assert Spectrum(0.75, warmup=1).decisions(12) == "F.F.F..F...F"
    assert Spectrum(3.0, warmup=2, cooldown=2).decisions(50)[-3:] == ".FF"


def test_sigma_and_gate_of_each_step() -> None:
    stepped = SteppedHermite(2, (0.5, 0.6, 0.7, 0.8))
    assert stepped.weights([1, 0], 3) == weights(Hermite(2, 0.8), [1, 0], 3)
    assert stepped.bind(RunInfo(7)).weights([3, 1], 4) == weights(Hermite(2, 0.7), [3, 1], 4)
    gate = Gated(Taylor(1), (0.0, 0.25, 0.5, 1.0))
    assert gate.weights([1, 0], 2) == [1.5, -0.5]  # Taylor's are 2, -1
    assert gate.weights([1, 0], 3) == weights(Taylor(1), [1, 0], 3)
    assert gate.bind(RunInfo(7)).weights([2, 0], 3)[0] == pytest.approx(1 + 0.5 * 0.5)


def test_fitted_sigmas_and_gates_err_least() -> None:
    mask = StepMask("110100010000")
    stepped, gate = stepped_hermite(DISTANCES, mask), gated(DISTANCES, mask, Taylor(1))
    for step, anchors in forecasts(mask, Hermite(2), T):
        values = [FEATURES[a] for a in anchors]

        def error(row: list[float], target: int = step, values: list[np.ndarray] = values) -> float:
            return float(np.linalg.norm(FEATURES[target] - sum(w * v for w, v in zip(row, values, strict=False))))

        errors = {sigma: error(weights(Hermite(2, sigma), anchors, step)) for sigma in SIGMAS}
        assert errors[stepped.sigmas[step]] == pytest.approx(min(errors.values()), rel=1e-9)
        shares = {g: error(Gated(Taylor(1), (g,)).weights(anchors, step)) for g in np.linspace(0, 1, 101)}
        assert error(gate.weights(anchors, step)) <= min(shares.values()) + 1e-9
        assert 0 <= gate.gates[step] <= 1


def test_dmd_goes_on_with_a_linear_system() -> None:
    """Two decaying modes: exact, between the snapshots too."""
    modes = RNG.normal(size=(2, 30))

    def state(t: float) -> np.ndarray:
        return np.array([0.9**t, 0.6**t]) @ modes

    anchors = [12, 9, 6, 3]
    snapshots = np.stack([state(t) for t in anchors])
    for target in (13, 15, 20):
        found = DMD(2, 4).weights_from(snapshots @ snapshots.T, anchors, target)
        np.testing.assert_allclose(np.array(found) @ snapshots[: len(found)], state(target), rtol=1e-6)
    uneven = [12, 9, 6, 5]
    snapshots = np.stack([state(t) for t in uneven])
    found = DMD(2, 4).weights_from(snapshots @ snapshots.T, uneven, 13)
    assert len(found) == 3  # the tail before the gap changed is not read
    assert DMD(2).weights_from(np.eye(2), [5, 1], 7) == [1.0]


def test_a_gate_is_what_would_have_been_right_before() -> None:
    anchors = [8, 6, 4, 2]
    values = FEATURES[anchors]
    drafted = np.array(weights(Taylor(1), [6, 4], 8)) @ FEATURES[[6, 4]] - FEATURES[6]
    moved = FEATURES[8] - FEATURES[6]
    share = min(1.0, max(0.0, float(drafted @ moved / (drafted @ drafted))))
    found = np.array(ResidualGate(Taylor(1), 3).weights_from(values @ values.T, anchors, 10))
    plain = np.array(weights(Taylor(1), anchors, 10))
    np.testing.assert_allclose(
        found @ FEATURES[anchors[: len(found)]], FEATURES[8] + share * (plain @ FEATURES[[8, 6]] - FEATURES[8])
    )


class Oracle:
    """The toy with its stack's residual forecast by hand, in eager mode."""

    def __init__(self, forecaster: DMD | ResidualGate, mask: str, smoothing: Smoothing | None = None) -> None:
        self.model, self.forecaster, self.mask, self.smoothing = ToyDiT(), forecaster, mask, smoothing
        self.kept: list[tuple[int, torch.Tensor]] = []

    def __call__(self, x: torch.Tensor, t: torch.Tensor, step: int) -> torch.Tensor:
        model = self.model
        entering: list[torch.Tensor] = []
        hook = model.layers[0].register_forward_pre_hook(lambda m, a: entering.append(a[0]))
        leaving: list[torch.Tensor] = []
        last = model.layers[-1].register_forward_hook(lambda m, a, o: leaving.append(o))
        if self.mask[step] == "1":
            out: torch.Tensor = model(x, t)
            self.kept.insert(0, (step, leaving[0] - entering[0]))
        else:
            kept = self.read()
            flat = torch.stack([value.flatten() for _, value in kept]).double().numpy()
            row = self.forecaster.weights_from(flat @ flat.T, [s for s, _ in kept], step)
            residual = sum(w * value for w, (_, value) in zip(row, kept, strict=False))
            replaced = model.layers[-1].register_forward_hook(lambda m, a, o: entering[0] + residual)
            out = model(x, t)
            replaced.remove()
        hook.remove()
        last.remove()
        return out

    def read(self) -> list[tuple[int, torch.Tensor]]:
        """The anchors that are read: moving averages where they are smoothed."""
        values, reads = self.kept, self.forecaster.reads
        if self.smoothing is not None:
            older = [*values[1:], None]
            values = [
                (step, value if before is None else (value + before[1]) / 2)
                for (step, value), before in zip(values, older, strict=True)
            ]
        return values[:reads]


@pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])
@pytest.mark.parametrize("forecaster", [DMD(2, 4), ResidualGate(Taylor(1), 3)], ids=["dmd", "gate"])
def test_weights_are_fitted_in_the_run(forecaster: DMD | ResidualGate, backend: str) -> None:
    """Against hooks on the plain model; two contexts with other inputs each have their own weights."""
    mask = "1010101000100"
    policy = Policy(StepMask(mask), forecaster, "stack")
    denoiser = hicache_compile(ToyDiT(), policy, backend=backend, together=True)
    oracles = {name: Oracle(forecaster, mask) for name in ("cond", "uncond")}
    inputs = {name: torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(n)) for n, name in enumerate(oracles)}
    with torch.no_grad():
        for _ in range(2):  # the second run is as the first
            for oracle in oracles.values():
                oracle.kept.clear()
            with denoiser.trajectory(len(mask)):
                for step, (name, x) in itertools.product(range(len(mask)), inputs.items()):
                    t = torch.full((2,), 1 - step / len(mask))
                    with denoiser.cache_context(name):
                        found = denoiser(x * (1 - step / 20), t)
                    torch.testing.assert_close(found, oracles[name](x * (1 - step / 20), t, step), rtol=1e-4, atol=1e-5)
    report = denoiser.report()
    assert report.recompiles == 0
    measured = 5  # steps that are computed with a forecast after them
    assert report.host_syncs == 2 * 2 * measured


@pytest.mark.parametrize("forecaster", [DMD(2, 4), ResidualGate(Taylor(1), 4)], ids=["dmd", "gate"])
@pytest.mark.parametrize("method", ["exponential", "moving_average"])
def test_a_measured_forecaster_is_fitted_to_smoothed_anchors(forecaster: MeasuredForecaster, method: str) -> None:
    """Against smoothing the features themselves, before anything is fitted to them."""
    anchors = [8, 6, 4, 2]
    features = FEATURES[anchors]
    oldest_first = features[::-1]
    smooth = []
    for place in range(len(anchors)):
        window = oldest_first[max(0, place - 2) : place + 1]
        value = window[0]
        for before, now in itertools.pairwise(window):
            value = 0.7 * now + 0.3 * value if method == "exponential" else (now + before) / 2
        smooth.append(value)
    smoothed = np.stack(smooth[::-1])
    row = forecaster.weights_from(smoothed @ smoothed.T, anchors, 10)
    found = measured_weights(forecaster, features @ features.T, anchors, 10, Smoothing(method, 0.7))
    np.testing.assert_allclose(
        np.array(found) @ features[: len(found)], np.array(row) @ smoothed[: len(row)], rtol=1e-6
    )


@pytest.mark.parametrize("forecaster", [DMD(2, 4), ResidualGate(Taylor(1), 3)], ids=["dmd", "gate"])
def test_smoothed_weights_are_fitted_in_the_run(forecaster: DMD | ResidualGate) -> None:
    mask, smoothing = "1010101000100", Smoothing("moving_average")
    policy = Policy(StepMask(mask), forecaster, "stack", smoothing=smoothing)
    denoiser = hicache_compile(ToyDiT(), policy, backend="eager", together=True)
    oracle = Oracle(forecaster, mask, smoothing)
    x = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), denoiser.trajectory(len(mask)):
        for step in range(len(mask)):
            given = x * (1 - step / 20), torch.full((2,), 1 - step / len(mask))
            torch.testing.assert_close(denoiser(*given), oracle(*given, step), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("smoothing", [None, Smoothing()], ids=["", "smoothed"])
def test_a_measured_forecaster_runs_where_the_program_takes_the_branch(smoothing: Smoothing | None) -> None:
    policy = Policy(Interval(4), DMD(), "stack", smoothing=smoothing)
    found = []
    for backend in ("cond_eager", "eager"):
        denoiser = hicache_compile(ToyDiT(), policy, backend=backend, together=True)
        x = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0))
        with torch.no_grad(), denoiser.trajectory(T):
            for step in range(T):
                x = x - denoiser(x, torch.full((2,), 1 - step / T)) / T
        found.append((x, denoiser.report().decisions()))
    assert found[0][1] == found[1][1] == "FFF...F...F."
    torch.testing.assert_close(found[0][0], found[1][0], rtol=0, atol=0)


def test_a_measured_forecaster_is_refused_where_the_program_decides() -> None:
    with pytest.raises(HiCacheError, match=r"fitted to the anchors .* the host does not see the anchors"):
        hicache_compile(ToyDiT(), FBCache(0.1, forecaster=DMD(2, 3)), backend="cond_eager")


@pytest.mark.parametrize(
    "forecaster", [Calibrated(TABLE, 3), Gated(Hermite(2), (0.5,) * T), GlobalChebyshev(reads=3), MeanVelocity(reads=3)]
)
def test_what_goes_by_the_run_is_refused_where_the_program_decides(forecaster: Forecaster) -> None:
    with pytest.raises(HiCacheError, match="use a forecaster that goes by gaps"):
        hicache_compile(ToyDiT(), FBCache(0.1, forecaster=forecaster), backend="cond_eager")
    denoiser = hicache_compile(ToyDiT(), FBCache(0.1, forecaster=forecaster), backend="eager")
    with torch.no_grad(), denoiser.trajectory(T):
        for step in range(T):
            denoiser(torch.randn(2, 5, 16), torch.full((2,), 1 - step / T))


@pytest.mark.parametrize(
    "forecaster", [Calibrated(TABLE, 3), Gated(Hermite(2), (0.5,) * T), GlobalChebyshev(), MeanVelocity(3), Reuse()]
)
def test_changing_the_weights_compiles_nothing(forecaster: Forecaster) -> None:
    denoiser = hicache_compile(ToyDiT(), Policy(Interval(4), GlobalChebyshev(), "stack"), backend="aot_eager")
    x, programs = torch.randn(2, 5, 16), set()
    for policy in (denoiser.policy, Policy(Interval(3), forecaster, "stack")):
        denoiser.policy = policy
        with torch.no_grad(), denoiser.trajectory(T):
            for step in range(T):
                denoiser(x, torch.full((2,), 1 - step / T))
        programs.add((denoiser.report().programs, denoiser.report().recompiles))
    assert programs == {(2, 0)}


def test_policies_with_tables_are_plain_json() -> None:
    from hicache_compile.policy.json_codec import from_json, to_json

    policy = Policy(
        Interval(4), Calibrated(Table(T, TABLE.distances, ((5, (4, 2), (3.0, -2.0)),)), 3, 0.0, 20), "stack"
    )
    assert from_json(to_json(policy)) == policy
    assert json.loads(to_json(policy))["forecaster"]["table"]["num_steps"] == T


def test_spectrum_mixes_its_regression_with_a_line() -> None:
    """On anchors of numbers: the regression's value and the line's, by their own weights and by hand."""
    anchors, target = [10, 6, 3, 1, 0], 12
    values = [0.3, -1.2, 2.5, 0.7, 1.1]
    line = values[0] + (values[0] - values[1]) / 4 * 2
    fitted = sum(w * v for w, v in zip(weights(GlobalChebyshev(4, 0.1), anchors, target), values, strict=False))
    mixed = sum(w * v for w, v in zip(weights(Spectrum(mix=0.7).forecaster, anchors, target), values, strict=False))
    assert mixed == pytest.approx(0.7 * fitted + 0.3 * line)
    assert Spectrum().forecaster == GlobalChebyshev(4, 0.1)
    run = Spectrum(mix=0.5).bind(RunInfo(num_steps=20)).forecaster
    assert isinstance(run, Mixed)
    assert run.forecaster == GlobalChebyshev(4, 0.1, num_steps=20)


@pytest.mark.parametrize("damp", [lambda inner: Gated(inner, (1.0,) * 5), ResidualGate])
def test_what_is_damped_goes_by_the_times_of_the_run(damp: Any) -> None:
    times = [1000.0, 900.0, 600.0, 300.0, 100.0]
    run = damp(MeanVelocity()).bind(RunInfo(5, 0, lambda: times))
    alone = MeanVelocity().bind(RunInfo(5, 0, lambda: times))
    assert run.forecaster == alone
    assert alone != MeanVelocity().bind(RunInfo(5))


def test_an_own_forecaster_may_have_any_attributes() -> None:
    class Ensemble:
        parts = 3
        forecasters = (Reuse(), Newton(1))

        def weights(self, anchors: Sequence[int], target: int) -> list[float]:
            return [2.0, -1.0][: len(anchors)]

    policy = Policy(StepMask("1100"), Ensemble(), "stack")
    assert policy.layout.parts is None
    assert policy.part_weights([0, 1], 2) == [[2.0, -1.0]]
