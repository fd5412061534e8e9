"""Forecasters, scopes and schedules on the trained demo model, at equal numbers of computed steps; ablations; transfer.

Fits use separate noise. All policies are evaluated on the same held-out noise, with the same number of images per
class. Lines contain the relative error over all images (2-norm) with its 95 % interval.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from hicache_compile import (
    BDF2,
    DMD,
    AdamsBashforth,
    Chebyshev,
    Forecaster,
    GlobalChebyshev,
    Hermite,
    Newton,
    Policy,
    ResidualGate,
    Reuse,
    ScaledTaylor,
    Taylor,
)
from hicache_compile.benchmarks.measurement import Line, Part
from hicache_compile.benchmarks.record import environment
from hicache_compile.evaluation import Judge, summary
from hicache_compile.evaluation.quality import digit_quality
from hicache_compile.evaluation.subjects import DemoSubject
from hicache_compile.tune import Measured, measure

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

    def part(self, section: str, method: str, policy: Policy | Callable[[], Policy], **more: Any) -> Part:
        """What measures ``line`` when it is called; ``policy`` may be a function that fits one first."""
        return lambda: self.line(section, method, policy if isinstance(policy, Policy) else policy(), **more)

    def line(self, section: str, method: str, policy: Policy, **more: Any) -> Line:
        """The result of ``policy`` on the held-out images."""
        rows = [row for numbers, seed in self.runs for row in self.judge.lines(policy, numbers, seed)]
        found = summary(rows)
        error = found["relative_error"]
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
