"""A schedule of its own for each range of blocks: shallow, middle and deep ones change at different speeds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from hicache_compile.errors import HiCacheError, numbers
from hicache_compile.policy.compatibility import Trait
from hicache_compile.policy.plain_data import plain_data
from hicache_compile.policy.published import PublishedModel, for_model
from hicache_compile.policy.run import RunInfo, bound
from hicache_compile.policy.schedules.base import Schedule


@plain_data
class PerRange:
    """Blocks in ranges, each computed by a schedule of its own (LayerCache, 2026).

    A step in which some ranges are computed and others forecast costs what is computed. At scope ``stack`` each range
    has one residual a stream; at ``module`` and ``block`` the sites of its blocks go together.

    Args:
        parts: the schedules, from the first blocks to the last.
        starts: where each range begins, as a part of all blocks, from 0 on; by default they are equally long.

    Raises:
        HiCacheError: fewer than two schedules, or ``starts`` are not as many, rising from 0 to less than 1.
    """

    parts: tuple[Any, ...]
    starts: tuple[float, ...] | None = None

    traits: ClassVar[frozenset[Trait]] = frozenset({Trait.SITES_APART, Trait.BLOCKS_APART})

    def __post_init__(self) -> None:
        parts = tuple(self.parts) if isinstance(self.parts, list | tuple) else ()
        plain = [isinstance(part, Schedule) and not isinstance(part, type) for part in parts]
        if len(parts) < 2 or not all(plain) or any(hasattr(part, "groups") for part in parts):
            raise HiCacheError(f"PerRange.parts = {self.parts!r}: must be two or more schedules, e.g. Interval(6)")
        object.__setattr__(self, "parts", parts)
        if self.starts is None:
            object.__setattr__(self, "starts", tuple(place / len(parts) for place in range(len(parts))))
            return
        starts = numbers("PerRange", "starts", self.starts)
        if len(starts) != len(parts) or starts[0] != 0 or list(starts) != sorted(set(starts)) or starts[-1] >= 1:
            raise HiCacheError(
                f"PerRange.starts = {starts!r}: must be {len(parts)} rising numbers from 0 to less than 1"
            )
        object.__setattr__(self, "starts", starts)

    @property
    def schedules(self) -> Mapping[str, Any]:
        """The schedules by the group of sites they decide about."""
        return dict(zip((name for name, _ in self.groups), self.parts, strict=True))

    @property
    def groups(self) -> tuple[tuple[str, None], ...]:
        """The groups of sites that are decided each by itself."""
        return tuple((f"range_{place}", None) for place in range(len(self.parts)))

    @property
    def ranges(self) -> tuple[float, ...]:
        """Where each range begins, which determines the compiled graph."""
        assert self.starts is not None  # since it was made
        return self.starts

    @property
    def first_anchor(self) -> int:
        return min(part.first_anchor for part in self.parts)

    def computes(self, step: int, num_steps: int | None) -> bool:
        """Whether all ranges are computed."""
        return all(part.computes(step, num_steps) for part in self.parts)

    def bind(self, run: RunInfo) -> PerRange:
        """The schedules for ``run``."""
        return PerRange(tuple(bound(part, run) for part in self.parts), self.starts)

    def for_model(self, model: PublishedModel) -> PerRange:
        """The schedules with the published values for ``model`` where none were given."""
        return PerRange(tuple(for_model(part, model) for part in self.parts), self.starts)
