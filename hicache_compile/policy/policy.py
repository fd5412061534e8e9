"""A policy answers three independent questions: when to compute, what to do instead, and where."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import field, replace
from functools import lru_cache
from typing import Any

from hicache_compile.errors import HiCacheError, one_of, whole_number
from hicache_compile.policy import forecasters
from hicache_compile.policy.compatibility import Trait, check, traits_of
from hicache_compile.policy.environment import fields_from_env
from hicache_compile.policy.forecasters import ByBand, ByChannel, Forecaster, Smoothing
from hicache_compile.policy.guards import Guard, Measure
from hicache_compile.policy.layout import NOWHERE, SCOPES, WITH_ENDS, Layout
from hicache_compile.policy.plain_data import plain_data
from hicache_compile.policy.published import PublishedModel, for_model
from hicache_compile.policy.run import RunInfo, bound
from hicache_compile.policy.schedules.base import Always, Interval, Schedule, StepMask
from hicache_compile.policy.tokens import Tokens

__all__ = ["NOWHERE", "SCOPES", "Policy"]

IN_GRAPH_ANCHORS = 3  # anchors that a table of weights in a graph can be made for


@plain_data
class Policy:
    """When (``schedule``), what instead (``forecaster``, ``smoothing``), and where (``scope``).

    Args:
        schedule: which steps are computed: ``Interval``, ``StepMask``, ``MagCacheSchedule``, ``PerKind``,
            ``DiTangoSchedule``, your own, or ``Free`` to leave that to the guards.
        forecaster: any object with ``weights(anchors, target)``, ours or your own.
        scope: where the sites are cut. ``"module"``: each attention and MLP output before its gate.
            ``"block"``: each block's residual. ``"stack"``: the residual over the whole run of blocks.
            ``"output"``: the hidden state before the final layer. ``"none"``, where the schedule is ``Always``.
        guards: measured decisions for the steps the schedule does not compute, the cheapest first. Each may end the
            step in a forecast; where none does the step is computed. Under ``PerKind`` a guard that skips forecasts all
            kinds; where none does, kinds with the schedule ``Free`` are computed and the others follow theirs.
        groups: ``None``; a schedule of its own for each kind of site is ``PerKind``.
        first: blocks at the start that always run (scopes ``module``, ``block`` and ``stack``).
        last: blocks at the end that always run.
        smoothing: smooth the anchors before forecasting.
        tokens: in some of the steps that are not computed, compute a few tokens of sites whose tokens do not mix.

    Raises:
        HiCacheError: a field has a wrong type or is out of range, or two of them cannot be combined (see
            ``hicache_compile.policy.compatibility``); the message says which and what is allowed.
    """

    schedule: Schedule
    forecaster: Forecaster
    scope: str = "module"
    guards: tuple[Guard, ...] = ()
    groups: None = None
    first: int = 0
    last: int = 0
    smoothing: Smoothing | None = None
    tokens: Tokens | None = None
    depth: int = field(init=False, repr=False, compare=False)  # anchors a forecast reads at most
    layout: Layout = field(init=False, repr=False, compare=False)
    traits: frozenset[Trait] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        self._check_fields()
        self._check_guards()
        # Tried out here: a forecaster that cannot run is refused now, not in the middle of a trajectory.
        depth = forecasters.depth(self.forecaster, self.smoothing)
        object.__setattr__(self, "depth", max(depth, *(guard.depth for guard in self.guards), 1))
        object.__setattr__(self, "layout", self._layout())
        object.__setattr__(self, "traits", self._traits())
        check("Policy", self.traits)

    def _check_fields(self) -> None:
        if isinstance(self.schedule, type) or not isinstance(self.schedule, Schedule):
            raise HiCacheError(
                f"Policy.schedule = {self.schedule!r}: must be a schedule, e.g. Interval(6), or an object "
                "with first_anchor and computes(step, num_steps)"
            )
        usable = callable(getattr(self.forecaster, "weights", None)) and not isinstance(
            self.forecaster, type | Smoothing
        )
        if not usable:
            raise HiCacheError(
                f"Policy.forecaster = {self.forecaster!r}: must be an object with a method weights(anchors, target)"
            )
        one_of("Policy", "scope", self.scope, (NOWHERE,) if isinstance(self.schedule, Always) else SCOPES)
        if self.groups is not None:
            raise HiCacheError(
                f"Policy.groups = {self.groups!r}: must be None; for a schedule of each kind use PerKind(...)"
            )
        whole_number("Policy", "first", self.first, 0)
        whole_number("Policy", "last", self.last, 0)
        if self.smoothing is not None and not isinstance(self.smoothing, Smoothing):
            raise HiCacheError(f"Policy.smoothing = {self.smoothing!r}: must be a Smoothing or None")
        if self.tokens is not None and not isinstance(self.tokens, Tokens):
            raise HiCacheError(f"Policy.tokens = {self.tokens!r}: must be Tokens(...) or None")

    def _check_guards(self) -> None:
        guards = tuple(self.guards) if isinstance(self.guards, list | tuple) else None
        if guards is None or not all(isinstance(guard, Guard) for guard in guards):
            raise HiCacheError(
                f"Policy.guards = {self.guards!r}: must be a tuple of guards, e.g. (TeaCacheGuard(0.3),)"
            )
        object.__setattr__(self, "guards", guards)
        early = [guard.probe.before for guard in guards]
        if early != sorted(early, reverse=True):
            raise HiCacheError(f"Policy.guards = {guards!r}: guards that measure before a step must come first")
        starts = Layout(self.scope, self.first, probes=tuple(guard.probe for guard in guards)).starts
        if list(starts) != sorted(starts):
            raise HiCacheError(f"Policy.guards = {guards!r}: must go from the fewest blocks measured to the most")

    def _layout(self) -> Layout:
        probes = tuple(guard.probe for guard in self.guards)
        verified = max((probe.blocks for probe in probes if probe.measure is Measure.VERIFY), default=0)
        partitions = getattr(self.schedule, "key_partitions", None)
        return Layout(
            self.scope,
            self.first,
            max(self.last, verified) if self.scope in WITH_ENDS else self.last,
            probes,
            getattr(self.schedule, "groups", ()),
            getattr(self.schedule, "ranges", ()),
            Trait.PER_SLOT in traits_of(self.forecaster),
            self.forecaster.parts if isinstance(self.forecaster, ByBand | ByChannel) else None,
            partitions() if partitions is not None else None,
            depth=self.depth,
            tokens=self.tokens.of_graph if self.tokens is not None else None,
        )

    def _traits(self) -> frozenset[Trait]:
        own = {
            Trait.GUARDS: bool(self.guards),
            Trait.FORECASTS: Trait.REUSES not in traits_of(self.forecaster),
            Trait.MANY_ANCHORS: self.depth > IN_GRAPH_ANCHORS,
            Trait.BLOCKS_APART: bool(
                self.first or self.last or any(g.probe.measure is Measure.VERIFY for g in self.guards)
            ),
            Trait.NOT_MODULE: self.scope != "module",
            Trait.NO_BLOCKS: self.scope not in WITH_ENDS,
            Trait.TOKENS: self.tokens is not None,
            Trait.KINDS_APART: self.tokens is not None,
        }
        return traits_of(self.schedule) | traits_of(self.forecaster) | {trait for trait, has in own.items() if has}

    @classmethod
    def from_env(cls) -> Policy:
        """The policy of the environment variables of earlier frameworks (``TS_CACHE_INTERVAL``, ...).

        Raises:
            HiCacheError: a variable holds what it may not; see ``hicache_compile.policy.environment``.
        """
        return cls(**fields_from_env())

    def bind(self, run: RunInfo) -> Policy:
        """The policy for ``run``: with its timesteps, its length, and what is left of a mask."""
        schedule, forecaster = bound(self.schedule, run), bound(self.forecaster, run)
        if schedule is self.schedule and forecaster is self.forecaster:
            return self
        return replace(self, schedule=schedule, forecaster=forecaster)

    def for_branch(self, name: str) -> Policy:
        """The policy of the branch of guidance ``name``."""
        return self if getattr(self.schedule, "for_branch", None) is None else _of_branch(self, name)

    @property
    def branches(self) -> tuple[str, ...]:
        """The branches of guidance that have a policy of their own; see ``for_branch``."""
        return tuple(getattr(self.schedule, "branches", ()))

    def in_full(self) -> Policy:
        """The policy of runs that are not cached, which may be of another length than a mask."""
        return replace(self, schedule=Interval(1)) if isinstance(self.schedule, StepMask) else self

    @property
    def sigmas(self) -> tuple[float, ...] | None:
        """What a pipeline is called with, ``pipe(..., sigmas=policy.sigmas)``; ``None``: its own."""
        found: tuple[float, ...] | None = getattr(self.schedule, "sigmas", None)
        return found

    @property
    def times(self) -> tuple[float, ...] | None:
        """The timesteps, in 0..1000, of the only run that it serves; ``None``: it serves others too."""
        found: tuple[float, ...] | None = getattr(self.schedule, "times", None)
        return found

    def for_model(self, model: PublishedModel) -> Policy:
        """The policy with the published values for ``model`` where none were given."""
        schedule = for_model(self.schedule, model)
        guards = tuple(for_model(guard, model) for guard in self.guards)
        if schedule is self.schedule and all(map(operator.is_, guards, self.guards)):
            return self
        return replace(self, schedule=schedule, guards=guards)

    def forces(self, step: int, num_steps: int | None) -> bool:
        """Whether ``step`` is computed whatever the guards measure."""
        return self.schedule.computes(step, num_steps) or any(g.forces(step, num_steps) for g in self.guards)

    def check_open_ended(self) -> None:
        """Raise ``HiCacheError`` unless the policy can serve a run whose length is not known."""
        for guard in self.guards:
            guard.forces(1, None)
        bound(self.schedule, RunInfo(times=lambda: None))

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

    def part_weights(self, computed: Sequence[int], step: int, most: int | None = None) -> list[list[float]]:
        """The same, a row for each part of a slot (``ByBand``, ``ByChannel``); else one row."""
        return forecasters.rows_of(self.forecaster, self.eligible(computed)[:most], step, self.smoothing)

    def decisions(self, num_steps: int, start: int = 0) -> str:
        """One letter a step, ``F`` full and ``.`` forecast; the first step has no anchor and is always full.

        Under guards these are the fewest steps that can be full: those of the forced window.
        """
        whole_number("trajectory", "num_steps", num_steps, 1)
        computes = (self.forces(step, num_steps) or step == start for step in range(start, num_steps))
        return "".join("F" if full else "." for full in computes)


@lru_cache(maxsize=64)
def _of_branch(policy: Policy, name: str) -> Policy:
    """One object for each branch, by which programs are found."""
    schedule: Any = policy.schedule
    return replace(policy, schedule=schedule.for_branch(name))
