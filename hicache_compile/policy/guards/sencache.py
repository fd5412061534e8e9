"""SenCache (2602.24208): what moved since the last computed step, by how sensitive the denoiser is to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from hicache_compile.errors import HiCacheError, numbers
from hicache_compile.policy.guards.arithmetic import Arithmetic, HostArithmetic, Number, Numbers, Truth
from hicache_compile.policy.guards.base import Guard, Measure, Probe, Signal, nonnegative
from hicache_compile.policy.plain_data import plain_data
from hicache_compile.policy.schedules.base import in_window

POINTS = 16  # of a sensitivity over the run


@plain_data
class SenCacheGuard(Guard):
    """Skip while ``input_sensitivity * change(x) + time_sensitivity * passed`` is below ``threshold``.

    ``x`` is the denoiser's noisy input and ``change(x) = mean|x - x0| / mean|x0|``, ``x0`` being that of the last
    computed step. ``passed`` is how much of the run passed since, in steps over all steps: the time that the denoiser
    is given follows from it. All norms are relative and of order 1, so the sum estimates ``mean|y - y0| / mean|y0|`` of
    the output ``y``, and ``threshold`` is the largest relative change of it.

    Args:
        threshold: 0 computes every step.
        input_sensitivity: the relative change of the output over that of the input, at the same time.
        time_sensitivity: the relative change of the output over the share of the run that passes, at the same input.

    Each sensitivity is a number, or a tuple over the run from the first step to the last (values between are
    interpolated, at 16 points); it is read at the last computed step. ``hicache tune --fit sencache`` and
    ``hicache_compile.tune.sensitivities`` measure them. By default the output changes as the input does, and the time
    alone changes nothing.
    """

    threshold: float = 0.1
    input_sensitivity: float | tuple[float, ...] = 1.0
    time_sensitivity: float | tuple[float, ...] = 0.0

    remembers: ClassVar[Mapping[str, float]] = {"last": 0.0, "of_input": 0.0, "of_time": 0.0, "moved": 0.0}
    numbers_are_data: ClassVar[bool] = True

    def __post_init__(self) -> None:
        self.check()
        nonnegative("SenCacheGuard", "threshold", self.threshold)
        for field in ("input_sensitivity", "time_sensitivity"):
            value = getattr(self, field)
            if isinstance(value, list | tuple):
                object.__setattr__(self, field, numbers("SenCacheGuard", field, value, 0.0))
            else:
                nonnegative("SenCacheGuard", field, value)

    @property
    def probe(self) -> Probe:
        return Probe(Measure.CHANGE, Signal.INPUT, every_step=False)

    def forces(self, step: int, num_steps: int | None) -> bool:
        if num_steps is None:
            raise HiCacheError(
                "SenCacheGuard.num_steps = None: must be known, what passed is a share of the run; say it with "
                "`with compiled.trajectory(num_steps):`"
            )
        return in_window("SenCacheGuard", step, num_steps, self.warmup, self.cooldown)

    def parameters(self, num_steps: int | None) -> Mapping[str, float | Sequence[float]]:
        steps = num_steps or 1
        return {
            "threshold": self.threshold,
            "of_input": _over_run(self.input_sensitivity),
            "of_time": _over_run(self.time_sensitivity),
            "share": 1.0 / steps,
            "points": (POINTS - 1) / max(steps - 1, 1),
        }

    def ask(self, m: Arithmetic, p: Numbers, s: Numbers, step: Number, seen: Sequence[Number]) -> tuple[Truth, Numbers]:
        moved = s.of_input * seen[0] + s.of_time * (step - s.last) * p.share
        return (p.threshold > 0) & (moved < p.threshold), s.replace(moved=moved)

    def compared(self, s: Numbers, seen: Sequence[Number]) -> Number:
        return s.moved

    def after_full(self, m: Arithmetic, p: Numbers, s: Numbers, step: Number, seen: Sequence[Number]) -> Numbers:
        near = [_nearness(m, step * p.points - point) for point in range(POINTS)]
        of_input = sum(share * value for share, value in zip(near, p.of_input, strict=True))
        of_time = sum(share * value for share, value in zip(near, p.of_time, strict=True))
        return s.replace(last=1.0 * step, of_input=of_input, of_time=of_time)

    def estimate(self, anchor: int, change: float, num_steps: int) -> float:
        """The relative change of the output in the step after the computed step ``anchor``, the input having changed by
        ``change``."""
        m, p = HostArithmetic(), Numbers(self.parameters(num_steps))
        s = self.after_full(m, p, Numbers(self.remembers), anchor, ())
        return float(s.of_input * change + s.of_time * p.share)


def _nearness(m: Arithmetic, distance: Number) -> Number:
    """The share that a point at ``distance`` has in a value between two points."""
    return m.maximum(1.0 - m.maximum(distance, -distance), 0.0)


def _over_run(value: float | tuple[float, ...]) -> tuple[float, ...]:
    """``value`` at ``POINTS`` equally spaced points of a run, linear between its own."""
    given = value if isinstance(value, tuple) else (value,)
    own = given if len(given) > 1 else given * 2
    found = []
    for point in range(POINTS):
        place = point * (len(own) - 1) / (POINTS - 1)
        below = min(int(place), len(own) - 2)
        found.append(own[below] + (own[below + 1] - own[below]) * (place - below))
    return tuple(found)
