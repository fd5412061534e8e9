"""Two forecasts, mixed."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest

from hicache_compile.errors import real_number
from hicache_compile.policy.compatibility import Trait, traits_of
from hicache_compile.policy.forecasters.base import Forecaster, check_inner
from hicache_compile.policy.plain_data import plain_data
from hicache_compile.policy.run import RunInfo, bound


@plain_data
class Mixed:
    """``share * forecaster + (1 - share) * second``: Spectrum mixes a global fit with a line this way.

    Args:
        forecaster, second: forecasters that go by steps alone.
        share: in (0, 1].

    Raises:
        HiCacheError: one of them is no such forecaster, or ``share`` is out of range.
    """

    forecaster: Forecaster
    second: Forecaster
    share: float = 0.5

    def __post_init__(self) -> None:
        check_inner("Mixed", "forecaster", self.forecaster)
        check_inner("Mixed", "second", self.second)
        real_number("Mixed", "share", self.share, 0, 1)

    @property
    def traits(self) -> frozenset[Trait]:
        return (traits_of(self.forecaster) | traits_of(self.second)) - {Trait.REUSES}

    def bind(self, run: RunInfo) -> Mixed:
        """The forecasters for ``run``."""
        return Mixed(bound(self.forecaster, run), bound(self.second, run), self.share)

    def weights(self, anchors: Sequence[int], target: int) -> list[float]:
        parts = self.forecaster.weights(anchors, target), self.second.weights(anchors, target)
        return [self.share * a + (1.0 - self.share) * b for a, b in zip_longest(*parts, fillvalue=0.0)]
