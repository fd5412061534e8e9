"""Partitions of the keys of an attention, and their groups from near to far as seen from each partition."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class Code(IntEnum):
    """The action for a group of partitions in a step."""

    FORCED = 0  # computed, not stored
    ANCHOR = 1  # computed and stored; later drifts are measured against it
    COMPUTED = 2  # computed and stored
    REUSED = 3


@dataclass(frozen=True, slots=True)
class KeyPartitions:
    """The keys in ``partitions`` of equal length, ``partitions / groups`` of them a group.

    Each partition ("rank") addresses the others by their displacement ``(o, i)``: ``o`` groups and ``i`` places within
    the group. Group ``o``, as seen from a partition, holds the partitions with that ``o``. ``(0, 0)`` is the partition
    itself: local, and in no group.

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
        """The groups that are not empty: group 0 may consist of the local partition alone."""
        return tuple(o for o in range(self.groups) if self.members(0, o))

    def source(self, rank: int, o: int, i: int) -> int:
        """The partition at displacement ``(o, i)`` from ``rank``."""
        group, place = divmod(rank, self.per_group)
        return (group + o) % self.groups * self.per_group + (place + i) % self.per_group

    def target(self, rank: int, o: int, i: int) -> int:
        """The partition from which ``rank`` is at displacement ``(o, i)``: the inverse of ``source``."""
        return self.source(rank, -o, -i)

    def displacements(self, o: int) -> tuple[tuple[int, int], ...]:
        """The displacements of the partitions in group ``o``."""
        return tuple((o, i) for i in range(self.per_group) if (o, i) != (0, 0))

    def members(self, rank: int, o: int) -> tuple[int, ...]:
        """The partitions in group ``o`` as seen from ``rank``."""
        return tuple(self.source(rank, *displacement) for displacement in self.displacements(o))
