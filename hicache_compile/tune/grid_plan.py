"""Few steps, planned with the grid: noise levels and forecasts fitted together, by what whole runs return.

A run of ``2 K`` steps computes every other one, or those of a mask. Free are where on the way from noise to picture the
``K`` computed steps lie, and what the steps between them are made of: one weight for each anchor. Both are found by
nonlinear least squares on the results of whole runs against those of runs in full (scipy's trust region), with a
Jacobian of differences: one run for each number. For samplers of first order a forecast step with free weights is a
multistep rule, so this plans a sampler of ``K`` evaluations for the model, its guidance included. BudCache (2606.13496)
searches a mask, then levels for it, and has no weights; L2P (2604.26365) has weights alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from hicache_compile.errors import HiCacheError, whole_number
from hicache_compile.frontend.denoiser import CompiledDenoiser
from hicache_compile.policy.forecasters import Calibrated, Table
from hicache_compile.policy.forecasters.table import Row
from hicache_compile.policy.policy import Policy
from hicache_compile.policy.schedules.base import Schedule, StepMask
from hicache_compile.policy.schedules.planned import PlannedSteps
from hicache_compile.tune.sketch import Sketches

READS = 3  # anchors of a forecast
SHIFTS = (1.0, 1.5, 2.0, 3.0)  # of the levels to start from: as rectified flow shifts them, 2403.03206, eq. 23
STEP = 1e-2  # of the differences
BUCKETS = 1 << 16  # numbers that a result is folded into, at most
Run = Callable[..., object]  # samples once over ``sigmas=``, and returns the sample


@dataclass(frozen=True, slots=True)
class GridPlan:
    """A plan of the steps of ``mask``, as the numbers that are fitted.

    Args:
        gaps: the logarithm of each gap between computed steps against the first one.
        weights: of each forecast step: how the values computed before it are taken, newest first; 1 and zeros is reuse.
        mask: which steps are computed (``1``), the first among them.
    """

    gaps: tuple[float, ...]
    weights: tuple[tuple[float, ...], ...]
    mask: str

    @classmethod
    def start(cls, mask: str, shift: float = 1.0, reads: int = READS) -> GridPlan:
        """Reuse, over levels that fall evenly and are then shifted."""
        even = 1.0 - np.array([*_marked(mask, "1"), len(mask)]) / len(mask)
        gaps = -np.diff(shift * even / (1 + (shift - 1) * even))
        before = [mask[:step].count("1") for step in _marked(mask, "0")]
        rows = [(1.0, *([0.0] * (min(count, reads) - 1))) for count in before]
        return cls(tuple(np.log(gaps[1:] / gaps[0]).tolist()), tuple(rows), mask)

    @property
    def sigmas(self) -> tuple[float, ...]:
        """Of every step; those that are forecast part the way between computed ones evenly."""
        gaps = np.exp((0.0, *self.gaps))
        levels = 1.0 - np.concatenate([[0.0], np.cumsum(gaps / gaps.sum())])
        ends = [*_marked(self.mask, "1"), len(self.mask)]
        return tuple(np.interp(range(len(self.mask)), ends, levels).tolist())

    @property
    def numbers(self) -> np.ndarray:
        """All that is fitted, in a row."""
        return np.array([*self.gaps, *itertools.chain(*self.weights)])

    def with_numbers(self, values: np.ndarray) -> GridPlan:
        """The plan of other ``numbers``."""
        rest = iter(values[len(self.gaps) :].tolist())
        rows = tuple(tuple(itertools.islice(rest, len(row))) for row in self.weights)
        return GridPlan(tuple(values[: len(self.gaps)].tolist()), rows, self.mask)

    def forecaster(self) -> Calibrated:
        """The weights as those of a table."""
        steps, reads = len(self.mask), max(map(len, self.weights), default=1)
        rows: list[Row] = []
        for step, row in zip(_marked(self.mask, "0"), self.weights, strict=True):
            rows.append((step, tuple(_marked(self.mask[:step], "1")[::-1][: len(row)]), row))
        even = tuple(float(b - a) for a, b in itertools.combinations(range(steps), 2))
        return Calibrated(Table(steps, even, tuple(rows)), reads)


@dataclass(frozen=True, slots=True)
class GridFit:
    """A policy with its sigmas; ``error``: of what the runs return, relative (2-norm); ``runs``: made to find it."""

    policy: Policy
    error: float
    runs: int


def fit_grid(
    denoiser: CompiledDenoiser,
    runs: Sequence[Run],
    computed: int | str,
    times: Callable[[], Sequence[float]],
    scope: str = "stack",
    rounds: int = 6,
) -> GridFit:
    """Plan runs that compute ``computed`` steps and end where ``runs`` end in full.

    Args:
        computed: how many of twice as many steps; or a mask, as of ``StepMask``. Of one that was found under the levels
            of the scheduler, by ``fit_forecasts(..., search="anneal")``, this is BudCache's second stage, with weights.
        denoiser: what ``hicache_compile`` returned; its policy is put back.
        runs: each samples once, over the levels ``sigmas`` that it is given by name, in 0..1, one a step; in full it is
            called without. It returns the sample, a tensor, and makes the same noise each time.
        times: the timesteps of the newest run, in 0..1000, for the plan to be held against.
        rounds: linearisations at most, each of one run of each of ``runs`` for every number.

    Raises:
        HiCacheError: ``computed`` is less than 2 or no such mask, there is no run, or one returns no tensor.
    """
    from scipy.optimize import least_squares

    mask = _mask(computed)
    if not runs:
        raise HiCacheError("plan.runs: must be one or more functions that sample over sigmas=")
    kept = denoiser.policy
    try:
        fitter = _Fitter(denoiser, runs, scope)
        starts = [GridPlan.start(mask, shift) for shift in SHIFTS]
        best = min(starts, key=lambda plan: float(np.square(fitter.off(plan)).sum()))
        found = least_squares(
            lambda x: fitter.off(best.with_numbers(x)),
            best.numbers,
            jac=lambda x: fitter.jacobian(best.with_numbers(x)),
            x_scale="jac",
            max_nfev=rounds,
        )
        plan = best.with_numbers(found.x)
        error = float(np.linalg.norm(fitter.off(plan)))
    finally:
        denoiser.policy = kept
        denoiser.reset()
    schedule = PlannedSteps(plan.mask, tuple(times()), plan.sigmas)
    return GridFit(fitter.policy(plan, schedule), error, fitter.made)


class _Fitter:
    """What the runs return under a plan, against what they return in full, which ``__init__`` finds out."""

    def __init__(self, denoiser: CompiledDenoiser, runs: Sequence[Run], scope: str) -> None:
        self.denoiser, self.runs, self.scope, self.made = denoiser, runs, scope, 0
        self.sketch = Sketches(BUCKETS // len(runs))
        with denoiser.disabled():
            self.wanted = [self._run(run) for run in runs]
        self.size = float(torch.stack([one.square().sum() for one in self.wanted]).sum()) ** 0.5
        self._last: tuple[GridPlan, np.ndarray] | None = None

    def policy(self, plan: GridPlan, schedule: Schedule) -> Policy:
        return Policy(schedule, plan.forecaster(), self.scope)

    def off(self, plan: GridPlan) -> np.ndarray:
        """How far the results are off, as a share of their size, folded into ``BUCKETS`` numbers at most."""
        if self._last is None or self._last[0] != plan:
            self.denoiser.policy = self.policy(plan, StepMask(plan.mask))
            results = [self._run(run, sigmas=plan.sigmas) for run in self.runs]
            off = [found - wanted for found, wanted in zip(results, self.wanted, strict=True)]
            folded = torch.cat(list(map(self.sketch, off)))
            self._last = plan, (folded / self.size).double().cpu().numpy()
        return self._last[1]

    def jacobian(self, plan: GridPlan) -> np.ndarray:
        here, numbers = self.off(plan), plan.numbers
        moved = [self.off(plan.with_numbers(numbers + STEP * unit)) - here for unit in np.eye(len(numbers))]
        return np.stack(moved, 1) / STEP

    def _run(self, run: Run, **over: Sequence[float]) -> torch.Tensor:
        self.made += 1
        found = run(**over)
        if not isinstance(found, torch.Tensor):
            raise HiCacheError("plan.runs: must return tensors, the samples, to plan by")
        return found.detach().float()


def _mask(computed: int | str) -> str:
    if not isinstance(computed, str):
        whole_number("plan", "computed", computed, 2)
        return "10" * computed
    mask = StepMask(computed).mask
    if mask.count("1") < 2:
        raise HiCacheError(f"plan.mask = {mask!r}: must compute two or more steps")
    return mask


def _marked(mask: str, letter: str) -> list[int]:
    return [step for step, one in enumerate(mask) if one == letter]
