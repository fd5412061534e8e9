"""SeaCache (2602.18993): changes of a signal, filtered to what is no noise in it, are added up to a threshold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from hicache_compile.errors import HiCacheError, one_of, real_number, true_or_false, whole_number
from hicache_compile.policy.guards.arithmetic import Arithmetic, Number, Numbers, Truth
from hicache_compile.policy.guards.base import Guard, Measure, Probe, Signal, SpectralFilter, nonnegative
from hicache_compile.policy.plain_data import plain_data


@plain_data
class SeaCacheGuard(Guard):
    """Skip while ``sum change(filtered signal)`` since the last computed step is below ``threshold``.

    The filter is the Wiener filter of a rectified flow for a spectrum ``1 / |f|^exponent``: at the start of a run only
    low frequencies are signal. It reads sigma off the denoiser's time input: a float up to 1 is sigma, anything else
    1000 sigma. Denoisers that are no rectified flows (DiT, PixArt, SDXL) have another sigma: use another guard.

    Args:
        threshold: 0 computes every step.
        exponent: of the spectrum; ``None``: 2 for images, 3 for videos.
        grid: tokens as ``(H, W)`` or ``(T, H, W)``, where the signal is ``[B, N, C]``; ``[B, C, H, W]`` and
            ``[B, C, T, H, W]`` show their grid.
        signal: ``"input"``, the noisy input (as diffusers does), or ``"modulated"``, the modulated input of block 0 (as
            the authors do).
        rising: the time input is 1 - sigma (Lumina, Z-Image).
    """

    threshold: float = 0.25
    exponent: float | None = None
    grid: tuple[int, ...] | None = None
    signal: str = "input"
    rising: bool = False

    remembers: ClassVar[Mapping[str, float]] = {"accumulated": 0.0}
    numbers_are_data: ClassVar[bool] = True

    def __post_init__(self) -> None:
        self.check()
        nonnegative("SeaCacheGuard", "threshold", self.threshold)
        if self.exponent is not None:
            real_number("SeaCacheGuard", "exponent", self.exponent, 0.0, 10.0)
        if self.grid is not None:
            if not isinstance(self.grid, tuple | list) or len(self.grid) not in (2, 3):
                raise HiCacheError(f"SeaCacheGuard.grid = {self.grid!r}: must be (H, W) or (T, H, W)")
            object.__setattr__(self, "grid", tuple(self.grid))
            for size in self.grid:
                whole_number("SeaCacheGuard", "grid", size, 1)
        one_of("SeaCacheGuard", "signal", self.signal, (Signal.INPUT, Signal.MODULATED))
        true_or_false("SeaCacheGuard", "rising", self.rising)

    @property
    def probe(self) -> Probe:
        return Probe(Measure.CHANGE, Signal(self.signal), filter=SpectralFilter(self.exponent, self.grid, self.rising))

    def parameters(self, num_steps: int | None) -> Mapping[str, float | Sequence[float]]:
        return {"threshold": self.threshold}

    def ask(self, m: Arithmetic, p: Numbers, s: Numbers, step: Number, seen: Sequence[Number]) -> tuple[Truth, Numbers]:
        total = s.accumulated + seen[0]
        return (p.threshold > 0) & (total < p.threshold), s.replace(accumulated=total)

    def after_full(self, m: Arithmetic, p: Numbers, s: Numbers, step: Number, seen: Sequence[Number]) -> Numbers:
        return s.replace(accumulated=0.0)
