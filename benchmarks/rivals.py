"""Every published rival in one race, on the emoji model: equal computed steps, held-out captions, one noise each.

Each method has the schedule that its authors publish, with as many computed steps; what can be fitted is fitted, to
captions of other names. Errors are of the pictures, against those drawn in full.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from importlib.resources import files
from typing import Any

import numpy as np

from hicache_compile import (
    Calibrated,
    DiCache,
    EasyCache,
    FBCache,
    GlobalChebyshev,
    Growing,
    Hermite,
    MeanVelocity,
    Mixed,
    Newton,
    PlannedSteps,
    Policy,
    Reuse,
    SeaCache,
    StepMask,
    Taylor,
)
from hicache_compile.benchmarks.emoji_captions import HELD_OUT, SHOWN
from hicache_compile.benchmarks.measurement import Line, Part
from hicache_compile.benchmarks.record import environment
from hicache_compile.demo.emoji import GUIDANCE, SIZE, STEPS, TOKENS
from hicache_compile.evaluation.intervals import as_data, summary
from hicache_compile.evaluation.runs import Judge, quietly
from hicache_compile.evaluation.subjects import Subject, open_subject
from hicache_compile.policy.forecasters import ByBand
from hicache_compile.policy.json_codec import to_dict
from hicache_compile.tune import fit, fit_forecasts, measure
from hicache_compile.tune.annealing import anneal
from hicache_compile.tune.calibrated import with_channels
from hicache_compile.tune.measured import Measured, tried
from hicache_compile.tune.planning import mask_of, shortest_path

COMPUTED = (14, 9, 5)  # of 28 steps: 2, 3.1 and 5.6 times fewer evaluations
SCOPE = "stack"
GRID = (8, 8)
ALONE, SEED, FITTED_ON = 1, 7000, 100  # captions that BudCache anneals on, as published; seeds
TRIALS, CLIMBS = 100, 12  # of annealing
TRIED, ROUNDS = 12, 2  # schedules of what is calibrated, and rounds of refining it
THRESHOLDS, HALVINGS = (1e-3, 1e3), 14  # of guards, searched by their logarithm
OURS = "(ours)"
BASE = "HiCache"


def even(computed: int, warmup: int) -> StepMask:
    """``warmup`` steps, then as many more as are ``computed``, evenly spaced."""
    after = np.linspace(warmup - 1, STEPS, computed - warmup + 2)[1:-1]
    return mask_of(sorted({*range(warmup), *(round(float(step)) for step in after)}), STEPS)


def growing(computed: int) -> Growing:
    """Spectrum's schedule of as many ``computed`` steps."""
    found = [Growing(alpha / 100, warmup) for warmup in (5, 4, 3, 2) for alpha in range(10, 900, 5)]
    return next(g for g in found if sum(g.computes(step, STEPS) for step in range(STEPS)) == computed)


def fewer(computed: int) -> Policy:
    """The sampler with ``computed`` steps and no cache."""
    levels = tuple(1 - step / computed for step in range(computed))
    return Policy(PlannedSteps("1" * computed, tuple(1000 * level for level in levels), levels), Reuse(), SCOPE)


def scheduled(computed: int) -> dict[str, Policy]:
    """What needs no fit."""
    late = even(computed, 3) if computed > 3 else even(computed, 1)
    return {
        "fewer steps, no cache": fewer(computed),
        "FORA": Policy(even(computed, 1), Reuse(), SCOPE),
        "TaylorSeer": Policy(late, Taylor(2), SCOPE),
        BASE: Policy(late, Hermite(2, 0.5), SCOPE),
        "FreqCa": Policy(late, ByBand(Reuse(), Hermite(2, 0.5), 0.25, GRID), SCOPE),
        "Spectrum": Policy(growing(computed), Mixed(GlobalChebyshev(4, 0.1), Newton(1), 0.5), "output"),
        "MeanCache": Policy(even(computed, 2), MeanVelocity(2), "output"),
    }


def taken(subject: Subject) -> float:
    """How many steps a picture of the last run computed, on the mean: each sample decides for itself."""
    report = subject.denoiser.report()
    return STEPS * report.computed / (report.computed + report.forecast)


