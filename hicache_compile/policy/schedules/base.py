"""Schedules: which steps of a trajectory are computed in full."""

from __future__ import annotations

import math
from typing import Any, Protocol, runtime_checkable

from hicache_compile.errors import HiCacheError, real_number, true_or_false, whole_number
from hicache_compile.policy.plain_data import plain_data
from hicache_compile.policy.run import RunInfo


@runtime_checkable
class Schedule(Protocol):
    """A static schedule: decides by the step index alone."""

    @property
    def first_anchor(self) -> int:
        """The first step whose value may enter a difference; earlier ones are only reused."""
        ...

    def computes(self, step: int, num_steps: int | None) -> bool:
        """Whether ``step`` of a run of ``num_steps`` is computed in full; ``None``: unknown length."""
        ...


@plain_data
class Interval:
    """Compute the first ``warmup`` steps, then every ``interval``-th, and the last ``cooldown``.

    The rule of FORA, TaylorSeer and HiCache: full steps are ``0 .. warmup-1``, then ``warmup-1 + interval``, and so on;
    each is followed by ``interval - 1`` forecasts. As published, differences start at step ``warmup - 2``, so the first
    interval forecasts with order 1 (with ``warmup=1``: plain reuse).

    ``cooldown`` requires a known trajectory length.
    """

    interval: int
    warmup: int = 3
    cooldown: int = 0

    def __post_init__(self) -> None:
        whole_number("Interval", "interval", self.interval, 1)
        whole_number("Interval", "warmup", self.warmup, 1)
        whole_number("Interval", "cooldown", self.cooldown, 0)

    @property
    def first_anchor(self) -> int:
        return max(0, self.warmup - 2)

    def computes(self, step: int, num_steps: int | None) -> bool:
        forced = in_window("Interval", step, num_steps, self.warmup, self.cooldown)
        return forced or (step - self.warmup + 1) % self.interval == 0


@plain_data
class Growing:
    """Compute the first ``warmup`` steps, then with growing gaps, and the last ``cooldown``: Spectrum (2603.01623).

    Counted from step ``warmup - 1``, the steps ``floor(alpha r (r + 1) / 2)`` for ``r = 1, 2, ...`` are computed, so
    the gap grows by about ``alpha`` each time.
    """

    alpha: float = 0.75
    warmup: int = 5
    cooldown: int = 0

    def __post_init__(self) -> None:
        real_number("Growing", "alpha", self.alpha, 0.05, 1e3)
        whole_number("Growing", "warmup", self.warmup, 1)
        whole_number("Growing", "cooldown", self.cooldown, 0)

    @property
    def first_anchor(self) -> int:
        return 0

    def computes(self, step: int, num_steps: int | None) -> bool:
        if in_window("Growing", step, num_steps, self.warmup, self.cooldown):
            return True
        number, place = 0, 0
        while place < step - self.warmup + 1:
            number += 1
            place = math.floor(self.alpha * number * (number + 1) / 2)
        return place == step - self.warmup + 1


@plain_data
class StepMask:
    """Compute exactly the steps marked ``1``; the mask is as long as the trajectory.

    Args:
        mask: a string or a sequence of ``1`` (compute) and ``0`` (forecast), starting with ``1``.
    """

    mask: str

    def __post_init__(self) -> None:
        name, mask = type(self).__name__, as_mask(self.mask)
        if not isinstance(mask, str) or not mask or set(mask) - {"0", "1"}:
            raise HiCacheError(f"{name}.mask = {self.mask!r}: must be a string of 1 (compute) and 0 (forecast)")
        if mask[0] != "1":
            raise HiCacheError(f"{name}.mask = {mask!r}: must start with 1; before the first step there is no anchor")
        object.__setattr__(self, "mask", mask)

    @property
    def first_anchor(self) -> int:
        return 0

    def computes(self, step: int, num_steps: int | None) -> bool:
        if num_steps is not None and num_steps != len(self.mask):
            raise HiCacheError(
                f"{type(self).__name__}.mask is for {len(self.mask)} steps, the trajectory has {num_steps}: "
                "must be equal"
            )
        if step >= len(self.mask):
            raise HiCacheError(f"step {step}: {type(self).__name__}.mask covers only {len(self.mask)} steps")
        return self.mask[step] == "1"

    def bind(self, run: RunInfo) -> StepMask:
        """The mask of what is left from the start of ``run`` on; its first step is computed."""
        return StepMask("1" + self.mask[run.start + 1 :]) if run.start else self


def as_mask(given: Any) -> Any:
    """A sequence of 1 and 0, or of booleans, as the string that a mask is; anything else as it is."""
    if isinstance(given, list | tuple) and all(isinstance(one, int) and one in (0, 1) for one in given):
        return "".join("1" if one else "0" for one in given)
    return given


@plain_data
class Always:
    """Compute every step."""

    @property
    def first_anchor(self) -> int:
        return 0

    def computes(self, step: int, num_steps: int | None) -> bool:
        return True


@plain_data
class Free:
    """Compute only the first ``warmup`` and the last ``cooldown`` steps; the policy's guards decide the others.

    ``strict``: a run must be longer than ``warmup + cooldown``.
    """

    warmup: int = 1
    cooldown: int = 0
    strict: bool = False

    def __post_init__(self) -> None:
        true_or_false("Free", "strict", self.strict)
        whole_number("Free", "warmup", self.warmup, 1)
        whole_number("Free", "cooldown", self.cooldown, 0)

    @property
    def first_anchor(self) -> int:
        return 0

    def computes(self, step: int, num_steps: int | None) -> bool:
        return in_window("Free", step, num_steps, self.warmup, self.cooldown, self.strict)


def in_window(owner: str, step: int, num_steps: int | None, warmup: int, cooldown: int, strict: bool = False) -> bool:
    """Whether ``step`` is one of the first ``warmup`` or the last ``cooldown`` of ``num_steps``.

    Raises:
        HiCacheError: ``cooldown`` without a known run length; or ``strict`` and no step between the two.
    """
    if strict and num_steps is not None and warmup + cooldown >= num_steps:
        raise HiCacheError(
            f"{owner}.warmup + cooldown = {warmup + cooldown}: must be less than the {num_steps} steps of the run"
        )
    if cooldown and num_steps is None:
        raise HiCacheError(
            f"{owner}.cooldown = {cooldown}: must be 0 when the length of the trajectory is not "
            "known; say it with `with compiled.trajectory(num_steps):`"
        )
    return step < warmup or (num_steps is not None and step >= num_steps - cooldown)
