"""A policy answers three independent questions: when to compute, what to do instead, and where."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from hicache_compile.errors import HiCacheError, one_of, whole_number
from hicache_compile.key_partitions import Split
from hicache_compile.policy import forecasters
from hicache_compile.policy.environment import fields_from_env
from hicache_compile.policy.forecasters import Forecaster, MeasuredForecaster, Reuse, Smoothing
from hicache_compile.policy.guards import Guard, Measure, Probe, Signal
from hicache_compile.policy.schedules.base import Always, Schedule, StepMask
from hicache_compile.policy.schedules.ditango import DiTangoSchedule
from hicache_compile.policy.schedules.per_kind import PerKind

SCOPES = ("module", "block", "stack", "output")
NOWHERE = "none"  # the scope of a policy that computes every step and keeps nothing


@dataclass(frozen=True, slots=True)
class Cut:
    """What of a policy decides the graph: policies with an equal cut share their programs.

    ``probes`` are what its guards measure, ``groups`` the kinds of sites that are decided apart (``PerKind``),
    ``split`` how the keys of attentions are (``DiTangoSchedule``). ``by_slot``: each slot has weights of its own.
    """

    scope: str
    first: int = 0
    last: int = 0
    probes: tuple[Probe, ...] = ()
    groups: tuple[tuple[str, int | None], ...] = ()
    split: Split | None = None
    by_slot: bool = False

    @property
    def starts(self) -> tuple[int, ...]:
        """The block from which on each guard skips."""
        blocks = [probe.blocks if probe.before and probe.signal is Signal.RESIDUAL else 0 for probe in self.probes]
        return tuple(max(self.first, count) for count in blocks) or (self.first,)


@dataclass(frozen=True, slots=True)
class Policy:
    """When (``schedule``), what instead (``forecaster``, ``smoothing``), and where (``scope``).

    Args:
        schedule: which steps are computed: ``Interval``, ``StepMask``, ``MagCacheSchedule``, ``PerKind``,
            ``DiTangoSchedule``, or ``Free``
            to leave that to the guards.
        forecaster: any object with ``weights(anchors, target)``, ours or your own.
        scope: where the sites are cut. ``"module"``: each attention and MLP output before its gate.
            ``"block"``: each block's residual. ``"stack"``: the residual over the whole run of blocks.
            ``"output"``: the hidden state before the final layer. ``"none"``, where the schedule is ``Always``.
        guards: measured decisions for the steps the schedule does not compute, the cheapest first. Each may end the
            step in a forecast; the step is computed in full where none does.
        groups: ``None``; kinds of sites are decided apart by the schedule ``PerKind``.
        first: blocks at the start that always run (scopes ``block`` and ``stack``).
        last: blocks at the end that always run (scopes ``block`` and ``stack``).
        smoothing: smooth the anchors before forecasting.

    Raises:
        HiCacheError: a field has a wrong type or is out of range; the message says which and what is allowed.
    """

    schedule: Schedule
    forecaster: Forecaster
    scope: str = "module"
    guards: tuple[Guard, ...] = ()
    groups: None = None
    first: int = 0
    last: int = 0
    smoothing: Smoothing | None = None
    depth: int = field(init=False, repr=False, compare=False)  # anchors a forecast reads at most

    def __post_init__(self) -> None:
        if isinstance(self.schedule, type) or not isinstance(self.schedule, Schedule):
            raise HiCacheError(f"Policy.schedule = {self.schedule!r}: must be a schedule, an Interval for one")
        usable = callable(getattr(self.forecaster, "weights", None)) and not isinstance(
            self.forecaster, type | Smoothing
        )
        if not usable:
            raise HiCacheError(
                f"Policy.forecaster = {self.forecaster!r}: must be an object with a method weights(anchors, target)"
            )
        one_of("Policy", "scope", self.scope, (NOWHERE,) if isinstance(self.schedule, Always) else SCOPES)
        if self.groups is not None:
            raise HiCacheError(f"Policy.groups = {self.groups!r}: must be None; kinds are told apart by PerKind")
        for name, value in (("first", self.first), ("last", self.last)):
            whole_number("Policy", name, value, 0)
            if value and self.scope not in ("block", "stack"):
                raise HiCacheError(f"Policy.{name} = {value}: must be 0 at scope {self.scope!r}")
        if self.smoothing is not None and not isinstance(self.smoothing, Smoothing):
            raise HiCacheError(f"Policy.smoothing = {self.smoothing!r}: must be a Smoothing or None")
        if isinstance(self.forecaster, MeasuredForecaster) and self.smoothing is not None:
            raise HiCacheError(f"Policy.smoothing = {self.smoothing!r}: must be None with {self.forecaster!r}")
        self._check_guards()
        # Tried out here: a forecaster that cannot run is refused now, not in the middle of a trajectory.
        depth = forecasters.depth(self.forecaster, self.smoothing)
        object.__setattr__(self, "depth", max(depth, *(guard.depth for guard in self.guards), 1))

    def _check_guards(self) -> None:
        guards = tuple(self.guards) if isinstance(self.guards, list | tuple) else None
        if guards is None or not all(isinstance(guard, Guard) for guard in guards):
            raise HiCacheError(f"Policy.guards = {self.guards!r}: must be a tuple of guards, TeaCacheGuard for one")
        object.__setattr__(self, "guards", guards)
        if isinstance(self.schedule, PerKind | DiTangoSchedule):
            name = type(self.schedule).__name__
            if guards:
                raise HiCacheError(f"Policy.guards = {guards!r}: must be () where the schedule is {name}")
            if self.scope != "module":
                raise HiCacheError(f"Policy.scope = {self.scope!r}: must be 'module' where the schedule is {name}")
        if isinstance(self.schedule, DiTangoSchedule) and not isinstance(self.forecaster, Reuse):
            raise HiCacheError(
                f"Policy.forecaster = {self.forecaster!r}: must be Reuse() where the schedule is DiTangoSchedule, "
                "which composes attention from states as they were"
            )
        if getattr(self.forecaster, "by_slot", False) and (guards or isinstance(self.schedule, PerKind)):
            decider = "PerKind" if isinstance(self.schedule, PerKind) else "guards"
            raise HiCacheError(f"Policy.forecaster: must have weights for all slots together under {decider}")
        if isinstance(self.forecaster, MeasuredForecaster) and (guards or isinstance(self.schedule, PerKind)):
            decider = "PerKind" if isinstance(self.schedule, PerKind) else "guards"
            raise HiCacheError(
                f"Policy.forecaster = {self.forecaster!r}: must go by steps alone under {decider}, not look at anchors"
            )
        for guard in guards:
            probe = guard.probe
            inside = probe.signal in (Signal.RESIDUAL, Signal.SITES) or probe.measure is Measure.VERIFY
            if inside and self.scope != "stack":
                name = type(guard).__name__
                raise HiCacheError(
                    f"Policy.scope = {self.scope!r}: must be 'stack' with a {name}, which measures blocks"
                )
        starts = Cut(self.scope, self.first, probes=tuple(guard.probe for guard in guards)).starts
        if list(starts) != sorted(starts):
            raise HiCacheError(f"Policy.guards = {guards!r}: must go from the fewest blocks measured to the most")
        late = [guard for guard in guards if not guard.probe.before]
        if len(late) > 1 or (late and len(guards) > 1):
            raise HiCacheError(f"Policy.guards = {guards!r}: must be alone, a {type(late[0]).__name__}")

    @classmethod
    def from_env(cls) -> Policy:
        """The policy of the environment variables of earlier frameworks (``TS_CACHE_INTERVAL``, ...).

        Raises:
            HiCacheError: a variable holds what it may not; see ``hicache_compile.environment``.
        """
        return cls(**fields_from_env())

    @property
    def cut(self) -> Cut:
        """What of it decides the graph."""
        probes = tuple(guard.probe for guard in self.guards)
        verified = max((probe.blocks for probe in probes if probe.measure is Measure.VERIFY), default=0)
        groups = self.schedule.groups if isinstance(self.schedule, PerKind) else ()
        split = self.schedule.split() if isinstance(self.schedule, DiTangoSchedule) else None
        by_slot = bool(getattr(self.forecaster, "by_slot", False))
        return Cut(self.scope, self.first, max(self.last, verified), probes, groups, split, by_slot)

    @property
    def is_timed(self) -> bool:
        """Whether it asks for timesteps."""
        return hasattr(self.schedule, "timed")

    def timed(self, times: Sequence[float] | None) -> Policy:
        """The policy for a run with these timesteps, where it asks for them."""
        timed = getattr(self.schedule, "timed", None)
        return self if times is None or timed is None else replace(self, schedule=timed(times))

    def sized(self, num_steps: int | None) -> Policy:
        """The policy for a run of ``num_steps``, where its forecaster asks for that."""
        sized = getattr(self.forecaster, "sized", None)
        return self if num_steps is None or sized is None else replace(self, forecaster=sized(num_steps))

    def forces(self, step: int, num_steps: int | None) -> bool:
        """Whether ``step`` is computed whatever the guards measure."""
        return self.schedule.computes(step, num_steps) or any(g.forces(step, num_steps) for g in self.guards)

    def eligible(self, computed: Sequence[int]) -> list[int]:
        """The anchors a forecast may read, newest first, out of the ``computed`` steps in order.

        The published order ramp: steps before ``schedule.first_anchor`` enter no difference, so the newest
        of them is only ever reused. Smoothing drops that gate, as published.
        """
        first = 0 if self.smoothing else self.schedule.first_anchor
        newest_first = [step for step in reversed(computed) if step >= first] or list(computed[-1:])
        return newest_first[: self.depth]

    def weights(self, computed: Sequence[int], step: int, most: int | None = None) -> list[float]:
        """Weights over the newest of the ``computed`` steps (at most ``most``), newest first, to forecast ``step``."""
        return forecasters.weights(self.forecaster, self.eligible(computed)[:most], step, self.smoothing)

    def from_step(self, step: int) -> Policy:
        """The policy of a denoiser that takes over at ``step`` of a run: a mask goes on, all else starts afresh."""
        if step == 0 or not isinstance(self.schedule, StepMask):
            return self
        return replace(self, schedule=self.schedule.from_step(step))

    def decisions(self, num_steps: int, start: int = 0) -> str:
        """One letter a step, ``F`` full and ``.`` forecast; the first step has no anchor and is always full.

        Under guards these are the fewest steps that can be full: those of the forced window.
        """
        whole_number("trajectory", "num_steps", num_steps, 1)
        computes = (self.forces(step, num_steps) or step == start for step in range(start, num_steps))
        return "".join("F" if full else "." for full in computes)
