"""MagCache (2506.09045): calibrated residual magnitude ratios bound how long a residual may be reused.

The table is known before the run, so this is a static schedule: nothing is measured during the run.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

from hicache_compile.errors import HiCacheError, named, numbers, true_or_false, whole_number
from hicache_compile.policy.plain_data import plain_data
from hicache_compile.policy.published import PublishedModel
from hicache_compile.policy.schedules.magcache_tables import MAGCACHE_TABLES

DEFAULT = "flux"


@plain_data
class MagCacheSchedule:
    """Skip while ``sum |1 - prod ratio|`` since the last computed step is within ``threshold``.

    Args:
        threshold: 0 computes every step, except steps with a ratio of exactly 1.
        max_skips: the maximum number of consecutive skipped steps.
        retention: the fraction of the run computed at its start: ``int(retention * N)`` steps.
        table: the ratio of the residual's magnitude to that of the previous step, for each step (the first is 1), or
            the name of a published table. A run of another length uses the nearest entry. ``None``: the table of the
            model that is compiled, FLUX's where none is published for it.
        inclusive: a sum equal to the threshold still skips (FLUX, Kontext, HunyuanVideo, diffusers; not Wan, Qwen).
        rounded: ``int(retention * N + 0.5)`` instead (FLUX, Kontext, diffusers).
        never: a step of the table that is never skipped (FLUX: 11).
        cooldown: computed steps at the end.
    """

    threshold: float
    max_skips: int = 3
    retention: float = 0.2
    table: str | tuple[float, ...] | None = None
    inclusive: bool = True
    rounded: bool = True
    never: int | None = None
    cooldown: int = 0

    def __post_init__(self) -> None:
        owner = "MagCacheSchedule"
        for name, high in (("threshold", float("inf")), ("retention", 1.0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= high:
                raise HiCacheError(f"{owner}.{name} = {value!r}: must be a number from 0 to {high:g}")
        whole_number(owner, "max_skips", self.max_skips, 0)
        whole_number(owner, "cooldown", self.cooldown, 0)
        for name in ("inclusive", "rounded"):
            true_or_false(owner, name, getattr(self, name))
        if self.never is not None:
            whole_number(owner, "never", self.never, 0)
        if self.table is None:
            return
        if isinstance(self.table, str):
            object.__setattr__(self, "table", named(owner, "table", self.table, MAGCACHE_TABLES))
            return
        object.__setattr__(self, "table", numbers(owner, "table", self.table, least=0.0))

    @property
    def first_anchor(self) -> int:
        return 0

    def computes(self, step: int, num_steps: int | None) -> bool:
        if num_steps is None:
            raise HiCacheError(
                "MagCacheSchedule.table: needs a trajectory of known length; give it by "
                "`with compiled.trajectory(num_steps):`"
            )
        return _computed(self, num_steps)[step]

    def ratios(self, num_steps: int) -> list[float]:
        """The table resampled to ``num_steps`` steps."""
        table = self.entries
        return [table[_nearest(step, num_steps, len(table))] for step in range(num_steps)]

    @property
    def entries(self) -> tuple[float, ...]:
        """The table itself."""
        return self.table if isinstance(self.table, tuple) else MAGCACHE_TABLES[self.table or DEFAULT]

    def for_model(self, model: PublishedModel) -> MagCacheSchedule:
        """With the table published for ``model``, and the rounding of its authors."""
        if self.table is not None:
            return self
        instead = "FLUX's table is used; measure your own with `hicache tune --fit magcache`, or name a table"
        name = model.name_in(MAGCACHE_TABLES, "MagCache", instead)
        return replace(self, table=name or DEFAULT, **rounding(name or DEFAULT))


def rounding(table: object) -> dict[str, bool]:
    """How the authors of the table named ``table`` round and compare."""
    strict = table == "qwen-image"
    return {"inclusive": not strict, "rounded": not strict and table != "hunyuan-video"}


def _nearest(step: int, num_steps: int, length: int) -> int:
    return step if num_steps == length else round(step * (length - 1) / max(1, num_steps - 1))


@lru_cache(maxsize=64)
def _computed(schedule: MagCacheSchedule, num_steps: int) -> list[bool]:
    retained = int(schedule.retention * num_steps + (0.5 if schedule.rounded else 0.0))
    length = len(schedule.entries)
    ratio, skipped, error = 1.0, 0, 0.0
    computed = []
    for step, factor in enumerate(schedule.ratios(num_steps)):
        full = step < max(1, retained) or step >= num_steps - schedule.cooldown
        if not full:
            ratio *= factor
            skipped += 1
            error += abs(1.0 - ratio)
            within = error <= schedule.threshold if schedule.inclusive else error < schedule.threshold
            barred = schedule.never is not None and _nearest(step, num_steps, length) == schedule.never
            full = not within or skipped > schedule.max_skips or barred
        if full:
            ratio, skipped, error = 1.0, 0, 0.0
        computed.append(full)
    return computed
