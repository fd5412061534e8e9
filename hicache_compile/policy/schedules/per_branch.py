"""A schedule of its own for each branch of guidance: what the prompt says changes at another speed than the rest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hicache_compile.errors import HiCacheError
from hicache_compile.policy.published import PublishedModel, for_model
from hicache_compile.policy.run import RunInfo, bound
from hicache_compile.policy.schedules.base import Schedule


@dataclass(frozen=True, slots=True)
class PerBranch:
    """Branches of guidance that are each computed by a schedule of their own.

    A branch is a context of the denoiser (``cache_context``); diffusers' pipelines name theirs ``"cond"`` and
    ``"uncond"``, ``report()`` lists them.

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
        object.__setattr__(self, "schedules", dict(given))

    def __hash__(self) -> int:
        return hash((PerBranch, tuple(self.schedules.items()), self.other))

    def for_branch(self, name: str) -> Any:
        """The schedule of the branch ``name``."""
        return self.schedules.get(name, self.other)

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
