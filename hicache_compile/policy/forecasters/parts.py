"""Values in parts, each with a forecaster of its own: bands of frequency (FreqCa), groups of channels (HyCa)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from hicache_compile.errors import HiCacheError, real_number
from hicache_compile.policy.compatibility import Trait, traits_of
from hicache_compile.policy.forecasters.base import Forecaster, Reuse, check_inner
from hicache_compile.policy.forecasters.differences import Hermite
from hicache_compile.policy.plain_data import plain_data
from hicache_compile.policy.run import RunInfo, bound

MOST_PARTS = 16  # told apart by a hexadecimal digit


@dataclass(frozen=True, slots=True)
class Bands:
    """Low and high frequencies along the tokens: see ``ByBand``."""

    cutoff: float
    grid: tuple[int, ...] | None = None

    @property
    def count(self) -> int:
        return 2


@dataclass(frozen=True, slots=True)
class Channels:
    """The part that each channel of each slot is in: see ``ByChannel``."""

    count: int
    chosen: tuple[str, ...]


@plain_data
class ByBand:
    """Low and high frequencies along the tokens of a slot, each with a forecaster of its own (FreqCa, 2510.08669).

    Its authors find that low frequencies hardly change from step to step, but do so without continuity, and that high
    ones change much, but smoothly: so they reuse the former and forecast the latter.

    Args:
        low, high: forecasters that go by steps alone.
        cutoff: the share of frequencies that is low, in (0, 1]: of the cosine transform, along each axis.
        grid: tokens as ``(H, W)`` or ``(T, H, W)``; slots with another number of tokens, and all where it is ``None``,
            are transformed along their order. A forecast of a slot of ``N`` tokens and ``C`` channels costs
            ``4 cutoff N^2 C`` FLOPs more without a grid, and ``4 cutoff (H + W) N C`` with one: give it.

    Slots are ``[B, N, C]`` or ``[B, *axes, C]``.

    Raises:
        HiCacheError: a forecaster is none, reads anchors or has weights for each slot; another field is out of range.
    """

    low: Forecaster = field(default_factory=Reuse)
    high: Forecaster = field(default_factory=Hermite)
    cutoff: float = 0.25
    grid: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        check_inner("ByBand", "low", self.low)
        check_inner("ByBand", "high", self.high)
        real_number("ByBand", "cutoff", self.cutoff, 0.0, 1.0)
        if not self.cutoff:
            raise HiCacheError("ByBand.cutoff = 0: must be above 0 and at most 1")
        if self.grid is not None:
            sizes = tuple(self.grid) if isinstance(self.grid, tuple | list) else ()
            whole = all(isinstance(size, int) and not isinstance(size, bool) and size >= 1 for size in sizes)
            if len(sizes) not in (2, 3) or not whole:
                raise HiCacheError(f"ByBand.grid = {self.grid!r}: must be (H, W) or (T, H, W), in whole numbers >= 1")
            object.__setattr__(self, "grid", sizes)

    @property
    def parts(self) -> Bands:
        """What determines the compiled graph."""
        return Bands(self.cutoff, self.grid)

    @property
    def forecasters(self) -> tuple[Forecaster, ...]:
        return self.low, self.high

    @property
    def traits(self) -> frozenset[Trait]:
        return _traits(self.forecasters)

    def bind(self, run: RunInfo) -> ByBand:
        """The forecasters for ``run``."""
        return ByBand(bound(self.low, run), bound(self.high, run), self.cutoff, self.grid)

    def weights(self, anchors: Sequence[int], target: int) -> list[float]:
        """The weights of the high frequencies."""
        return _of_last(self.forecasters, anchors, target)


@plain_data
class ByChannel:
    """Each channel of a slot is forecast by the one of several forecasters that suits it (HyCa, 2510.04188).

    ``hicache tune --fit channels`` measures which one that is: channels that change alike are clustered, and each
    cluster gets the forecaster of the least error.

    Args:
        forecasters: two or more that go by steps alone.
        chosen: for each slot, in the order of the slots at the policy's scope, a text with a hexadecimal digit for each
            of its channels (its last dimension): the number of its forecaster. It is empty for a slot that no forecast
            reads.

    Raises:
        HiCacheError: a forecaster is none, reads anchors or has weights for each slot; ``chosen`` names one that is not
            there.
    """

    forecasters: tuple[Forecaster, ...]
    chosen: tuple[str, ...]

    def __post_init__(self) -> None:
        given = tuple(self.forecasters) if isinstance(self.forecasters, list | tuple) else ()
        if not 2 <= len(given) <= MOST_PARTS:
            raise HiCacheError(
                f"ByChannel.forecasters = {self.forecasters!r:.80}: must be a list of 2 to {MOST_PARTS} forecasters"
            )
        for forecaster in given:
            check_inner("ByChannel", "forecasters", forecaster, given)
        object.__setattr__(self, "forecasters", given)
        chosen = tuple(self.chosen) if isinstance(self.chosen, list | tuple) else ()
        digits = {f"{number:x}" for number in range(len(given))}
        if not chosen or not all(isinstance(slot, str) and set(slot) <= digits for slot in chosen):
            raise HiCacheError(
                f"ByChannel.chosen = {self.chosen!r:.80}: must hold for each slot a text like '0110', the hexadecimal "
                f"numbers of the forecasters of its channels, 0 to {len(given) - 1:x}"
            )
        object.__setattr__(self, "chosen", chosen)

    @property
    def parts(self) -> Channels:
        """What determines the compiled graph."""
        return Channels(len(self.forecasters), self.chosen)

    @property
    def traits(self) -> frozenset[Trait]:
        return _traits(self.forecasters)

    def bind(self, run: RunInfo) -> ByChannel:
        """The forecasters for ``run``."""
        return ByChannel(tuple(bound(forecaster, run) for forecaster in self.forecasters), self.chosen)

    def weights(self, anchors: Sequence[int], target: int) -> list[float]:
        """The weights of the last forecaster."""
        return _of_last(self.forecasters, anchors, target)


def _traits(forecasters: Sequence[Forecaster]) -> frozenset[Trait]:
    return frozenset({Trait.IN_PARTS}).union(*map(traits_of, forecasters)) - {Trait.REUSES}


def _of_last(forecasters: Sequence[Forecaster], anchors: Sequence[int], target: int) -> list[float]:
    """The weights of the last one, for as many anchors as any of them reads."""
    rows = [forecaster.weights(anchors, target) for forecaster in forecasters]
    return [*rows[-1], *[0.0] * (max(map(len, rows)) - len(rows[-1]))]
