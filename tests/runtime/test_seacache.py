"""SeaCache: the filter against an FFT in float64, and runs against a plain loop that decides as it is published."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hicache_compile import HiCacheError, SeaCache, hicache_compile
from hicache_compile.export.plan import check_fits
from hicache_compile.operators.measurements import change, low_passed
from tests.support.models import ToyDiT, flux_inputs, random_flux, trace

STEPS = 8
SIGMAS = [3 * u / (1 + 2 * u) for u in (1 - step / STEPS for step in range(STEPS))]


def filtered(x: np.ndarray, sigma: float, exponent: float, axes: tuple[int, ...]) -> np.ndarray:
    """The published formula, by FFT: the Wiener gain of ``(1 - sigma) x0 + sigma n`` with spectrum 1 / f^exponent."""
    sigma = min(max(sigma, 1e-6), 1 - 1e-6)
    gains = np.ones(())
    for axis in axes:
        f = np.abs(np.fft.fftfreq(x.shape[axis]))
        spectrum = 1 / (f**exponent + 1e-16)
        gain = (1 - sigma) * spectrum / ((1 - sigma) ** 2 * spectrum + sigma**2 + 1e-16)
        gains = gains * gain.reshape([-1 if other == axis else 1 for other in range(x.ndim)])
    return np.fft.ifftn(np.fft.fftn(x, axes=axes) * gains / gains.mean(), axes=axes).real


def signal(shape: tuple[int, ...], sigma: float) -> np.ndarray:
    """``[B, C, (T,) H, W]``: something smooth, and something rough that goes as sigma falls."""
    b, c, *t, h, w = np.meshgrid(*map(np.arange, shape), indexing="ij")
    time = t[0] if t else 0
    smooth = np.sin(0.9 * h + 0.6 * w + 0.4 * c + 0.2 * time + b) + 0.25
    return (1 - sigma) * smooth + sigma * np.cos(5.1 * h - 3.7 * w + 2.3 * c + 1.9 * time)


@pytest.mark.parametrize("shape", [(1, 3, 4, 4), (2, 2, 3, 4, 5), (1, 3, 1, 4, 6)])
@pytest.mark.parametrize("sigma", [1.0, 0.7, 0.02])
def test_the_filter_is_that_of_an_fft(shape: tuple[int, ...], sigma: float) -> None:
    x, axes = signal(shape, sigma), tuple(range(2, len(shape)))
    expected = filtered(x, sigma, len(axes), axes)
    for time in (torch.tensor(sigma), torch.full((shape[0],), 1000 * sigma)):
        found = low_passed(torch.tensor(x, dtype=torch.float32), time, None, None)
        assert np.abs(found.numpy() - expected).max() < 2e-5 * np.abs(expected).max()


def test_tokens_are_laid_out_in_the_grid_and_samples_have_times_of_their_own() -> None:
    x = torch.tensor(signal((2, 3, 4, 6), 0.5), dtype=torch.float32)
    times = torch.tensor([0.9, 0.3])
    apart = torch.cat([low_passed(x[i : i + 1], times[i], 3.0, None) for i in range(2)])
    tokens = low_passed(x.flatten(2).transpose(1, 2), times, 3.0, (4, 6))
    torch.testing.assert_close(tokens.movedim(-1, 1), apart)


def test_changes_of_published_vectors() -> None:
    """Case A and B: 4x4, three channels, sigma .7 to .5."""
    for exponent, expected in ((2.0, 0.2905442894), (3.0, 0.3292656936)):
        before, now = (
            low_passed(torch.tensor(signal((1, 3, 4, 4), s), dtype=torch.float32), torch.tensor(s), exponent, None)
            for s in (0.7, 0.5)
        )
        assert float(change(now, before)) == pytest.approx(expected, rel=1e-5)


class Pixels(ToyDiT):
    """The toy on pictures ``[B, 16, 4, 4]``."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return super().forward(x.flatten(2).transpose(1, 2), t).transpose(1, 2).unflatten(2, (4, 4))


@pytest.mark.parametrize(
    ("threshold", "cap", "backend"),
    [(0.25, 2, "eager"), (1.0, 2, "eager"), (1.0, None, "aot_eager"), (0.0, 2, "eager"), (1.0, None, "cond_eager")],
)
def test_steps_are_decided_as_published(threshold: float, cap: int | None, backend: str) -> None:
    compiled = hicache_compile(Pixels(), SeaCache(threshold, 3.0, max_skips=cap), backend=backend)
    xs = [signal((1, 16, 4, 4), sigma) for sigma in SIGMAS]
    with compiled.trajectory(STEPS), torch.no_grad():
        for x, sigma in zip(xs, SIGMAS, strict=True):
            compiled(torch.tensor(x, dtype=torch.float32), torch.full((1,), sigma))
    expected, total, skipped, before = "", 0.0, 0, None
    for step, (x, sigma) in enumerate(zip(xs, SIGMAS, strict=True)):
        now = filtered(x, sigma, 3.0, (2, 3))
        forced = step in (0, STEPS - 1) or (cap is not None and skipped >= cap)
        total += 0.0 if forced or before is None else float(np.abs(now - before).mean() / np.abs(before).mean())
        computed = forced or total >= threshold
        expected, total, skipped = expected + ".F"[computed], 0.0 if computed else total, 0 if computed else skipped + 1
        before = now
    assert compiled.report().decisions() == expected


def test_threshold_zero_is_the_denoiser_itself() -> None:
    model, inputs = random_flux(1, 2), flux_inputs(batch=1)
    compiled = hicache_compile(model, SeaCache(0.0, grid=(4, 4)), backend="eager")
    with compiled.trajectory(6):
        assert torch.equal(trace(compiled, inputs, 6), trace(model, inputs, 6))


@pytest.mark.parametrize("grid", [None, (3, 4)])
def test_a_grid_that_does_not_fit_says_what_would(grid: tuple[int, ...] | None) -> None:
    compiled = hicache_compile(random_flux(1, 2), SeaCache(grid=grid), backend="eager")
    said = r"SeaCacheGuard.grid = .*: must be .* of the 16 tokens"
    with pytest.raises(HiCacheError, match=said), compiled.trajectory(4):
        trace(compiled, flux_inputs(), 4)


def test_a_denoiser_without_a_time_says_so() -> None:
    class Timeless(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            for block in self.blocks:
                x = x + block(x).sin()
            return x

    compiled = hicache_compile(Timeless(), SeaCache(), backend="eager")
    with pytest.raises(HiCacheError, match="time input: its graph must have one"), compiled.trajectory(4):
        compiled(torch.ones(1, 3, 4, 4))


def test_the_modulated_input_and_a_time_that_rises() -> None:
    """The filter of 1 - t as 1 - sigma is the filter of t."""
    x = torch.tensor(signal((1, 3, 4, 4), 0.7), dtype=torch.float32)
    torch.testing.assert_close(
        low_passed(x, torch.tensor(0.3), None, None, rising=True), low_passed(x, torch.tensor(0.7), None, None)
    )
    compiled = hicache_compile(random_flux(1, 2), SeaCache(1e9, grid=(4, 4), signal="modulated"), backend="eager")
    with compiled.trajectory(6):
        trace(compiled, flux_inputs(), 6)
    assert compiled.report().decisions() == "F..F.F"


def test_a_file_exported_with_another_filter_is_refused() -> None:
    with pytest.raises(HiCacheError, match="has probes"):
        check_fits(SeaCache(exponent=3.0), SeaCache(exponent=2.0))
