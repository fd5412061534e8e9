"""Forecasters, scopes and schedules on the trained demo model, at equal numbers of computed steps; ablations; transfer.

Fits use separate noise. All policies are evaluated on the same held-out noise, with the same number of images per
class. Lines contain the relative error over all images (2-norm) with its 95 % interval.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from hicache_compile import (
    BDF2,
    DMD,
    AdamsBashforth,
    Chebyshev,
    Forecaster,
    GlobalChebyshev,
    Hermite,
    HiCache,
    Interval,
    Newton,
    Policy,
    ResidualGate,
    Reuse,
    ScaledTaylor,
    Taylor,
)
from hicache_compile.benchmarks.memory import forget_peak, peak_bytes, rest_bytes
from hicache_compile.benchmarks.record import environment
from hicache_compile.evaluation import Judge, summary
from hicache_compile.evaluation.quality import digit_quality
from hicache_compile.evaluation.subjects import DemoSubject
from hicache_compile.tune import FITS, Measured, fit_forecasts, measure, with_weights
from hicache_compile.tune.planning import mask_of, shortest_path

STEPS = 50
EACH = 10  # held-out images per class; half as many outside the comparison of methods
BATCH = 50
HELD_OUT, FITTED = 0, 5_000  # seeds
SAMPLES = 3  # images per class for fitting
EVALUATIONS = {"stack": 40, "module": 16}  # number of schedules tried in planning, by scope
INTERVALS = (2, 3, 4, 7)  # a reduction of computed steps by about 2, 3, 4 and 5.5
HALF = 0.5**0.5  # the sigma for which Hermite has the true slope
BASES: dict[str, Forecaster] = {
    "reuse": Reuse(),
    "Taylor 1": Taylor(1),
    "Taylor 2": Taylor(2),
    "Taylor 3": Taylor(3),
    "Taylor 2, scaled .5": ScaledTaylor(2, 0.5),
    "Hermite 1, .5": Hermite(1, 0.5),
    "Hermite 2, .5 (HiCache)": Hermite(2, 0.5),
    "Hermite 2, .71": Hermite(2, HALF),
    "Newton 1": Newton(1),
    "Newton 2": Newton(2),
    "Adams-Bashforth 2": AdamsBashforth(2),
    "BDF2": BDF2(),
    "Chebyshev, last 3": Chebyshev(2, 0.1),
    "Chebyshev, all (Spectrum)": GlobalChebyshev(4, 0.1),
    "Chebyshev, all, ridge .001": GlobalChebyshev(4, 0.001),
    "DMD": DMD(3),
    "gate by residual, Taylor 2": ResidualGate(Taylor(2)),
}
Line = dict[str, Any]
log = logging.getLogger(__name__)


class Study:
    """The demo model in eager mode, its fully computed held-out images, and the judge of policies."""

    def __init__(self, command: str, steps: int = STEPS, classes: Sequence[int] = range(10), each: int = EACH) -> None:
        self.command = command
        self.subject = DemoSubject([str(one) for one in classes], steps, "eager")
        self.judge = Judge(self.subject, [digit_quality])
        numbers = list(range(len(classes))) * each
        self.runs = [
            (numbers[start : start + BATCH], HELD_OUT + place)
            for place, start in enumerate(range(0, len(numbers), BATCH))
        ]

    def measured(self, scope: str, samples: int = SAMPLES) -> Measured:
        """Measurements of fully computed runs at ``scope``, on noise that is not held out."""
        runs = self.subject.runs(FITTED, samples, together=True)
        return measure(self.subject.denoiser, runs, scope)

    def line(self, section: str, method: str, policy: Policy, **more: Any) -> Line:
        """The result of ``policy`` on the held-out images."""
        rows = [row for numbers, seed in self.runs for row in self.judge.lines(policy, numbers, seed)]
        found = summary(rows)
        error = found["relative_error"]
        log.info("%s, %s, %s: %s", section, policy.scope, method, error)
        return {
            "measured": "study",
            "section": section,
            "method": method,
            "scope": policy.scope,
            "steps": self.subject.steps,
            "computed": rows[0]["computed"],
            "decisions": rows[0]["decisions"],
            "flops_speedup": rows[0]["flops_speedup"],
            "relative_error": error.value,
            "interval": [error.low, error.high],
            "read": found["read"].value,
            "pictures": len(rows),
            **more,
            "command": self.command,
            **environment(),
        }


def methods(scope: str) -> list[Line]:
    """Every basis, fit and schedule at ``scope``, with the numbers of computed steps of ``INTERVALS``."""
    study = Study(f"hicache bench study-{scope}")
    measured = study.measured(scope)
    return [line for interval in INTERVALS for line in _at(study, measured, scope, interval)]


def _at(study: Study, measured: Measured, scope: str, interval: int) -> Iterator[Line]:
    schedule, about = Interval(interval), {"every": interval}
    for name, basis in BASES.items():
        yield study.line("methods", name, Policy(schedule, basis, scope), schedule="interval", **about)
    for method, fit in FITS.items():
        yield study.line("methods", method, fit(measured, schedule).policy, schedule="interval", **about)
    computed = HiCache(interval).decisions(STEPS).count("F")
    planned = mask_of(shortest_path(measured.distances, Reuse(), computed, "minimax"), STEPS)
    for name in ("Taylor 2", "Hermite 2, .5 (HiCache)", "Hermite 2, .71"):
        yield study.line("methods", name, Policy(planned, BASES[name], scope), schedule="planned", **about)
    for method in FITS:
        began = time.perf_counter()
        found = fit_forecasts(measured, method, computed, EVALUATIONS[scope])
        took = {"seconds": time.perf_counter() - began, "fitted_error": found.error}
        yield study.line("methods", method, found.policy, schedule="planned", **about, **took)
        if method == "calibrated" and measured.references[0].slots > 1:
            own = with_weights(measured, found.policy.schedule, by_slot=True)
            yield study.line("methods", "calibrated by slot", own.policy, schedule="planned", **about)


def cost() -> list[Line]:
    """Time and memory of calibration with the number of computed steps of N = 7.

    Memory is the peak above that of sampling as many images.
    """
    study, lines = Study("hicache bench study-cost"), []
    for scope, evaluations in EVALUATIONS.items():
        runs = study.subject.runs(FITTED, SAMPLES, together=True)
        study.subject.denoiser.policy = HiCache(7, scope=scope)
        runs[0]()
        rest_bytes()
        forget_peak()
        runs[0]()
        sampling = peak_bytes()
        rest_bytes()
        forget_peak()
        began = time.perf_counter()
        measured = measure(study.subject.denoiser, runs, scope)
        found = fit_forecasts(measured, "calibrated", 9, evaluations)
        took = time.perf_counter() - began
        lines.append(
            {
                "measured": "study",
                "section": "cost",
                "scope": scope,
                "computed": 9,
                "evaluations": evaluations,
                "seconds": took,
                "bytes": peak_bytes() - sampling,
                "fitted_error": found.error,
                "command": study.command,
                **environment(),
            }
        )
    return lines


def ablations() -> list[Line]:
    """Scope, sigma, order, and the number of images for calibration."""
    study, lines = Study("hicache bench study-ablations", each=EACH // 2), []
    for scope in ("module", "block", "stack", "output"):
        for name in ("reuse", "Taylor 2", "Hermite 2, .5 (HiCache)", "Hermite 2, .71"):
            lines.append(study.line("scope", name, Policy(Interval(7), BASES[name], scope)))
    for scope in ("stack", "module"):
        for sigma in (0.3, 0.4, 0.5, 0.6, 0.7, HALF, 0.8, 0.9, 1.0):
            policy = Policy(Interval(7), Hermite(2, sigma), scope)
            lines.append(study.line("sigma", f"{sigma:.3g}", policy, sigma=sigma))
    for interval in (4, 7):
        for order in range(5):
            bases: dict[str, Forecaster] = {
                "Taylor": Taylor(order),
                "Hermite .5": Hermite(order, 0.5),
                "Hermite .71": Hermite(order, HALF),
                "Newton": Newton(order),
            }
            for name, basis in bases.items():
                policy = Policy(Interval(interval), basis, "stack")
                lines.append(study.line("order", name, policy, order=order, every=interval))
    for samples in (1, 2, 3, 6):
        measured = study.measured("stack", samples)
        found = fit_forecasts(measured, "calibrated", 9, 12)
        lines.append(study.line("samples", "calibrated", found.policy, samples=10 * samples))
    for correction in (0.0, 0.5, 1.0):
        found = with_weights(measured, Interval(7), correction=correction)
        lines.append(study.line("correction", "calibrated", found.policy, correction=correction))
    return lines


def transfer() -> list[Line]:
    """Weights on runs of other lengths, and on classes other than those of the calibration."""
    lines = []
    command = "hicache bench study-transfer"
    home = Study(command, each=EACH // 2)
    for scope in ("stack", "module"):
        fitted = with_weights(home.measured(scope), Interval(7)).policy
        for steps in (28, 50, 100):
            there = home if steps == STEPS else Study(command, steps, each=EACH // 2)
            interval = max(2, round(7 * steps / STEPS))
            fixed = {name: BASES[name] for name in ("Hermite 2, .5 (HiCache)", "Hermite 2, .71", "Taylor 2")}
            for name, basis in fixed.items():
                lines.append(there.line("length", name, Policy(Interval(interval), basis, scope)))
            lines.append(there.line("length", "calibrated on 50 steps", replace(fitted, schedule=Interval(interval))))
            own = with_weights(there.measured(scope), Interval(interval)).policy
            lines.append(there.line("length", "calibrated on these", own))
    for name, classes in {"0 to 4": range(5), "5 to 9": range(5, 10)}.items():
        measured = Study(command, classes=classes).measured("stack", 2 * SAMPLES)
        found = fit_forecasts(measured, "calibrated", 9, 12)
        for judged, others in {"0 to 4": range(5), "5 to 9": range(5, 10)}.items():
            there = Study(command, classes=others)
            lines.append(there.line("classes", f"calibrated on {name}", found.policy, classes=judged))
    for judged, others in {"0 to 4": range(5), "5 to 9": range(5, 10)}.items():
        there = Study(command, classes=others)
        lines.append(there.line("classes", "HiCache", HiCache(7, scope="stack"), classes=judged))
    return lines
