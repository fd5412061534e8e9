"""What a guard is: a measured value in the graph (its probe), and the rule that decides by it (its watcher).

The probe is what the passes see. It holds no thresholds, so guards that differ in numbers share their programs. The
watcher is plain Python: one for each run of each context, fed with one measured value a step.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar

from hicache_compile.errors import HiCacheError, whole_number
from hicache_compile.policy.schedules.base import in_window


class Signal(StrEnum):
    """Which value of the captured graph is measured."""

    MODULATED = "modulated"  # what the first matrix product of block 0 reads
    MODULATION = "modulation"  # what block 0 reads that follows from the time: the projected embedding
    TIME = "time"  # the embedding that is projected for the blocks
    RESIDUAL = "residual"  # what the first blocks add to the stream
    INPUT = "input"  # the noisy input itself
    SITES = "sites"  # what the cached blocks add to the stream, when they are computed


class Measure(StrEnum):
    """What is made of it. ``change(a, b)`` is ``mean|a - b| / mean|b|`` of a sample; the largest sample counts."""

    CHANGE = "change"  # change(now, before)
    RATE = "rate"  # rate * mean|x - x before| / mean|y computed last| (EasyCache)
    EXCESS = "excess"  # |change of the residual's end - change of its start|, and how far it has come (DiCache)
    END = "end"  # change of the residual's end, and how far it has come (DiCache)
    OBSERVE = "observe"  # all that guards are fitted by (ObserverGuard)
    VERIFY = "verify"  # change(computed, forecast) of the blocks after the cached ones (SpeCa)


@dataclass(frozen=True, slots=True)
class Probe:
    """What the graph measures for a guard.

    Args:
        measure, signal: see there.
        blocks: how many blocks the signal needs, which then always run.
        downsample: every so many-th channel is read.
        every_step: ``now`` is compared with the step before; else with the last computed step.
    """

    measure: Measure
    signal: Signal
    blocks: int = 0
    downsample: int = 1
    every_step: bool = True

    @property
    def before(self) -> bool:
        """Whether it is measured before a step's decision, which then needs it."""
        return self.signal is not Signal.SITES and self.measure not in (Measure.VERIFY, Measure.OBSERVE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Guard(ABC):
    """A decision by measurement. Every guard has a forced window and a cap.

    Args:
        warmup: steps at the start that are computed whatever is measured, at least 1.
        cooldown: steps at the end that are; to know the end, the trajectory must have a length.
        max_skips: steps in a row that may be skipped at most, by all guards together; ``None``: any number.
    """

    warmup: int = 1
    cooldown: int = 0
    max_skips: int | None = None

    depth: ClassVar[int] = 1  # anchors the guard itself reads

    @property
    @abstractmethod
    def probe(self) -> Probe:
        """What the graph measures."""

    @abstractmethod
    def watch(self, num_steps: int | None) -> Watcher:
        """The rule at the start of a run of ``num_steps`` (``None``: unknown)."""

    def numbers(self, num_steps: int | None) -> list[float]:
        """Which rule it is and with what thresholds, for programs that decide by themselves: see ``passes.rules``."""
        raise HiCacheError(f"{type(self).__name__}: must be one of this library's guards where the program decides")

    def check(self) -> None:
        """Raise unless the common fields are what they may be."""
        owner = type(self).__name__
        whole_number(owner, "warmup", self.warmup, 0)
        whole_number(owner, "cooldown", self.cooldown, 0)
        if self.max_skips is not None:
            whole_number(owner, "max_skips", self.max_skips, 0)

    def forces(self, step: int, num_steps: int | None) -> bool:
        """Whether ``step`` is in the forced window.

        Raises:
            HiCacheError: there is a cooldown and the end is not known.
        """
        return in_window(type(self).__name__, step, num_steps, self.warmup, self.cooldown)


class Watcher(ABC):
    """The rule of one guard in one run of one context. ``state`` is all it remembers, as plain numbers."""

    def __init__(self) -> None:
        self.state: dict[str, float] = {}

    @abstractmethod
    def skips(self, step: int, measured: Sequence[float]) -> bool:
        """Whether ``step`` may be skipped, given what was measured before it; only asked outside the window."""

    def after_full(self, step: int, measured: Sequence[float]) -> None:  # noqa: B027  # a hook that few need
        """``step`` was computed; ``measured`` where the probe measures computed steps, else empty."""

    def after_forecast(self, step: int, measured: Sequence[float]) -> None:  # noqa: B027  # the same
        """``step`` was forecast; ``measured`` where the probe measures forecasts, else empty."""

    def weights(self) -> list[float] | None:
        """Weights for the forecast that was just allowed, newest first, where the guard has a say; else ``None``."""
        return None


def nonnegative(owner: str, field: str, value: object) -> None:
    """Raise unless ``value`` is a number >= 0."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
        raise HiCacheError(f"{owner}.{field} = {value!r}: must be a number >= 0")
