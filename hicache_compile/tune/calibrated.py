"""Forecasts and schedules fitted to a model together, for a number of steps to compute."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from hicache_compile.errors import HiCacheError, one_of, whole_number
from hicache_compile.policy.forecasters import Calibrated, Hermite, MeanVelocity, Newton, Reuse
from hicache_compile.policy.schedules.base import Schedule
from hicache_compile.tune import planning
from hicache_compile.tune.annealing import anneal
from hicache_compile.tune.bases import SPANS, gated, mean_velocity, stepped_hermite
from hicache_compile.tune.calibrate import Calibration, calibrate
from hicache_compile.tune.channels import by_channel
from hicache_compile.tune.measured import Measured, tried
from hicache_compile.tune.planning import OBJECTIVES, mask_of, shortest_path
from hicache_compile.tune.refinement import refine

GUIDED = 0.5  # the correction where the branches of guidance are fitted together
PASSES = 8  # of one run with guidance; of several, as many fewer, but 3
ROUNDS = 2  # of refinement
SEARCHES = ("local", "anneal")
CLIMBS = 1 / 11  # share of the evaluations of annealing: 20 of 220


def plan(
    measured: Measured,
    computed: int,
    method: str,
    evaluations: int = 40,
    search: str = "local",
    seed: int = 0,
) -> Calibration:
    """The best schedule of ``computed`` steps for what ``method``, one of ``FITS``, makes of each.

    Shortest paths are tried, and the best of them is searched on from, end to end.

    Args:
        evaluations: how many schedules are fitted and run, paths included.
        search: ``"local"`` or ``"anneal"``; see ``planning.search`` and ``anneal``.
        seed: of the annealing.

    Raises:
        HiCacheError: ``computed`` is more than the runs' steps, ``evaluations`` is less than 1, or there is no such
            search.
    """
    whole_number("plan", "evaluations", evaluations, 1)
    one_of("plan", "search", search, SEARCHES)
    fit = FITS[method]
    tried: dict[tuple[int, ...], Calibration] = {}

    def error(steps: Sequence[int]) -> float:
        key = tuple(steps)
        if key not in tried:
            tried[key] = fit(measured, mask_of(steps, measured.num_steps))
        return tried[key].error

    distinct = list(dict.fromkeys(map(tuple, _paths(measured, computed, method))))[:evaluations]
    start, left = min(distinct, key=error), evaluations - len(distinct)
    if search == "anneal":
        climbs = round(left * CLIMBS)
        steps, _ = anneal(start, measured.num_steps, error, left - climbs, climbs, seed)
    else:
        steps, _ = planning.search(start, measured.num_steps, error, left + 1)
    return tried[tuple(steps)]


def _paths(measured: Measured, computed: int, method: str) -> list[list[int]]:
    """Schedules to start from: for MeanCache its own path, over the best of its spans at each step."""
    if method == "mean":
        spans = [MeanVelocity(span, reads=2, times=measured.references[0].times) for span in SPANS]
        return [shortest_path(measured.distances, spans, computed, "peak")]
    fitted = Calibrated(replace(measured.table, slots=None), 2)
    reused = [shortest_path(measured.distances, Reuse(), computed, by) for by in ("minimax", "sum")]
    return reused + [shortest_path(measured.distances, fitted, computed, by) for by in reversed(OBJECTIVES)]


def with_weights(
    measured: Measured, schedule: Schedule, *, correction: float | None = None, by_slot: bool = False
) -> Calibration:
    """``Calibrated`` for ``schedule``: see ``calibrate``. Without a ``correction`` it is whole, or under guidance
    ``GUIDED``: there the weights of a step are known a pass later, and the whole of it would go too far."""
    branches = len(measured.references[0].outputs)
    runs = len(measured.runs)
    passes = max(3, -(-PASSES // runs)) if branches > 1 else min(2, runs)
    return calibrate(
        measured.denoiser,
        measured.runs,
        measured.references,
        measured.table,
        schedule,
        measured.cut,
        correction=correction if correction is not None else GUIDED if branches > 1 else 1.0,
        passes=passes,
        by_slot=by_slot,
    )


def with_sigmas(measured: Measured, schedule: Schedule, order: int = 2) -> Calibration:
    """``SteppedHermite`` for ``schedule``."""
    forecaster = stepped_hermite(measured.distances, schedule, order)
    return tried(measured, replace(measured.cut, schedule=schedule, forecaster=forecaster))


def with_gates(measured: Measured, schedule: Schedule, forecaster: Any = None) -> Calibration:
    """``Gated`` for ``schedule``, by default Hermite of order 2 at the true slope, ``sigma`` 1 / sqrt 2."""
    forecaster = gated(measured.distances, schedule, forecaster or Hermite(2, 0.5**0.5))
    return tried(measured, replace(measured.cut, schedule=schedule, forecaster=forecaster))


def with_channels(measured: Measured, schedule: Schedule) -> Calibration:
    """``ByChannel`` for ``schedule``."""
    policy = replace(measured.cut, schedule=schedule, forecaster=Newton(2))  # of as many anchors as a candidate reads
    forecaster = by_channel(measured.denoiser, measured.runs, policy)
    return tried(measured, replace(policy, forecaster=forecaster))


def with_mean_velocity(measured: Measured, schedule: Schedule) -> Calibration:
    """``MeanVelocity`` for ``schedule``."""
    forecaster = mean_velocity(measured.distances, schedule, measured.references[0].times)
    return tried(measured, replace(measured.cut, schedule=schedule, forecaster=forecaster))


FITS: dict[str, Callable[[Measured, Schedule], Calibration]] = {
    "calibrated": with_weights,
    "sigma": with_sigmas,
    "gates": with_gates,
    "channels": with_channels,
    "mean": with_mean_velocity,
}


def fit_forecasts(
    measured: Measured,
    method: str,
    computed: int,
    evaluations: int = 40,
    *,
    by_slot: bool = False,
    search: str = "local",
    seed: int = 0,
    rounds: int | None = None,
) -> Calibration:
    """A planned schedule of ``computed`` steps with forecasts fitted by ``method``, one of ``FITS``.

    Args:
        evaluations: how many schedules are fitted and run.
        by_slot: in the end each slot gets weights of its own (``"calibrated"``).
        search: ``"local"``: computed steps are moved by one or two while the error of whole runs falls; ``"anneal"``:
            BudCache's simulated annealing, with 220 evaluations as published.
        seed: of the annealing.
        rounds: in which the weights that were found are refined on whole runs; see ``refine``. The forecaster is then a
            ``Calibrated``, whatever the method. ``None``: 2 with ``"calibrated"`` if the runs return tensors, else 0.

    Raises:
        HiCacheError: an argument is not what is allowed.
    """
    one_of("fit", "method", method, FITS)
    if by_slot and method != "calibrated":
        raise HiCacheError(f"fit.by_slot = True: must be false with method {method!r}")
    found = plan(measured, computed, method, evaluations, search, seed)
    if by_slot:
        found = with_weights(measured, found.policy.schedule, by_slot=True)
    if rounds is None:
        known = all(one.result is not None for one in measured.references)
        rounds = ROUNDS if method == "calibrated" and known else 0
    return refine(measured, found.policy, rounds) if rounds else found
