"""Which steps to compute: a shortest path over measured forecast errors, then a search end to end.

path         a node is a computed step, an edge the forecasts between two of them; what an edge costs follows from the
             distances between steps and the forecaster's own weights, so the schedule is chosen together with it.
             ``"sum"`` adds the errors of all forecasts, ``"minimax"`` goes by the worst (LeMiCa, 2511.00090),
             ``"peak"`` adds their 4th powers, so that single large ones are avoided (MeanCache, 2601.19961). Where a
             forecast reads two anchors, its cost is of triples of steps, as DPCache has it (2602.22654).
end to end   the path's steps are moved by one or two while that lowers the error of whole runs; or, ``annealing``, to
             anywhere.

Warm-up and cool-down are whatever comes out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import numpy as np

from hicache_compile.errors import HiCacheError, one_of, whole_number
from hicache_compile.policy.forecasters import Forecaster, depth, weights
from hicache_compile.policy.forecasters.kriging import squared_error
from hicache_compile.policy.schedules.base import StepMask

OBJECTIVES = ("sum", "minimax", "peak")
PEAK = 4  # the power of an error under "peak"
WIDTH = 4  # paths kept to each node
REACH = 3  # times the mean gap: the longest edge

Path = tuple[int, ...]


def shortest_path(
    distances: np.ndarray,
    forecaster: Forecaster | Sequence[Forecaster],
    computed: int,
    objective: str = "sum",
    width: int = WIDTH,
) -> list[int]:
    """The ``computed`` steps of a run of ``len(distances)`` under which ``forecaster`` errs least.

    What an edge costs depends on the anchors before it, as many as ``forecaster`` reads. The path is the shortest where
    these are one or two; else a beam of ``width`` paths to each two last nodes is followed.

    Args:
        distances: squared, between the features of all steps, ``[T, T]``.
        forecaster: of several, each step takes the one that errs least there.
        objective: ``"sum"``, ``"minimax"`` or ``"peak"``.

    Raises:
        HiCacheError: ``computed`` is not from 1 to ``T``, or ``objective`` is unknown.
    """
    num_steps = len(distances)
    whole_number("plan", "computed", computed, 1, num_steps)
    one_of("plan", "objective", objective, OBJECTIVES)
    join = max if objective == "minimax" else sum
    power = PEAK if objective == "peak" else 1
    choices = forecaster if isinstance(forecaster, Sequence) else [forecaster]
    reads = max(map(depth, choices))
    told_apart = min(reads, 2)  # nodes that paths are told apart by
    width = 1 if told_apart == reads else width
    longest = max(2, REACH * num_steps // computed)
    error_of = cache(lambda anchors, step: min(_error(distances, one, anchors, step) for one in choices))
    paths: dict[Path, list[tuple[float, float, Path]]] = {(0,): [(0.0, 0.0, (0,))]}
    for more in range(computed - 1, 0, -1):
        reached: dict[Path, list[tuple[float, float, Path]]] = {}
        for best in paths.values():
            for cost, total, path in best:
                worst, added = cost, total
                for following in range(path[-1] + 1, min(path[-1] + longest, num_steps - more) + 1):
                    further = (*path, following)
                    reached.setdefault(further[-told_apart:], []).append((worst, added, further))
                    error = error_of(path[-reads:], following)
                    worst, added = join((worst, error**power)), added + error
        paths = {key: sorted(best)[:width] for key, best in reached.items()}
    ends = []
    for key, best in paths.items():
        for cost, total, path in best:
            if num_steps - key[-1] > longest and any(num_steps - other[-1] <= longest for other in paths):
                continue
            tail = [error_of(path[-reads:], step) for step in range(path[-1] + 1, num_steps)]
            ends.append((join((cost, *(error**power for error in tail))), total + sum(tail), path))
    return list(min(ends)[2])


def search(
    start: Sequence[int], num_steps: int, error: Callable[[Sequence[int]], float], evaluations: int
) -> tuple[list[int], float]:
    """Move the steps of ``start`` (not the first, which is always computed) while ``error`` of whole runs falls.

    Args:
        error: of a run that computes these steps; called at most ``evaluations`` times.
    """
    steps, tried = list(start), {tuple(start): error(start)}
    least = tried[tuple(start)]
    reach, moved = 2, True
    while moved and len(tried) < evaluations:
        moved = False
        for place in range(1, len(steps)):
            for by in (*range(-1, -reach - 1, -1), *range(1, reach + 1)):
                other = sorted({*steps[:place], steps[place] + by, *steps[place + 1 :]})
                if len(other) < len(steps) or other[0] != 0 or other[-1] >= num_steps or tuple(other) in tried:
                    continue
                if len(tried) >= evaluations:
                    return steps, least
                tried[tuple(other)] = error(other)
                if tried[tuple(other)] < least:
                    steps, least, moved = other, tried[tuple(other)], True
                    break
    return steps, least


def mask_of(steps: Sequence[int], num_steps: int) -> StepMask:
    """The schedule that computes ``steps``."""
    if not steps or min(steps) < 0 or max(steps) >= num_steps:
        raise HiCacheError(f"steps = {list(steps)}: must be within a run of {num_steps}")
    return StepMask("".join("1" if step in set(steps) else "0" for step in range(num_steps)))


def _error(distances: np.ndarray, forecaster: Forecaster, path: Path, step: int) -> float:
    anchors = path[::-1]
    row = weights(forecaster, anchors, step)
    return squared_error(distances, anchors, row, step) ** 0.5
