"""TeaCache as a preset, and its guard for presets that are built on it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hicache_compile.errors import named, numbers
from hicache_compile.policy.forecasters import Forecaster, Reuse
from hicache_compile.policy.guards.models import TEACACHE_MODELS, UNPUBLISHED
from hicache_compile.policy.guards.teacache import PUBLISHED, TeaCacheGuard
from hicache_compile.policy.plain_data import plain_arguments
from hicache_compile.policy.policy import Policy
from hicache_compile.policy.schedules.base import Free

_REUSE = Reuse()


@plain_arguments
def TeaCache(
    threshold: float | None = None,
    model: str | None = None,
    *,
    coefficients: Sequence[float] | None = None,
    warmup: int | None = None,
    max_skips: int | None = None,
    exact: bool = False,
    scope: str = "stack",
    cooldown: int | None = None,
    forecaster: Forecaster = _REUSE,
) -> Policy:
    """TeaCache (2411.19108): reuse the stack's residual until the rescaled changes of a signal add up to ``threshold``.

    Use it where a fit is published for the model, with 20 steps or more.

    Args:
        threshold: 0 computes every step; by default the model's, for about half of the time.
        model: the model whose fit, signal and forced steps are used (``TEACACHE_MODELS``); by default that of the
            denoiser's class and configuration, and changes count as they are (with a warning) where nothing is
            published for it.
        coefficients: a custom fit, highest power first (``hicache tune --fit teacache``).
        warmup, cooldown: forced steps at the start and at the end; by default the model's.
        max_skips, exact: see ``TeaCacheGuard``.
    """
    guard = teacache_guard(threshold, model, coefficients, warmup, cooldown, max_skips, exact)
    return Policy(Free(), forecaster, scope, (guard,))


def teacache_guard(
    threshold: float | None,
    model: str | None,
    coefficients: Sequence[float] | None = None,
    warmup: int | None = None,
    cooldown: int | None = None,
    max_skips: int | None = None,
    exact: bool = False,
) -> TeaCacheGuard:
    """The guard of ``TeaCache``, which see."""
    given: dict[str, Any] = {"threshold": threshold, "warmup": warmup, "cooldown": cooldown}
    given = {name: value for name, value in given.items() if value is not None}
    if coefficients is not None:
        given["coefficients"] = numbers("TeaCache", "coefficients", coefficients)
    if model is not None:
        published = TEACACHE_MODELS[named("TeaCache", "model", model, TEACACHE_MODELS)]
        by_model: tuple[str, ...] = ()
    else:  # a fit of one's own is of the signal that most models have
        published, by_model = UNPUBLISHED, PUBLISHED if coefficients is None else ("threshold",)
    left_open = tuple(name for name in by_model if name not in given)
    values = {name: getattr(published, name) for name in PUBLISHED} | given
    return TeaCacheGuard(**values, exact=exact, max_skips=max_skips, left_open=left_open)
