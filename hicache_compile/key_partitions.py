"""How the keys of an attention are split: partitions, seen from each, in groups from near to far."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class Code(IntEnum):
    """What happens to a group of partitions in a step."""

    FORCED = 0  # computed, and not remembered
    ANCHOR = 1  # computed and remembered; everything is measured from here on
    COMPUTED = 2  # computed and remembered
    REUSED = 3


@dataclass(frozen=True, slots=True)
class KeyPartitions:
    """The keys in ``partitions`` of equal length, ``partitions / groups`` of them a group.

    Every partition ("rank") sees the others by their displacement ``(o, i)`` from itself, ``o`` groups and ``i`` places
    in the group away; group ``o`` are those with that ``o``. ``(0, 0)`` is itself: local, and in no group.

    Args:
        distributed: each rank of ``torch.distributed`` holds one partition of queries and keys.
    """

    groups: int
    partitions: int
    distributed: bool = False

    @property
    def per_group(self) -> int:
        return self.partitions // self.groups

    @property
    def decided(self) -> tuple[int, ...]:
        """The groups there is something to decide of: group 0 may be the local partition alone."""
        return tuple(o for o in range(self.groups) if self.members(0, o))

    def source(self, rank: int, o: int, i: int) -> int:
        """The partition that is displaced by ``(o, i)`` from ``rank``."""
        group, place = divmod(rank, self.per_group)
        return (group + o) % self.groups * self.per_group + (place + i) % self.per_group

    def target(self, rank: int, o: int, i: int) -> int:
        """The partition from which ``rank`` is displaced by ``(o, i)``: the inverse of ``source``."""
        return self.source(rank, -o, -i)

    def displacements(self, o: int) -> tuple[tuple[int, int], ...]:
        """The displacements that make group ``o``."""
        return tuple((o, i) for i in range(self.per_group) if (o, i) != (0, 0))

    def members(self, rank: int, o: int) -> tuple[int, ...]:
        """The partitions of group ``o`` as ``rank`` sees them."""
        return tuple(self.source(rank, *displacement) for displacement in self.displacements(o))
