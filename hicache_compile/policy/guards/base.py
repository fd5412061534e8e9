"""What a guard is: a value measured in the graph (its probe), and the rule that decides by it.

The probe is what the passes see. It holds no thresholds, so guards that differ in numbers share their programs. The
rule is written once, in an arithmetic that is floats on the host and tensors in a graph.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import ClassVar

from hicache_compile.errors import HiCacheError, whole_number
from hicache_compile.policy.guards.arithmetic import Arithmetic, HostArithmetic, Number, Numbers, Truth
from hicache_compile.policy.schedules.base import in_window
from hicache_compile.policy.str_enum import StrEnum


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
class SpectralFilter:
    """The Wiener filter of a signal at its noise level (SeaCache).

    Args:
        exponent: of the spectrum ``1 / |f|^exponent``; ``None``: the axes of the grid.
        grid: sizes that tokens are laid out in; ``None``: the signal's own dimensions after batch and channels.
        rising: the time input is 1 - sigma.
    """

    exponent: float | None
    grid: tuple[int, ...] | None
    rising: bool = False


@dataclass(frozen=True, slots=True)
class Probe:
    """What the graph measures for a guard.

    Args:
        measure, signal: see there.
        blocks: how many blocks the signal needs, which then always run.
        downsample: every so many-th channel is read.
        every_step: ``now`` is compared with the step before; else with the last computed step.
        filter: of the signal, before it is compared.
    """

    measure: Measure
    signal: Signal
    blocks: int = 0
    downsample: int = 1
    every_step: bool = True
    filter: SpectralFilter | None = None

    @property
    def before(self) -> bool:
        """Whether it is measured before a step's decision, which then needs it."""
        return self.signal is not Signal.SITES and self.measure not in (Measure.VERIFY, Measure.OBSERVE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Guard(ABC):
    """A decision by measurement. Every guard has a forced window and a cap.

    A guard of your own defines ``probe`` and ``ask``, and what it needs of the other methods. They are given

    - ``m``: the arithmetic; use it in place of ``if``, ``max`` and ``math`` (see ``Arithmetic``)
    - ``p``: ``parameters`` by name; read thresholds from here and not from ``self``, so that a change of them is data
    - ``s``: what the rule ``remembers`` by name; return ``s.replace(name=...)`` to change it
    - ``step``: the step index
    - ``seen``: what the probe measured, not a number (nan) where it measured nothing in this step

    Args:
        warmup: steps at the start that are computed whatever is measured, at least 1.
        cooldown: steps at the end that are; the trajectory must then have a length.
        max_skips: steps in a row that all guards together may skip at most; ``None``: any number.
    """

    warmup: int = 1
    cooldown: int = 0
    max_skips: int | None = None

    depth: ClassVar[int] = 1  # anchors the guard itself reads
    remembers: ClassVar[Mapping[str, float]] = {}  # numbers that last from step to step, and their first values
    numbers_are_data: ClassVar[bool] = False  # the rule reads all numbers from ``p``: then its programs are shared

    @property
    @abstractmethod
    def probe(self) -> Probe:
        """What the graph measures."""

    @abstractmethod
    def ask(self, m: Arithmetic, p: Numbers, s: Numbers, step: Number, seen: Sequence[Number]) -> tuple[Truth, Numbers]:
        """Whether ``step`` may be skipped, and what is remembered; only asked outside the forced window."""

    def after_full(self, m: Arithmetic, p: Numbers, s: Numbers, step: Number, seen: Sequence[Number]) -> Numbers:
        """What is remembered after a computed step."""
        return s

    def after_forecast(self, m: Arithmetic, p: Numbers, s: Numbers, step: Number, seen: Sequence[Number]) -> Numbers:
        """What is remembered after a step that was forecast."""
        return s

    def weights(self, m: Arithmetic, p: Numbers, s: Numbers) -> tuple[Truth, Sequence[Number]] | None:
        """Whether the guard has weights for the forecast that it just allowed, and these, newest first."""
        return None

    def polishes(self, m: Arithmetic, p: Numbers, s: Numbers) -> Truth:
        """Whether ``Policy.tokens`` may be computed in the forecast that the guard just allowed. Asked on the host."""
        return True

    def compared(self, s: Numbers, seen: Sequence[Number]) -> Number:
        """What ``ask``, which returned ``s``, held against the threshold: ``s.accumulated`` where the rule adds up."""
        return s.as_dict().get("accumulated", seen[0])

    def parameters(self, num_steps: int | None) -> Mapping[str, float | Sequence[float]]:
        """The numbers of the rule in a run of ``num_steps``: by default every field that is a number or a tuple of
        numbers. A tuple has the same length in all guards that are to share a program."""
        common = {field.name for field in fields(Guard)}
        given = {field.name: getattr(self, field.name) for field in fields(self) if field.name not in common}
        return {name: value for name, value in given.items() if _is_number(value) or _are_numbers(value)}

    def watch(self, num_steps: int | None) -> HostRule:
        """The rule on the host, at the start of a run of ``num_steps`` (``None``: unknown)."""
        return HostRule(self, num_steps)

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


class HostRule:
    """The rule of one guard in one run of one context, on Python floats."""

    _arithmetic = HostArithmetic()

    def __init__(self, guard: Guard, num_steps: int | None) -> None:
        self.guard = guard
        self._parameters = Numbers(guard.parameters(num_steps))
        self._state = Numbers(guard.remembers)
        self.smallest = math.inf  # of what was held against a threshold

    @property
    def state(self) -> dict[str, float]:
        """What it remembers, by name."""
        return self._state.as_dict()

    def load(self, state: Mapping[str, float]) -> None:
        """Remember ``state``."""
        self._state = Numbers({**self.guard.remembers, **state})

    def skips(self, step: int, measured: Sequence[float] = ()) -> bool:
        """Whether ``step`` may be skipped; ``measured``: by the guard's probe."""
        skips, self._state = self.guard.ask(self._arithmetic, self._parameters, self._state, step, _seen(measured))
        compared = float(self.guard.compared(self._state, _seen(measured)))
        self.smallest = min(self.smallest, compared if measured and math.isfinite(compared) else math.inf)
        return bool(skips)

    def after_full(self, step: int, measured: Sequence[float] = ()) -> None:
        """``step`` was computed."""
        given = self._arithmetic, self._parameters, self._state, step, _seen(measured)
        self._state = self.guard.after_full(*given)

    def after_forecast(self, step: int, measured: Sequence[float] = ()) -> None:
        """``step`` was forecast."""
        given = self._arithmetic, self._parameters, self._state, step, _seen(measured)
        self._state = self.guard.after_forecast(*given)

    def polishes(self) -> bool:
        """Whether tokens may be computed in the forecast that the guard just allowed."""
        return bool(self.guard.polishes(self._arithmetic, self._parameters, self._state))

    def weights(self) -> list[float] | None:
        """The guard's own weights for the forecast it just allowed, newest first, where it has any."""
        found = self.guard.weights(self._arithmetic, self._parameters, self._state)
        return list(found[1]) if found is not None and found[0] else None


def _seen(measured: Sequence[float]) -> Sequence[float]:
    return measured or (math.nan,)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float)


def _are_numbers(value: object) -> bool:
    return isinstance(value, tuple) and bool(value) and all(map(_is_number, value))


def nonnegative(owner: str, field: str, value: object) -> None:
    """Raise unless ``value`` is a number >= 0."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
        raise HiCacheError(f"{owner}.{field} = {value!r}: must be a number >= 0")
