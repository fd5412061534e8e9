"""What is known of a run when it starts, to which schedules and forecasters bind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class RunInfo:
    """A run that starts now.

    Args:
        num_steps: its length; ``None``: unknown.
        start: the step of the sampling at which this denoiser takes over from another.
        times: the timesteps, in 0..1000; asked only by what needs them, for they may have to be read from a device.
    """

    num_steps: int | None = None
    start: int = 0
    times: Callable[[], Sequence[float] | None] = lambda: None


def bound(part: Any, run: RunInfo) -> Any:
    """A schedule or forecaster for ``run``: what its method ``bind(run)`` returns, or itself where it has none."""
    bind = getattr(part, "bind", None)
    return part if bind is None else bind(run)
