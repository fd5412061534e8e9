"""FlexCache (Smart-Diffusion, ChituDiffusion): a strategy with one parameter, between warm-up and cool-down."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hicache_compile.errors import HiCacheError, one_of
from hicache_compile.policy.forecasters import Forecaster, Reuse
from hicache_compile.policy.guards import TEACACHE_MODELS, TeaCacheGuard
from hicache_compile.policy.plain_data import plain_arguments
from hicache_compile.policy.policy import Policy
from hicache_compile.policy.schedules.base import Free, Interval
from hicache_compile.policy.schedules.ditango import DiTangoSchedule
from hicache_compile.policy.schedules.per_kind import Broadcast, PerKind

STRATEGIES = ("teacache", "pab", "ditango")
OFF = ("", "none", "off", "disable", "disabled")


@plain_arguments
def FlexCache(
    strategy: str | None = None,
    cache_ratio: float = 0.5,
    warmup: int = 5,
    cooldown: int = 5,
    *,
    model: str = "",
    scope: str | None = None,
    forecaster: Forecaster | None = None,
) -> Policy:
    """A policy from FlexCache's four parameters.

    Use it to take over settings of Smart-Diffusion.

    ======== ==========================================================================================
    teacache threshold ``lo + cache_ratio * (hi - lo)``, of (.04, .20) for a 14B model and (.08, .35) otherwise, on
             the projected time embedding, with the Wan fit of ``model``
    ditango  an anchor when the local attention drifted by ``0.6 cache_ratio``; the quantile ``cache_ratio`` of the
             errors of distant keys is reused
    pab      self-attention every ``round(10 cache_ratio)`` steps, cross-attention every ``round(5/3)`` of that
    ======== ==========================================================================================

    ``cache_ratio=0``, or no strategy, disables caching, bit for bit. (Upstream it crashes or still reuses.)

    Args:
        strategy: ``"teacache"``, ``"pab"``, ``"ditango"``, or ``None``, ``"off"``...: no cache.
        cache_ratio: from 0 to 1.
        warmup, cooldown: computed steps at the start and the end, together fewer than the steps of the run.
        model: the model's name, e.g. ``"Wan2.1-T2V-14B"``; for an unknown model, changes are not rescaled.
        scope, forecaster: by default as published: stack (teacache) or module (pab, ditango), reuse.

    Raises:
        HiCacheError: a value is not allowed.
    """
    name = "" if strategy is None else str(strategy).strip().lower()
    if name not in OFF:
        one_of("FlexCache", "strategy", name, STRATEGIES)
    try:
        ratio = float(cache_ratio)
    except (TypeError, ValueError):
        ratio = -1.0
    if not 0.0 <= ratio <= 1.0:
        raise HiCacheError(f"FlexCache.cache_ratio = {cache_ratio!r}: must be a number from 0 to 1")
    first, last = _steps("warmup", warmup), _steps("cooldown", cooldown)
    forecaster = forecaster or Reuse()
    if name in OFF or ratio == 0.0:
        return Policy(Interval(1), forecaster, scope or "stack")
    if name == "teacache":
        guard = TeaCacheGuard(
            teacache_threshold(ratio, model), _coefficients(model), "modulation", warmup=first, cooldown=last
        )
        return Policy(Free(max(1, first), last, strict=True), forecaster, scope or "stack", (guard,))
    if name == "ditango":
        return Policy(DiTangoSchedule(ratio, max(1, first), max(1, last)), forecaster, scope or "module")
    every_self, every_cross = pab_ranges(ratio)
    kinds = ("self-attention", "joint-attention", "temporal-attention", "parallel")
    schedules = {kind: Broadcast(max(1, every_self), first, last, strict=True) for kind in kinds}
    schedules["cross-attention"] = Broadcast(max(1, every_cross), first, last, strict=True)
    return Policy(PerKind(schedules), forecaster, scope or "module")


def from_params(params: Mapping[str, Any] | str | None) -> Policy:
    """The policy of FlexCache's ``flexcache_params``: a mapping or, in the older style, the name of the strategy.

    Raises:
        HiCacheError: an unknown field or a value that is not allowed.
    """
    if params is None or isinstance(params, str):
        return FlexCache(params)
    unknown = sorted(set(params) - {"strategy", "cache_ratio", "warmup", "cooldown", "model"})
    if unknown:
        raise HiCacheError(
            f"FlexCache.{unknown[0]}: no such field; must be strategy, cache_ratio, warmup, cooldown, model"
        )
    return FlexCache(**params)


def teacache_threshold(ratio: float, model: str = "") -> float:
    """TeaCache's threshold for cache ratio ``ratio``."""
    low, high = (0.04, 0.20) if "14b" in model.lower() else (0.08, 0.35)
    return low + ratio * (high - low)


def pab_ranges(ratio: float) -> tuple[int, int]:
    """The intervals of self- and cross-attention for cache ratio ``ratio``; halves round to even."""
    every = round(10 * ratio)
    return every, round(5 * every / 3)


def _coefficients(model: str) -> tuple[float, ...]:
    name = model.lower()
    if "i2v" in name and "720" in name:
        key = "wan2.1-i2v-720p-ret"
    elif "i2v" in name:
        key = "wan2.1-i2v-480p-ret"
    elif "14b" in name:
        key = "wan2.1-t2v-14b-ret"
    elif "1.3b" in name:
        key = "wan2.1-t2v-1.3b-ret"
    else:
        return (1.0, 0.0)
    return TEACACHE_MODELS[key].coefficients


def _steps(field: str, value: Any) -> int:
    try:
        steps = int(value)
    except (TypeError, ValueError):
        steps = -1
    if steps < 0:
        raise HiCacheError(f"FlexCache.{field} = {value!r}: must be an integer >= 0")
    return steps
