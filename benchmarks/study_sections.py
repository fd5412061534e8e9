"""The sections of the study: methods at equal numbers of computed steps, cost, ablations, transfer."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

from hicache_compile import Forecaster, Hermite, HiCache, Interval, Newton, Policy, Reuse, Taylor
from hicache_compile.benchmarks.measurement import Line, Part
from hicache_compile.benchmarks.memory import forget_peak, peak_bytes, rest_bytes
from hicache_compile.benchmarks.record import environment
from hicache_compile.benchmarks.study import BASES, EACH, EVALUATIONS, FITTED, HALF, INTERVALS, SAMPLES, STEPS, Study
from hicache_compile.tune import FITS, Measured, fit_forecasts, measure, with_weights
from hicache_compile.tune.calibrate import Calibration
from hicache_compile.tune.planning import mask_of, shortest_path


def methods(scope: str) -> Iterator[Part]:
    """Every basis, fit and schedule at ``scope``, with the numbers of computed steps of ``INTERVALS``."""
    study = Study(f"hicache bench study-{scope}")
    measured = study.measured(scope)
    for interval in INTERVALS:
        yield from _at(study, measured, scope, interval)


def _at(study: Study, measured: Measured, scope: str, interval: int) -> Iterator[Part]:
    schedule, about = Interval(interval), {"every": interval}
    for name, basis in BASES.items():
        yield study.part("methods", name, Policy(schedule, basis, scope), schedule="interval", **about)
    for method in FITS:
        yield study.part(
            "methods", method, functools.partial(_fitted, measured, method, schedule), schedule="interval", **about
        )
    computed = HiCache(interval).decisions(STEPS).count("F")
    planned = mask_of(shortest_path(measured.distances, Reuse(), computed, "minimax"), STEPS)
    for name in ("Taylor 2", "Hermite 2, .5 (HiCache)", "Hermite 2, .71"):
        yield study.part("methods", name, Policy(planned, BASES[name], scope), schedule="planned", **about)

    @functools.cache
    def found(method: str) -> tuple[Calibration, float]:
        began = time.perf_counter()
        fitted = fit_forecasts(measured, method, computed, EVALUATIONS[scope])
        return fitted, time.perf_counter() - began

    def planned_by(method: str) -> Line:
        fitted, took = found(method)
        more = {"schedule": "planned", **about, "seconds": took, "fitted_error": fitted.error}
        return study.line("methods", method, fitted.policy, **more)

    def by_slot() -> Policy:
        return with_weights(measured, found("calibrated")[0].policy.schedule, by_slot=True).policy

    for method in FITS:
        yield functools.partial(planned_by, method)
        if method == "calibrated" and measured.references[0].slots > 1:
            yield study.part("methods", "calibrated by slot", by_slot, schedule="planned", **about)


def _fitted(measured: Measured, method: str, schedule: Interval) -> Policy:
    return FITS[method](measured, schedule).policy


def cost() -> Iterator[Part]:
    """Time and memory of calibration with the number of computed steps of N = 7.

    Memory is the peak above that of sampling as many images.
    """
    study = Study("hicache bench study-cost")
    for scope, evaluations in EVALUATIONS.items():
        yield functools.partial(_cost, study, scope, evaluations)


def _cost(study: Study, scope: str, evaluations: int) -> Line:
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
    return {
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


def ablations() -> Iterator[Part]:
    """Scope, sigma, order, and the number of images for calibration."""
    study = Study("hicache bench study-ablations", each=EACH // 2)
    for scope in ("module", "block", "stack", "output"):
        for name in ("reuse", "Taylor 2", "Hermite 2, .5 (HiCache)", "Hermite 2, .71"):
            yield study.part("scope", name, Policy(Interval(7), BASES[name], scope))
    for scope in ("stack", "module"):
        for sigma in (0.3, 0.4, 0.5, 0.6, 0.7, HALF, 0.8, 0.9, 1.0):
            policy = Policy(Interval(7), Hermite(2, sigma), scope)
            yield study.part("sigma", f"{sigma:.3g}", policy, sigma=sigma)
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
                yield study.part("order", name, policy, order=order, every=interval)
    measured = functools.cache(functools.partial(study.measured, "stack"))

    def from_samples(samples: int) -> Policy:
        return fit_forecasts(measured(samples), "calibrated", 9, 12).policy

    def corrected(correction: float) -> Policy:
        return with_weights(measured(6), Interval(7), correction=correction).policy

    for samples in (1, 2, 3, 6):
        fit = functools.partial(from_samples, samples)
        yield study.part("samples", "calibrated", fit, samples=10 * samples)
    for correction in (0.0, 0.5, 1.0):
        fit = functools.partial(corrected, correction)
        yield study.part("correction", "calibrated", fit, correction=correction)


def transfer() -> Iterator[Part]:
    """Weights on runs of other lengths, and on classes other than those of the calibration."""
    command = "hicache bench study-transfer"
    home = Study(command, each=EACH // 2)
    for scope in ("stack", "module"):
        fitted = with_weights(home.measured(scope), Interval(7)).policy
        for steps in (28, 50, 100):
            there = home if steps == STEPS else Study(command, steps, each=EACH // 2)
            interval = max(2, round(7 * steps / STEPS))
            fixed = {name: BASES[name] for name in ("Hermite 2, .5 (HiCache)", "Hermite 2, .71", "Taylor 2")}
            for name, basis in fixed.items():
                yield there.part("length", name, Policy(Interval(interval), basis, scope))
            yield there.part("length", "calibrated on 50 steps", replace(fitted, schedule=Interval(interval)))
            yield there.part("length", "calibrated on these", functools.partial(_own, there, scope, interval))
    halves = {"0 to 4": range(5), "5 to 9": range(5, 10)}
    studies = {judged: Study(command, classes=classes) for judged, classes in halves.items()}
    for name, classes in halves.items():
        fit = functools.cache(functools.partial(_fitted_on, command, classes))
        for judged, there in studies.items():
            yield there.part("classes", f"calibrated on {name}", fit, classes=judged)
    for judged, there in studies.items():
        yield there.part("classes", "HiCache", HiCache(7, scope="stack"), classes=judged)


def _own(there: Study, scope: str, interval: int) -> Policy:
    return with_weights(there.measured(scope), Interval(interval)).policy


def _fitted_on(command: str, classes: Sequence[int]) -> Policy:
    measured = Study(command, classes=classes).measured("stack", 2 * SAMPLES)
    return fit_forecasts(measured, "calibrated", 9, 12).policy