class Fits:
    """Policies that are fitted to ``captions`` of ``subject``; measurements are made when the first needs them."""

    def __init__(self, subject: Subject, captions: Sequence[int]) -> None:
        self.subject = subject
        self.captions = list(captions)
        self._measured: dict[tuple[str, int], Measured] = {}

    def run(self, count: int | None = None) -> Any:
        return self.subject.draw(self.captions[:count], FITTED_ON, images=False).latents

    def measured(self, scope: str = SCOPE, count: int | None = None) -> Measured:
        key = scope, count or 0
        if key not in self._measured:
            run = functools.partial(self.run, count)
            self._measured[key] = measure(self.subject.denoiser, [run], scope)
        return self._measured[key]

    def all(self) -> Mapping[str, Callable[[int], Policy]]:
        """By name what fits a policy of so many computed steps."""
        return {
            "L2P": self._least_squares,
            "DPCache": self._shortest,
            "BudCache": self._annealed,
            "MeanCache, planned": lambda k: fit_forecasts(self.measured("output"), "mean", k, TRIED).policy,
            "HyCa": lambda k: with_channels(self.measured(), even(k, 3)).policy,
            "SenCache": lambda k: fit(self.subject.denoiser, [self.run], "sencache", k).policy,
            "TeaCache": lambda k: fit(self.subject.denoiser, [self.run], "teacache", k).policy,
            "DiCache": lambda k: self._guarded(DiCache, k),
            "FBCache": lambda k: self._guarded(FBCache, k),
            "EasyCache": lambda k: self._guarded(EasyCache, k),
            "SeaCache": lambda k: self._guarded(functools.partial(SeaCache, grid=GRID), k),
            f"calibrated, refined {OURS}": lambda k: fit_forecasts(self.measured(), "calibrated", k, TRIED).policy,
            f"mean velocity, refined {OURS}": lambda k: (
                fit_forecasts(self.measured("output"), "mean", k, TRIED, rounds=ROUNDS).policy
            ),
        }

    def _least_squares(self, computed: int) -> Policy:
        """Weights by least squares on features, for evenly spaced steps."""
        return Policy(even(computed, 1), Calibrated(replace(self.measured().table, slots=None), 3), SCOPE)

    def _shortest(self, computed: int) -> Policy:
        """The path of the least sum of errors over triples of steps, with a line through two anchors."""
        return Policy(mask_of(shortest_path(self.measured().distances, Newton(1), computed), STEPS), Newton(1), SCOPE)

    def _annealed(self, computed: int) -> Policy:
        """Steps by simulated annealing on the error of whole runs."""
        measured = self.measured(SCOPE, ALONE)
        policy = Policy(even(computed, 3), Hermite(2, 0.5), SCOPE)

        def error(steps: Sequence[int]) -> float:
            return tried(measured, replace(policy, schedule=mask_of(steps, STEPS))).error

        start = [step for step in range(STEPS) if policy.schedule.computes(step, STEPS)]
        steps, _ = anneal(start, STEPS, error, TRIALS, CLIMBS)
        return replace(policy, schedule=mask_of(steps, STEPS))

    def _guarded(self, make: Callable[[float], Policy], computed: int) -> Policy:
        """The threshold at which the steps computed, on the mean over the captions, are nearest to ``computed``."""
        low, high = THRESHOLDS
        nearest = {}
        with quietly():
            for _ in range(HALVINGS):
                middle = math.sqrt(low * high)
                self.subject.under(make(middle))
                self.run()
                found = taken(self.subject)
                nearest[abs(found - computed)] = middle
                low, high = (middle, high) if found > computed else (low, middle)
        return make(nearest[min(nearest)])


def open_emoji(captions: Sequence[str] = (*HELD_OUT, *SHOWN), backend: str = "aot_eager") -> Subject:
    """The emoji pipeline with ``captions``: by default those that are judged, and then those that are fitted to."""
    folder = files("hicache_compile.demo.emoji") / "emoji-pipeline"
    how = {"height": SIZE, "width": SIZE, "max_sequence_length": TOKENS, "true_cfg_scale": GUIDANCE}
    return open_subject(str(folder), list(captions), STEPS, backend, how | {"negative_prompt": ""}, "bench")


def parts() -> Iterable[Part]:
    """A line for each method and number of computed steps."""
    subject = open_emoji()
    judge = Judge(subject)
    judged = list(range(len(HELD_OUT)))
    fits = Fits(subject, range(len(HELD_OUT), len(HELD_OUT) + len(SHOWN)))

    def line(name: str, computed: int, make: Callable[[], Policy]) -> Line:
        policy = make()
        rows = judge.lines(policy, judged, SEED)
        kept = [{key: row[key] for key in ("squared_error", "squared_size", "psnr", "ssim")} for row in rows]
        found = as_data(summary(kept)) | {"computed": computed if policy.sigmas else taken(subject)}
        about = {"measured": "rivals", "method": name, "budget": computed, "steps": STEPS, "policy": to_dict(policy)}
        return {**about, **found, "pictures": kept, "environment": environment()}

    for computed in COMPUTED:
        ready = scheduled(computed)
        for name, policy in ready.items():
            yield functools.partial(line, name, computed, lambda policy=policy: policy)  # type: ignore[misc]
        for name, fitted in fits.all().items():
            yield functools.partial(line, name, computed, functools.partial(fitted, computed))
