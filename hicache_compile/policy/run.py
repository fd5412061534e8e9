"""What is known of a run when it starts, to which schedules and forecasters bind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from hicache_compile.errors import HiCacheError, numbers

DEFAULT_CONTEXT = "default"  # of calls whose guidance branch nobody names


@dataclass(frozen=True, slots=True)
class RunInfo:
    """A run that starts now.

    Args:
        num_steps: its length; ``None``: unknown.
        start: the step of the sampling at which this denoiser takes over from another.
        times: the timesteps, in 0..1000; asked only by what needs them, for they may have to be read from a device.
            It returns ``None`` where nobody knows them. ``None``: no run begins, as where one is only explained.
    """

    num_steps: int | None = None
    start: int = 0
    times: Callable[[], Sequence[float] | None] | None = None

    def known_times(self) -> Sequence[float] | None:
        """The timesteps, or ``None``."""
        return None if self.times is None else self.times()


def bound(part: Any, run: RunInfo) -> Any:
    """A schedule or forecaster for ``run``: what its method ``bind(run)`` returns, or itself where it has none."""
    bind = getattr(part, "bind", None)
    return part if bind is None else bind(run)


def checked_times(timesteps: Sequence[float], num_steps: int) -> tuple[float, ...]:
    """``timesteps`` as numbers.

    Raises:
        HiCacheError: they are none, or not ``num_steps``.
    """
    times = numbers("trajectory", "timesteps", timesteps)
    if len(times) != num_steps:
        raise HiCacheError(f"trajectory.timesteps: {len(times)} of them, must be {num_steps}")
    if num_steps > 1 and 0 < max(times) <= 1:
        raise HiCacheError(
            "trajectory.timesteps: all are in 0..1, must be in 0..1000, as schedulers have them: 1000 * t"
        )
    return times
