"""Published methods that compute some tokens of MLPs in the steps they skip; attention is forecast or reused there.

As published, image and text tokens are chosen apart; blocks that compute attention and MLP in one (FLUX's single
blocks) are forecast.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from hicache_compile.policy.forecasters import Forecaster, Hermite, Reuse, Taylor
from hicache_compile.policy.policy import Policy
from hicache_compile.policy.presets.teacache import teacache_guard
from hicache_compile.policy.schedules.base import Free, Interval
from hicache_compile.policy.tokens import Tokens


def ToCa(
    interval: int = 4,
    share: float = 0.07,
    warmup: int = 1,
    *,
    staleness: float = 0.25,
    bonus: float = 0.6,
    cooldown: int = 0,
    forecaster: Forecaster | None = None,
) -> Policy:
    """ToCa (2410.05317): plain reuse, and in every skipped step the MLPs of the tokens that need it most.

    Use it to reproduce it; the score has no attention maps, which no fused attention gives: the size of the last change
    stands for them.

    Args:
        share: of the tokens, computed in a skipped step.
        interval, warmup, cooldown: see ``Interval``.
        staleness, bonus: see ``Tokens``.
    """
    tokens = Tokens("score", share=share, staleness=staleness, bonus=bonus)
    return Policy(Interval(interval, warmup, cooldown), forecaster or Reuse(), "module", tokens=tokens)


def DuCa(
    interval: int = 5,
    share: float = 0.07,
    warmup: int = 1,
    *,
    cooldown: int = 0,
    forecaster: Forecaster | None = None,
) -> Policy:
    """DuCa (2412.18911): skipped steps in turn reuse everything, and compute the MLPs of the tokens of largest values.

    Use it to reproduce it; steps that reuse everything do so module by module; the original reuses the last block.

    Args:
        share: of the tokens, computed in every second skipped step.
        interval, warmup, cooldown: see ``Interval``.
    """
    tokens = Tokens("norm", share=share, every=2)
    return Policy(Interval(interval, warmup, cooldown), forecaster or Reuse(), "module", tokens=tokens)


def ClusCa(
    interval: int = 5,
    order: int = 1,
    clusters: int = 16,
    blend: float = 0.005,
    warmup: int = 3,
    *,
    seed: int = 0,
    cooldown: int = 0,
    forecaster: Forecaster | None = None,
) -> Policy:
    """ClusCa (2509.10312): Taylor forecasts; in skipped steps the MLPs of one token of each cluster, which draws the
    others of its cluster a little towards its value.

    Use it to reproduce it, or where a few computed tokens should say whether forecasts are good.

    Args:
        clusters: of k-means over the tokens of each stream; as many tokens are computed.
        interval, warmup, cooldown: see ``Interval``.
        order: of the Taylor forecasts.
        blend: how far the others move, gamma.
        seed: of the token that is taken of each cluster.
    """
    tokens = Tokens("clusters", clusters, spread="value", blend=blend, seed=seed)
    return Policy(Interval(interval, warmup, cooldown), forecaster or Taylor(order), "module", tokens=tokens)


def HiClusCa(
    interval: int = 5,
    order: int = 2,
    sigma: float = 0.5,
    clusters: int = 16,
    blend: float = 0.005,
    warmup: int = 3,
    *,
    seed: int = 0,
    cooldown: int = 0,
) -> Policy:
    """ClusCa with HiCache's forecasts (2508.16984): scaled Hermite in place of Taylor.

    Use it where ClusCa is used: the same cost, a smaller error.

    Args:
        interval, clusters, blend, warmup, cooldown, seed: see ``ClusCa``.
        order, sigma: see ``Hermite``.
    """
    return ClusCa(interval, 1, clusters, blend, warmup, seed=seed, cooldown=cooldown, forecaster=Hermite(order, sigma))


def XSlim(
    threshold: float | None = None,
    warning: float = 0.5,
    model: str | None = None,
    *,
    coefficients: Sequence[float] | None = None,
    clusters: int = 16,
    blend: float = 0.005,
    seed: int = 0,
    warmup: int | None = None,
    cooldown: int | None = None,
    max_skips: int | None = None,
    forecaster: Forecaster | None = None,
) -> Policy:
    """X-Slim (2512.12604): whole steps are reused until TeaCache's sum comes to a warning line; from there on the MLPs
    of one token of each cluster are computed, and at ``threshold`` the step is.

    Use it where a fit is published for the model and its MLPs are sites of their own. What is polished are tokens, not
    blocks; the indicators are TeaCache's and ClusCa's, not those of its authors.

    Args:
        threshold, model, coefficients, warmup, cooldown, max_skips: see ``TeaCache``.
        warning: the line, as a share of ``threshold``; 1 polishes nothing.
        clusters, blend, seed: see ``ClusCa``.
        forecaster: by default ``Reuse()``.
    """
    guard = teacache_guard(threshold, model, coefficients, warmup, cooldown, max_skips)
    tokens = Tokens("clusters", clusters, spread="value", blend=blend, seed=seed)
    return Policy(Free(), forecaster or Reuse(), "module", (replace(guard, warning=warning),), tokens=tokens)
