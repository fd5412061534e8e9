"""The schedule of DiTango: the amount of reuse, and the partitions of the keys."""

from __future__ import annotations

from typing import ClassVar

from hicache_compile.errors import HiCacheError, true_or_false, whole_number
from hicache_compile.key_partitions import KeyPartitions
from hicache_compile.policy.compatibility import Trait
from hicache_compile.policy.plain_data import plain_data
from hicache_compile.policy.schedules.base import in_window


@plain_data
class DiTangoSchedule:
    """Reuse attention to distant keys until the local attention has drifted; anchors compute all of it.

    On one device the partitions are emulated: queries and keys are partitioned in the same way, and each partition of
    the queries treats its own keys as local. With ``distributed``, every rank of the default process group runs the
    denoiser on its own part of the tokens (context parallelism), and keys and values are exchanged only for computed
    groups.

    Args:
        cache_ratio: from 0 (off: every step is computed) to 1. A drift of ``0.6 cache_ratio`` triggers an anchor.
            Reused are the groups below the quantile ``cache_ratio`` of the group errors, measured after each anchor.
        warmup, cooldown: computed steps at the start and at the end.
        groups: the number of groups of partitions.
        partitions: the number of partitions; by default two per group, with ``distributed`` the number of ranks.
        distributed: see above.
    """

    cache_ratio: float
    warmup: int = 5
    cooldown: int = 5
    groups: int = 2
    partitions: int | None = None
    distributed: bool = False

    traits: ClassVar[frozenset[Trait]] = frozenset({Trait.PARTITIONS, Trait.SITES_APART, Trait.KINDS_APART})

    def __post_init__(self) -> None:
        owner = "DiTangoSchedule"
        ratio = self.cache_ratio
        if isinstance(ratio, bool) or not isinstance(ratio, int | float) or not 0 <= ratio <= 1:
            raise HiCacheError(f"{owner}.cache_ratio = {ratio!r}: must be a number from 0 to 1")
        whole_number(owner, "warmup", self.warmup, 1)
        whole_number(owner, "cooldown", self.cooldown, 0)
        whole_number(owner, "groups", self.groups, 1)
        true_or_false(owner, "distributed", self.distributed)
        if self.partitions is not None:
            whole_number(owner, "partitions", self.partitions, 2)
            if self.partitions % self.groups:
                raise HiCacheError(
                    f"{owner}.partitions = {self.partitions}: must be a multiple of groups = {self.groups}"
                )

    @property
    def first_anchor(self) -> int:
        return 0

    def computes(self, step: int, num_steps: int | None) -> bool:
        """Whether ``step`` is a warmup or cooldown step, or caching is off."""
        return self.cache_ratio == 0 or in_window(
            "DiTangoSchedule", step, num_steps, self.warmup, self.cooldown, strict=True
        )

    def key_partitions(self) -> KeyPartitions:
        """How the keys are partitioned; with 0 partitions where the number of ranks says how many."""
        if not self.distributed:
            return KeyPartitions(self.groups, self.partitions or 2 * self.groups)
        return KeyPartitions(self.groups, self.partitions or 0, distributed=True)
