"""Fit what a guard goes by to a model (TeaCache's polynomial, MagCache's table, DiCache's probe, SenCache's
sensitivities), and its threshold to a number of steps."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from hicache_compile.errors import HiCacheError, one_of, whole_number
from hicache_compile.frontend.denoiser import CompiledDenoiser
from hicache_compile.policy.forecasters import Forecaster, Reuse
from hicache_compile.policy.guards import DiCacheGuard, SenCacheGuard, TeaCacheGuard
from hicache_compile.policy.policy import Policy
from hicache_compile.policy.schedules.base import Free
from hicache_compile.policy.schedules.magcache import MagCacheSchedule
from hicache_compile.tune.observe import Observed, observe
from hicache_compile.tune.sensitivity import sensitivities

DEGREE = 4  # of TeaCache's polynomial
BLOCKS = 5  # as far as DiCache's probe may reach
NEAR = 0.02  # a shorter probe is preferred that explains as much but for this


@dataclass(frozen=True, slots=True)
class Fitted:
    """A policy, and how it was found.

    ``explained``: the share of the variance of the output's changes that what the policy goes by explains (MagCache: of
    the ratios of all runs, the table). ``computed``: the full steps of each observed run under the policy.
    """

    policy: Policy
    explained: float
    computed: list[int]
    num_steps: int


def fit(
    denoiser: CompiledDenoiser,
    runs: Sequence[Callable[[], object]],
    method: str,
    computed: int,
    *,
    signal: str = "modulated",
    forecaster: Forecaster | None = None,
) -> Fitted:
    """A policy for ``denoiser`` that computes about ``computed`` steps of a run.

    Args:
        denoiser: what ``hicache_compile`` returned; its policy is put back.
        runs: each samples once with it, inside ``denoiser.trajectory`` or through its pipeline.
        method: ``"teacache"`` (a polynomial of degree 4, least squares of the output's change on the signal's),
            ``"magcache"`` (the mean ratio of the residual's magnitudes, by step), ``"dicache"`` (how many
            blocks make the probe) or ``"sencache"`` (the sensitivities over the run).
        computed: full steps; the largest threshold that was found to leave so many, on the mean over the runs.
        signal: TeaCache's, see ``TeaCacheGuard``.
        forecaster: for the skipped steps; by default they reuse.

    Raises:
        HiCacheError: an argument is not what is allowed, or the runs differ in length.
    """
    one_of("fit", "method", method, METHODS)
    whole_number("fit", "computed", computed, 1)
    if not isinstance(denoiser, CompiledDenoiser) or not runs:
        raise HiCacheError("fit.denoiser, fit.runs: must be a compiled denoiser and one or more functions that sample")
    policy, series, explained = METHODS[method](denoiser, runs, signal, forecaster or Reuse())
    num_steps = len(series[0]) + 1
    policy = _with_threshold(policy, series, computed, num_steps)
    counts = [_computed(policy, values) for values in series]
    return Fitted(policy, explained, counts, num_steps)


Series = Sequence[float] | np.ndarray  # of steps from the second on; ``[step - 1, anchor]`` where it is seen from there
Found = tuple[Policy, Sequence[Series], float]  # a policy, what it goes by in each run, the share explained


def _teacache(observed: Sequence[Observed], signal: str, forecaster: Forecaster) -> Found:
    x = np.concatenate([one.signal for one in observed])
    y = np.concatenate([one.output for one in observed])
    coefficients = np.polyfit(x, y, min(DEGREE, len(x) - 1))
    guard = TeaCacheGuard(1.0, tuple(float(c) for c in coefficients), signal, warmup=1, cooldown=1)
    return (
        Policy(Free(), forecaster, "stack", (guard,)),
        [one.signal for one in observed],
        _share(y, np.polyval(coefficients, x)),
    )


def _magcache(observed: Sequence[Observed], signal: str, forecaster: Forecaster) -> Found:
    ratios = np.array([one.magnitude for one in observed])
    table = (1.0, *(float(ratio) for ratio in ratios.mean(axis=0)))
    explained = _share(ratios.ravel(), np.broadcast_to(ratios.mean(axis=0), ratios.shape).ravel())
    schedule = MagCacheSchedule(1.0, max_skips=len(table), table=table, retention=0.0)
    return Policy(schedule, forecaster, "stack"), [one.magnitude for one in observed], explained


def _dicache(observed: Sequence[Observed], signal: str, forecaster: Forecaster) -> Found:
    y = np.concatenate([one.output for one in observed])
    shares = []
    for probe in range(len(observed[0].probes)):
        x = np.concatenate([one.probes[probe] for one in observed])
        shares.append(_share(y, np.polyval(np.polyfit(x, y, 1), x)))
    blocks = next(place for place, share in enumerate(shares, 1) if share >= max(shares) - NEAR)
    guard = DiCacheGuard(1.0, blocks, warmup=1, cooldown=1)
    series = [one.probes[blocks - 1] for one in observed]
    return Policy(Free(), forecaster, "stack", (guard,)), series, shares[blocks - 1]


def _sencache(
    denoiser: CompiledDenoiser, runs: Sequence[Callable[[], object]], signal: str, forecaster: Forecaster
) -> Found:
    found = sensitivities(denoiser, runs)
    guard = SenCacheGuard(1.0, found.input_sensitivity, found.time_sensitivity, warmup=1, cooldown=1)
    x = np.concatenate(
        [[guard.estimate(step, row[step], found.num_steps) for step, row in enumerate(moved)] for moved in found.moved]
    )
    y = np.concatenate(found.output)
    policy = Policy(Free(), forecaster, "stack", (guard,))
    return policy, found.moved, _share(y, np.polyval(np.polyfit(x, y, 1), x))


def _observed(make: Callable[[Sequence[Observed], str, Forecaster], Found]) -> Callable[..., Found]:
    """A method that goes by what is observed in the blocks."""

    def found(
        denoiser: CompiledDenoiser, runs: Sequence[Callable[[], object]], signal: str, forecaster: Forecaster
    ) -> Found:
        observed = observe(denoiser, runs, signal, BLOCKS)
        lengths = sorted({one.num_steps for one in observed})
        if len(lengths) > 1:
            raise HiCacheError(f"fit.runs: must be equally long, they have {', '.join(map(str, lengths))} steps")
        return make(observed, signal, forecaster)

    return found


METHODS: dict[str, Callable[..., Found]] = {
    "teacache": _observed(_teacache),
    "magcache": _observed(_magcache),
    "dicache": _observed(_dicache),
    "sencache": _sencache,
}


def _share(y: np.ndarray, fitted: np.ndarray) -> float:
    """The share of the variance of ``y`` that ``fitted`` explains."""
    spread = float(np.square(y - y.mean()).sum())
    return 1.0 - float(np.square(y - fitted).sum()) / spread if spread else 1.0


def _with_threshold(policy: Policy, series: Sequence[Series], computed: int, num_steps: int) -> Policy:
    """``policy`` with the largest threshold under which the runs compute ``computed`` steps or more, on the mean."""
    if computed >= num_steps:
        return _threshold(policy, 0.0)
    low, high = 0.0, max(1.0, 10.0 * max(float(np.sum(values)) for values in series))
    for _ in range(60):
        middle = (low + high) / 2
        counts = [_computed(_threshold(policy, middle), values) for values in series]
        if statistics.mean(counts) >= computed:
            low = middle
        else:
            high = middle
    return _threshold(policy, float(f"{low:.6g}"))


def _threshold(policy: Policy, threshold: float) -> Policy:
    if policy.guards:
        return replace(policy, guards=(replace(policy.guards[0], threshold=threshold),))  # type: ignore[call-arg]
    return replace(policy, schedule=replace(policy.schedule, threshold=threshold))  # type: ignore[type-var]


def _computed(policy: Policy, values: Series) -> int:
    """How many steps of a run of which ``values`` were measured ``policy`` computes, going by its own rule."""
    num_steps = len(values) + 1
    if not policy.guards:
        return policy.decisions(num_steps).count("F")
    watcher = policy.guards[0].watch(num_steps)
    count, anchor = 0, 0
    for step in range(num_steps):
        if policy.forces(step, num_steps) or not watcher.skips(step, (_seen(values[step - 1], anchor), 1.0)):
            count, anchor = count + 1, step
            watcher.after_full(step, ())
        else:
            watcher.after_forecast(step, ())
    return count


def _seen(value: float | np.ndarray, anchor: int) -> float:
    """What is measured in a step after the computed step ``anchor``."""
    return float(value[anchor] if isinstance(value, np.ndarray) else value)
