"""A schedule of its own for each branch of guidance: what the prompt says changes at another speed than the rest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hicache_compile.errors import HiCacheError
from hicache_compile.policy.plain_data import plain_data
from hicache_compile.policy.published import PublishedModel, for_model
from hicache_compile.policy.run import DEFAULT_CONTEXT, RunInfo, bound
from hicache_compile.policy.schedules.base import Always, Interval, Schedule


@plain_data
class PerBranch:
    """Branches of guidance that are each computed by a schedule of their own.

    A branch is a context of the denoiser (``cache_context``). Pipelines of diffusers that name theirs mostly say
    ``"cond"`` and ``"uncond"``; ``report().history`` lists the names of a run, also of branches that nobody names.

    Args:
        schedules: by the name of the branch.
        other: of all branches that ``schedules`` does not name.

    Raises:
        HiCacheError: one of them is no schedule for a branch.
    """

    schedules: Mapping[str, Any]
    other: Any

    def __post_init__(self) -> None:
        given = self.schedules if isinstance(self.schedules, Mapping) else {}
        plain = [isinstance(one, Schedule) and not isinstance(one, type | PerBranch) for one in given.values()]
        if not plain or not all(plain) or not all(isinstance(name, str) for name in given):
            raise HiCacheError(
                f"PerBranch.schedules = {self.schedules!r}: must be schedules by the name of a branch, e.g. "
                '{"uncond": Interval(6)}'
            )
        if not isinstance(self.other, Schedule) or isinstance(self.other, type | PerBranch):
            raise HiCacheError(f"PerBranch.other = {self.other!r}: must be a schedule, e.g. Interval(4)")
        parts = [*given.values(), self.other]
        if any(hasattr(part, "groups") or hasattr(part, "key_partitions") for part in parts):
            raise HiCacheError(
                "PerBranch.schedules: PerKind, PerRange and DiTangoSchedule have a program of their own: must be "
                "schedules of whole steps, e.g. Interval(6)"
            )
        object.__setattr__(self, "schedules", {name: _whole(one) for name, one in given.items()})
        object.__setattr__(self, "other", _whole(self.other))

    def __hash__(self) -> int:
        return hash((PerBranch, frozenset(self.schedules.items()), self.other))

    def for_branch(self, name: str) -> Any:
        """The schedule of the branch ``name``; of a row of it too, ``"uncond[1]"``, and of what follows in its context
        where the prompt changes, ``"uncond.1"``."""
        name = name.partition("[")[0]
        context, _, number = name.rpartition(".")
        again = context != DEFAULT_CONTEXT and number.isdigit()
        return self.schedules.get(name, self.schedules.get(context, self.other) if again else self.other)

    @property
    def branches(self) -> tuple[str, ...]:
        """The names of those with a schedule of their own."""
        return tuple(self.schedules)

    @property
    def sigmas(self) -> tuple[float, ...] | None:
        """Of the plans among the schedules."""
        return self._of_plan("sigmas")

    @property
    def times(self) -> tuple[float, ...] | None:
        """Of the plans among the schedules."""
        return self._of_plan("times")

    def _of_plan(self, name: str) -> tuple[float, ...] | None:
        found = (getattr(one, name, None) for one in (*self.schedules.values(), self.other))
        return next((values for values in found if values is not None), None)

    @property
    def first_anchor(self) -> int:
        return int(self.other.first_anchor)

    def computes(self, step: int, num_steps: int | None) -> bool:
        """Whether a branch that is not named is computed."""
        return bool(self.other.computes(step, num_steps))

    def bind(self, run: RunInfo) -> PerBranch:
        """The schedules for ``run``."""
        return PerBranch({name: bound(one, run) for name, one in self.schedules.items()}, bound(self.other, run))

    def for_model(self, model: PublishedModel) -> PerBranch:
        """The schedules with the published values for ``model`` where none were given."""
        parts = {name: for_model(one, model) for name, one in self.schedules.items()}
        return PerBranch(parts, for_model(self.other, model))


def _whole(schedule: Any) -> Any:
    """``schedule``; in place of ``Always``, which cuts no sites, what computes every step of those that others have."""
    return Interval(1) if isinstance(schedule, Always) else schedule
