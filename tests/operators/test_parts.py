"""Bands of frequency against scipy's cosine transform, in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.fft import dctn, idctn

from hicache_compile.operators.parts import joined, low_frequencies


def reference(x: torch.Tensor, cutoff: float, axes: tuple[int, ...]) -> torch.Tensor:
    spectrum = dctn(x.double().numpy(), axes=axes, norm="ortho")
    for axis in axes:
        low = np.arange(x.shape[axis]) < max(1, int(cutoff * x.shape[axis]))
        spectrum = np.moveaxis(np.moveaxis(spectrum, axis, -1) * low, -1, axis)
    return torch.tensor(idctn(spectrum, axes=axes, norm="ortho"))


@pytest.mark.parametrize("cutoff", [0.01, 0.25, 0.5, 1.0])
@pytest.mark.parametrize("tokens", [5, 64, 1024])
def test_along_the_order_of_tokens(tokens: int, cutoff: float) -> None:
    x = torch.randn(2, tokens, 3)
    found = low_frequencies(x, cutoff, None)
    assert (found - reference(x, cutoff, (1,))).abs().max() < 1e-5


def test_on_a_grid_along_each_axis() -> None:
    x = torch.randn(2, 4 * 6, 3)
    found = low_frequencies(x, 0.5, (4, 6))
    wanted = reference(x.unflatten(1, (4, 6)), 0.5, (1, 2)).flatten(1, 2)
    assert (found - wanted).abs().max() < 1e-6
    other = torch.randn(2, 10, 3)  # text, which does not lie on the grid
    assert (low_frequencies(other, 0.5, (4, 6)) - reference(other, 0.5, (1,))).abs().max() < 1e-6


def test_axes_of_its_own() -> None:
    x = torch.randn(2, 4, 6, 3)
    assert (low_frequencies(x, 0.5, None) - reference(x, 0.5, (1, 2))).abs().max() < 1e-6


def test_the_parts_of_one_value_make_it_whole() -> None:
    x = torch.randn(2, 16, 4)
    assert torch.equal(joined([x, x], (0.25, (4, 4))), x)
    assert torch.equal(joined([x, x, x], "0120"), x)


def test_channels_come_from_their_own_piece() -> None:
    low, high = torch.zeros(1, 2, 4), torch.ones(1, 2, 4)
    assert joined([low, high], "0110")[0].tolist() == [[0, 1, 1, 0]] * 2
    assert torch.equal(joined([low, high], ""), low)
