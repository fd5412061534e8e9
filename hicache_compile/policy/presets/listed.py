"""Presets whose steps are published: as masks, as lists, or by a table of ratios."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hicache_compile.errors import HiCacheError, named, numbers, whole_number
from hicache_compile.policy.forecasters import Forecaster, Reuse
from hicache_compile.policy.plain_data import plain_arguments
from hicache_compile.policy.policy import Policy
from hicache_compile.policy.schedules.base import StepMask, as_mask
from hicache_compile.policy.schedules.lemica import LeMiCaSchedule, lemica_mask
from hicache_compile.policy.schedules.magcache import MagCacheSchedule, rounding
from hicache_compile.policy.schedules.magcache_tables import MAGCACHE_TABLES
from hicache_compile.policy.schedules.scm_masks import SPEEDS, steps_mask

_REUSE = Reuse()


@plain_arguments
def SCM(
    mask: str | Sequence[int] = "medium",
    num_steps: int | None = None,
    *,
    scope: str = "stack",
    cooldown: int = 0,
    forecaster: Forecaster | None = None,
) -> Policy:
    """Steps-computation mask (cache-dit): compute the steps marked ``1``, reuse the stack's residual at ``0``.

    Use it to say yourself which steps are computed, or to have the masks of cache-dit.

    Args:
        mask: a string or a sequence of ``1`` and ``0``, or the name of a common mask, ``"slow"``, ``"medium"``,
            ``"fast"``, ``"ultra"``.
        num_steps: length of the trajectory for a named mask (by default 28).
        cooldown: the number of steps at the end that are computed whatever the mask.
    """
    steps: Any = as_mask(mask)
    if isinstance(steps, str) and steps.strip("01"):
        steps = steps_mask(named("SCM", "mask", steps, SPEEDS), 28 if num_steps is None else num_steps)
    elif isinstance(steps, str) and num_steps not in (None, len(steps)):
        raise HiCacheError(f"SCM.num_steps = {num_steps}: must be {len(steps)}, the length of the mask")
    whole_number("SCM", "cooldown", cooldown, 0)
    schedule = StepMask(steps)
    if cooldown:
        schedule = StepMask(steps[: max(1, len(steps) - cooldown)].ljust(len(steps), "1"))
    return Policy(schedule, _REUSE if forecaster is None else forecaster, scope)


@plain_arguments
def MagCache(
    threshold: float = 0.06,
    max_skips: int = 3,
    retention: float = 0.2,
    table: str | Sequence[float] | None = None,
    *,
    scope: str = "stack",
    cooldown: int = 0,
    forecaster: Forecaster = _REUSE,
) -> Policy:
    """MagCache (2506.09045): calibrated magnitude ratios fix the schedule before the run; nothing is measured.

    Use it where a table is published for the model, or after ``hicache tune --fit magcache``.

    Args:
        threshold, max_skips, retention, table: see ``MagCacheSchedule``.
    """
    if isinstance(table, str):
        table = named("MagCache", "table", table, MAGCACHE_TABLES)
    elif table is not None:
        table = numbers("MagCache", "table", table)
    schedule = MagCacheSchedule(threshold, max_skips, retention, table, **rounding(table), cooldown=cooldown)
    return Policy(schedule, forecaster, scope)


@plain_arguments
def LeMiCa(
    budget: int | None = None,
    model: str | None = None,
    *,
    scope: str = "stack",
    cooldown: int = 0,
    forecaster: Forecaster = _REUSE,
) -> Policy:
    """LeMiCa (2511.00090): the published list of ``budget`` computed steps for ``model``.

    Use it with the number of steps a list is published for: 50 with FLUX, Wan and Qwen-Image, 10 with Z-Image.

    Args:
        budget: computed steps; by default the middle one of the model's lists.
        model: by default that of the denoiser's class and configuration; FLUX, with a warning, if none is published.
        cooldown: the number of steps at the end that are computed whatever the list.
    """
    if model is None:
        return Policy(LeMiCaSchedule(budget, cooldown), forecaster, scope)
    return Policy(StepMask(lemica_mask(model, budget, cooldown)), forecaster, scope)
