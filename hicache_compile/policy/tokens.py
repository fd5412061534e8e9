"""Which tokens are computed in steps that are otherwise forecast: the third branch, between full and forecast."""

from __future__ import annotations

from dataclasses import replace

from hicache_compile.errors import HiCacheError, is_real, one_of, real_number, whole_number
from hicache_compile.policy.plain_data import plain_data

SELECTIONS = ("clusters", "score", "norm", "grid", "random")
SPREADS = ("none", "value", "error")
_SEEDS = 2**31


@plain_data
class Tokens:
    """In some of the steps that are not computed, MLPs compute a few of their tokens and forecast the others.

    What was computed stays until the next full step: it is added to the forecasts that follow, as their error at that
    token. One selection of tokens serves all sites of a stream (image and text tokens are told apart), and each sample
    has its own.

    Args:
        select: how tokens are chosen. ``"clusters"``: one at random of each cluster of k-means over the tokens of the
            last such site in the last full step (ClusCa, 2509.10312). ``"score"``: those that changed most between the
            last two full steps, plus ``staleness`` times the token-wise steps since a token was last computed, plus
            ``bonus`` times its score for the best token of each 2 x 2 cell of a square picture (ToCa, 2410.05317,
            without attention maps). ``"norm"``: those with the largest values in the last full step (DuCa, 2412.18911).
            ``"grid"``: evenly spaced, moved on in each step. ``"random"``: any.
        count: tokens of each stream that are computed; with ``"clusters"``: the number of clusters.
        share: the same as a part of all tokens, where ``count`` is not given.
        spread: what a computed token says about the others of its cluster. ``"none"``: nothing. ``"value"``: they move
            by ``blend`` towards its value (ClusCa). ``"error"``: ``blend`` of its error is added to them.
        blend: see ``spread``; the published gamma of ClusCa.
        every: of the steps that are not computed in a row, each ``every``-th is token-wise; 2 alternates, a forecast
            first (DuCa). A guard with a ``warning`` forecasts steps below it whole.
        iterations: of k-means in a full step, which goes on from the clusters before (ClusCa: 10).
        staleness, bonus: see ``select``.
        seed: of what is random; the same seed chooses the same tokens in every run.

    Raises:
        HiCacheError: a field is out of range, or ``spread`` without clusters.
    """

    select: str = "clusters"
    count: int | None = None
    share: float = 0.07
    spread: str = "none"
    blend: float = 0.005
    every: int = 1
    iterations: int = 10
    staleness: float = 0.25
    bonus: float = 0.6
    seed: int = 0

    def __post_init__(self) -> None:
        one_of("Tokens", "select", self.select, SELECTIONS)
        one_of("Tokens", "spread", self.spread, SPREADS)
        if self.count is not None:
            whole_number("Tokens", "count", self.count, 1)
        real_number("Tokens", "share", self.share, 0.0, 1.0)
        _from_zero("blend", self.blend, 1.0)
        whole_number("Tokens", "every", self.every, 1)
        whole_number("Tokens", "iterations", self.iterations, 1, 100)
        _from_zero("staleness", self.staleness, 1e3)
        _from_zero("bonus", self.bonus, 1e3)
        whole_number("Tokens", "seed", self.seed, 0, _SEEDS - 1)
        if self.spread != "none" and self.select != "clusters":
            raise HiCacheError(
                f"Tokens.spread = {self.spread!r}: must be 'none' with select={self.select!r}; it goes by clusters"
            )

    def of(self, tokens: int) -> int:
        """How many of a stream of ``tokens`` are computed."""
        wanted = self.count if self.count is not None else max(1, round(self.share * tokens))
        return min(wanted, tokens)

    def chosen_at(self, skipped: int) -> bool:
        """Whether a step is token-wise, the ``skipped``-th in a row (from 1) that is not computed."""
        return skipped % self.every == 0

    def draw(self, step: int) -> int:
        """The number that what is random in ``step`` follows from."""
        return (self.seed * 0x9E3779B1 + step * 0x85EBCA77 + 1) % _SEEDS

    @property
    def of_graph(self) -> Tokens:
        """What of this determines the graphs; the rest is data."""
        return replace(self, every=1, seed=0)


def _from_zero(field: str, value: object, high: float) -> None:
    if not is_real(value) or not 0 <= value <= high:  # type: ignore[operator]  # a number
        raise HiCacheError(f"Tokens.{field} = {value!r}: must be a number from 0 to {high:g}")
