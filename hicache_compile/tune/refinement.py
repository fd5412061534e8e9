"""Weights refined on what whole runs return: nonlinear least squares, from weights that were found step by step.

Weights that are fitted to each step by itself do not know what later steps make of an error. Here a correction of all
of them is fitted to the results of whole runs, by the method of Levenberg and Marquardt. It is made of few numbers:
what is added to the weights of the ``READS`` newest anchors, the same at all forecasts between two computed steps,
for their sum is what moves the sample. A Jacobian of differences is one run for each number; several dampings are
tried with it, which costs one run each.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from hicache_compile.errors import HiCacheError, whole_number
from hicache_compile.policy.compatibility import Trait, traits_of
from hicache_compile.policy.forecasters import Calibrated, Table, weights
from hicache_compile.policy.forecasters.table import Row
from hicache_compile.policy.policy import Policy
from hicache_compile.policy.run import RunInfo, bound
from hicache_compile.tune.bases import forecasts
from hicache_compile.tune.calibrate import Calibration
from hicache_compile.tune.measured import Measured, results, tried
from hicache_compile.tune.sketch import Sketches

READS = 2  # anchors whose weights are corrected
STEP = 1e-2  # of the differences
DAMPINGS = (1e-2, 1e-1, 1.0)  # as shares of the mean squared column of the Jacobian
BUCKETS = 1 << 16  # numbers that all results are folded into, at most
EachSlot = tuple[tuple[float, ...], ...]
MOVING = {Trait.READS_ANCHORS, Trait.IN_PARTS}  # weights that are not one row for each step


@dataclass(frozen=True, slots=True)
class Correction:
    """The weights of a policy, and which of them move together.

    ``rows``: a step, its anchors, and their weights in each slot, or once where all slots have the same. ``gaps``: the
    places in ``rows`` of the forecasts between two computed steps; ``counts``: how many numbers each gap has.
    """

    table: Table
    rows: tuple[tuple[int, tuple[int, ...], EachSlot], ...]
    gaps: tuple[tuple[int, ...], ...]
    counts: tuple[int, ...]

    @classmethod
    def of(cls, measured: Measured, policy: Policy) -> Correction:
        """That of ``policy``: its own weights in a run like the measured ones."""
        run = RunInfo(measured.num_steps, times=lambda: measured.references[0].times)
        forecaster = bound(policy.forecaster, run)
        by_slot = Trait.PER_SLOT in traits_of(forecaster)
        rows = []
        for step, anchors in forecasts(policy.schedule, forecaster, measured.num_steps):
            each = [weights(forecaster, anchors, step, policy.smoothing)]
            each = forecaster.slot_weights(anchors, step) if by_slot else each
            rows.append((step, tuple(anchors[: len(each[0])]), tuple(map(tuple, each))))
        # Between the same computed steps the newest anchor is the same one.
        gaps = [tuple(gap) for _, gap in itertools.groupby(range(len(rows)), lambda place: rows[place][1][0])]
        counts = tuple(min(READS, *(len(rows[place][1]) for place in gap)) for gap in gaps)
        table = measured.table if by_slot else replace(measured.table, slots=None)
        return cls(table, tuple(rows), tuple(gaps), counts)

    def policy(self, start: Policy, numbers: np.ndarray) -> Policy:
        """``start`` with its weights corrected by ``numbers``, those of the gaps in a row."""
        rest = iter(numbers.tolist())
        rows: list[Row] = []
        for gap, count in zip(self.gaps, self.counts, strict=True):
            added = list(itertools.islice(rest, count))
            for step, anchors, given in map(self.rows.__getitem__, gap):
                each = tuple(_sum(one, added) for one in given)
                rows.append((step, anchors, each[0] if self.table.slots is None else each))
        reads = max((len(anchors) for _, anchors, _ in rows), default=1)
        return replace(start, forecaster=Calibrated(replace(self.table, rows=tuple(rows)), reads), smoothing=None)


def refine(measured: Measured, policy: Policy, rounds: int = 2) -> Calibration:
    """``policy`` with corrected weights, if its runs then end nearer to those in full, as a ``Calibrated``.

    Args:
        policy: at the scope that was measured, with a schedule alone and a forecaster that goes by steps.
        rounds: linearisations at most. Each makes as many runs as the correction has numbers, at most 2 for each
            computed step, and 3 more.

    Raises:
        HiCacheError: an argument is not what is allowed, or the runs return no tensors to compare.
    """
    whole_number("refine", "rounds", rounds, 0)
    if policy.guards or MOVING & traits_of(policy.forecaster):
        raise HiCacheError(
            f"refine.policy = {policy!r:.80}: must have no guards, and a forecaster that goes by steps alone"
        )
    correction = Correction.of(measured, policy)
    here = np.zeros(sum(correction.counts))
    off = _off(measured, policy)
    for _ in range(rounds if here.size else 0):
        moved = [_off(measured, correction.policy(policy, here + STEP * unit)) - off for unit in np.eye(here.size)]
        tries = [here + step for step in _steps(np.stack(moved, 1) / STEP, off)]
        found = [_off(measured, correction.policy(policy, numbers)) for numbers in tries]
        best = min(range(len(tries)), key=lambda place: _size(found[place]))
        if not _size(found[best]) < _size(off):
            break
        here, off = tries[best], found[best]
    return tried(measured, correction.policy(policy, here) if here.any() else policy)


def _sum(weights: Sequence[float], added: Sequence[float]) -> tuple[float, ...]:
    """``weights`` with ``added`` to the first of them."""
    return tuple(map(sum, itertools.zip_longest(weights, added, fillvalue=0.0)))


def _steps(jacobian: np.ndarray, off: np.ndarray) -> list[np.ndarray]:
    """The damped least-squares steps from where the results are ``off``.

    All dampings are tried: a run costs little beside a Jacobian of them. Scipy's trust region, as in ``grid_plan``,
    begins with long steps where nothing is corrected yet, and spent its runs on refusing them.
    """
    gram, moments = jacobian.T @ jacobian, jacobian.T @ off
    damping = np.eye(len(gram)) * np.trace(gram) / len(gram)
    return [-np.linalg.lstsq(gram + share * damping, moments, rcond=None)[0] for share in DAMPINGS]


def _off(measured: Measured, policy: Policy) -> np.ndarray:
    """What the results under ``policy`` differ in from those in full, folded."""
    sketch = Sketches(BUCKETS // len(measured.runs))
    parts = []
    for found, reference in zip(results(measured, policy), measured.references, strict=True):
        assert reference.result is not None
        parts.append(sketch(found - reference.result))
    return torch.cat(parts).double().cpu().numpy()


def _size(off: np.ndarray) -> float:
    return float(np.linalg.norm(off)) if np.isfinite(off).all() else math.inf
