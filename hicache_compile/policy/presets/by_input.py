"""Presets of published methods that decide by the noisy input: each preset is a function that returns a ``Policy``."""

from __future__ import annotations

from collections.abc import Sequence

from hicache_compile.policy.forecasters import Forecaster, Newton, Reuse
from hicache_compile.policy.guards import SeaCacheGuard, SenCacheGuard
from hicache_compile.policy.policy import Policy
from hicache_compile.policy.schedules.base import Free

_REUSE = Reuse()
_LINEAR = Newton(1)


def SeaCache(
    threshold: float = 0.25,
    exponent: float | None = None,
    *,
    grid: tuple[int, ...] | None = None,
    signal: str = "input",
    rising: bool = False,
    warmup: int = 1,
    cooldown: int = 1,
    max_skips: int | None = 2,
    scope: str = "stack",
    forecaster: Forecaster = _LINEAR,
) -> Policy:
    """SeaCache (2602.18993): forecast until the changes of the filtered noisy input add up to ``threshold``.

    Use it in place of diffusers' SeaCache hook.

    Defaults are those of diffusers' hook. The authors filter the modulated input (``signal="modulated"``), reuse
    (``forecaster=Reuse()``) and skip any number of steps (``max_skips=None``).

    Args:
        threshold, exponent, grid, signal, rising: see ``SeaCacheGuard``.
        warmup, cooldown, max_skips: steps that are computed at the start and at the end, and skipped in a row at most.
    """
    window = {"warmup": warmup, "cooldown": cooldown, "max_skips": max_skips}
    guard = SeaCacheGuard(threshold, exponent, grid, signal, rising, **window)  # type: ignore[arg-type]  # of ints
    return Policy(Free(), forecaster, scope, (guard,))


def SenCache(
    threshold: float = 0.1,
    input_sensitivity: float | Sequence[float] = 1.0,
    time_sensitivity: float | Sequence[float] = 0.0,
    *,
    warmup: int = 1,
    cooldown: int = 1,
    max_skips: int | None = 3,
    scope: str = "stack",
    forecaster: Forecaster = _REUSE,
) -> Policy:
    """SenCache (2602.24208): reuse while measured sensitivities say that the output changes by less than ``threshold``.

    Use it where the model can be measured once: ``hicache tune --fit sencache`` writes the sensitivities.

    Args:
        threshold: of the estimated relative change of the output since the last computed step; 0 skips none.
        input_sensitivity, time_sensitivity: see ``SenCacheGuard``.
        warmup, cooldown, max_skips: steps that are computed at the start and at the end, and skipped in a row at most.
    """
    window = {"warmup": warmup, "cooldown": cooldown, "max_skips": max_skips}
    guard = SenCacheGuard(threshold, input_sensitivity, time_sensitivity, **window)  # type: ignore[arg-type]  # made tuples there
    return Policy(Free(), forecaster, scope, (guard,))
