"""One schedule per kind of site: Pyramid Attention Broadcast (2408.12588) and its MLP broadcast."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from hicache_compile.errors import HiCacheError, numbers, one_of, true_or_false, whole_number
from hicache_compile.policy.compatibility import Trait
from hicache_compile.policy.plain_data import plain_data
from hicache_compile.policy.run import RunInfo, bound
from hicache_compile.policy.schedules.base import Schedule, in_window

KINDS = (
    "self-attention",
    "joint-attention",
    "temporal-attention",
    "cross-attention",
    "parallel",
    "mlp",
    "moe",
    "blocks",
    "other",
)


@plain_data
class Broadcast:
    """Compute every ``every``-th step, the first ``warmup``, the last ``cooldown`` and all steps outside ``window``.

    Args:
        every: 1 computes every step.
        window: timesteps in 0..1000; steps strictly between them may be skipped. ``None``: all steps.
        times: the timestep of each step, if known (a pipeline's scheduler provides it); by default evenly spaced from
            1000 down.
        strict: a run must be longer than ``warmup + cooldown``.
    """

    every: int
    warmup: int = 0
    cooldown: int = 0
    window: tuple[float, float] | None = None
    times: tuple[float, ...] | None = None
    strict: bool = False

    def __post_init__(self) -> None:
        true_or_false("Broadcast", "strict", self.strict)
        whole_number("Broadcast", "every", self.every, 1)
        whole_number("Broadcast", "warmup", self.warmup, 0)
        whole_number("Broadcast", "cooldown", self.cooldown, 0)
        _check_window("Broadcast", self.window)
        object.__setattr__(self, "window", None if self.window is None else tuple(self.window))
        _keep_times(self)

    @property
    def first_anchor(self) -> int:
        return 0

    def computes(self, step: int, num_steps: int | None) -> bool:
        if in_window("Broadcast", step, num_steps, self.warmup, self.cooldown, self.strict):
            return True
        if self.window is not None:
            low, high = self.window
            if not low < timestep("Broadcast.window", step, num_steps, self.times) < high:
                return True
        return (step - self.warmup) % self.every == 0

    def bind(self, run: RunInfo) -> Broadcast:
        """The schedule for ``run``, with its timesteps."""
        times = None if self.window is None else run.known_times()
        return self if times is None else replace(self, times=tuple(times))


@plain_data
class KeySteps:
    """Skip the ``skips - 1`` steps after each key timestep, in the first ``blocks`` blocks; compute all others.

    Args:
        keys: timesteps in 0..1000.
        blocks: the number of blocks at the start that skip; the others are computed in every step. ``None``: all skip.
        skips: the number of steps served by one computation.
        times: see ``Broadcast``.
    """

    keys: tuple[float, ...]
    blocks: int | None = 5
    skips: int = 2
    times: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "keys", numbers("KeySteps", "keys", self.keys))
        if self.blocks is not None:
            whole_number("KeySteps", "blocks", self.blocks, 1)
        whole_number("KeySteps", "skips", self.skips, 1)
        _keep_times(self)

    @property
    def first_anchor(self) -> int:
        return 0

    def computes(self, step: int, num_steps: int | None) -> bool:
        earlier = range(max(0, step - self.skips + 1), step)
        return step == 0 or not any(self._is_key(at, num_steps) for at in earlier)

    def _is_key(self, step: int, num_steps: int | None) -> bool:
        """Whether ``step`` is the first step at or below a key timestep."""
        time = timestep("KeySteps.keys", step, num_steps, self.times)
        before = timestep("KeySteps.keys", step - 1, num_steps, self.times) if step else float("inf")
        return any(time <= key < before for key in self.keys)

    def bind(self, run: RunInfo) -> KeySteps:
        """The schedule for ``run``, with its timesteps."""
        times = run.known_times()
        return self if times is None else replace(self, times=tuple(times))


@dataclass(frozen=True)
class PerKind:
    """One schedule per kind of site; kinds without one are computed in every step.

    Args:
        schedules: kind of site (see ``KINDS``) -> ``Broadcast``, ``KeySteps``, ``Interval``, ...
    """

    schedules: Mapping[str, Any]

    traits: ClassVar[frozenset[Trait]] = frozenset({Trait.SITES_APART, Trait.KINDS_APART})

    def __post_init__(self) -> None:
        if not isinstance(self.schedules, Mapping) or not self.schedules:
            raise HiCacheError(f"PerKind.schedules = {self.schedules!r}: must map kinds to schedules")
        for kind, schedule in self.schedules.items():
            one_of("PerKind", "schedules", kind, KINDS)
            if isinstance(schedule, type | PerKind) or not isinstance(schedule, Schedule):
                raise HiCacheError(f"PerKind.schedules[{kind!r}] = {schedule!r}: must be a schedule")
        # In one order: equal policies have one layout, and so the same programs.
        object.__setattr__(self, "schedules", {kind: self.schedules[kind] for kind in KINDS if kind in self.schedules})

    def __hash__(self) -> int:
        return hash(tuple(self.schedules.items()))

    @property
    def first_anchor(self) -> int:
        return min(schedule.first_anchor for schedule in self.schedules.values())

    @property
    def groups(self) -> tuple[tuple[str, int | None], ...]:
        """The part of the schedule that determines the compiled graph: the kinds, with the number of blocks that
        skip."""
        return tuple((kind, getattr(schedule, "blocks", None)) for kind, schedule in self.schedules.items())

    def computes(self, step: int, num_steps: int | None) -> bool:
        """Whether all kinds are computed."""
        return all(schedule.computes(step, num_steps) for schedule in self.schedules.values())

    def bind(self, run: RunInfo) -> PerKind:
        """The schedules for ``run``."""
        return PerKind({kind: bound(schedule, run) for kind, schedule in self.schedules.items()})


def timestep(owner: str, step: int, num_steps: int | None, times: Sequence[float] | None) -> float:
    """The timestep of ``step``: from ``times``, or evenly spaced from 1000 at the start of a run to 0 at its end.

    Raises:
        HiCacheError: neither the timesteps nor their number is known, or ``times`` is too short.
    """
    if times is not None:
        if step >= len(times):
            raise HiCacheError(f"{owner}: step {step}: only {len(times)} timesteps are known")
        return times[step]
    if num_steps is None:
        raise HiCacheError(
            f"{owner}: needs a trajectory of known length; give it by `with compiled.trajectory(num_steps):`"
        )
    return 1000.0 * (1.0 - step / num_steps)


def _keep_times(schedule: Broadcast | KeySteps) -> None:
    if schedule.times is not None:
        object.__setattr__(schedule, "times", numbers(type(schedule).__name__, "times", schedule.times))


def _check_window(owner: str, window: Any) -> None:
    if window is None:
        return
    ends = tuple(window) if isinstance(window, list | tuple) else ()
    if len(ends) != 2 or not all(isinstance(end, int | float) for end in ends) or not ends[0] <= ends[1]:
        raise HiCacheError(f"{owner}.window = {window!r}: must be two timesteps, the lower first, or None")
