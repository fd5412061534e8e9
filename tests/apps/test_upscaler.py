"""The upscaler: a denoiser of a user's own, which draws a row of blocks after another."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hicache_compile import HiCache, hicache_compile
from hicache_compile.demo.emoji.captions import Subject
from hicache_compile.demo.emoji.train_upscaler import is_unseen, loss_of, vary
from hicache_compile.demo.emoji.upscaler import Upscaler, enlarged, from_blocks, into_blocks, shrunk, upscale


def random_upscaler() -> Upscaler:
    torch.manual_seed(0)
    model = Upscaler().requires_grad_(False)
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.05)
    return model


def inputs(height: int = 64, width: int = 64) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    noisy = torch.randn(2, 3, height, width, generator=generator)
    return noisy, torch.tensor([0.5, 0.7]), torch.randn(2, 3, height // 4, width // 4, generator=generator)


def test_blocks_are_squares_of_tokens_which_are_squares_of_pixels() -> None:
    pictures = torch.randn(2, 3, 32, 64)
    blocks = into_blocks(pictures)
    assert blocks.shape == (2, 2, 4, 16, 48)
    token = blocks[1, 1, 2, 5].unflatten(0, (3, 4, 4))  # second row, third column; of its tokens likewise 1, 1
    assert torch.equal(token, pictures[1, :, 16 + 4 : 16 + 8, 32 + 4 : 32 + 8])
    assert torch.equal(from_blocks(blocks), pictures)


@pytest.mark.parametrize("block", [(0, 0), (1, 2), (3, 3)])
def test_a_block_is_seen_right_of_it_and_below_alone(block: tuple[int, int]) -> None:
    model, (noisy, time, small) = random_upscaler(), inputs()
    row, column = block
    changed = noisy.clone()
    changed[:, :, 16 * row : 16 * row + 16, 16 * column : 16 * column + 16] += 1
    off = (model(changed, time, small) - model(noisy, time, small)).abs().amax(dim=(0, 1))
    seen = off.unflatten(0, (4, 16)).unflatten(2, (4, 16)).amax(dim=(1, 3)) > 0
    expected = torch.zeros(4, 4, dtype=torch.bool)
    expected[row:, column:] = True
    assert torch.equal(seen, expected)


def test_a_row_needs_no_more_than_the_last_row_above() -> None:
    """The upper half alone is drawn like the upper half of the whole."""
    model, (noisy, time, small) = random_upscaler(), inputs()
    whole = model(noisy, time, small)
    upper = model(noisy[:, :, :32], time, small[:, :, :8])
    away = slice(0, 28)  # the bicubic enlargement looks at pixels below
    assert torch.allclose(whole[:, :, away][:, :, :16], upper[:, :, away][:, :, :16], atol=1e-5)


@pytest.mark.parametrize("scope", ["module", "block", "stack", "output"])
def test_it_is_cached_like_any_other(scope: str) -> None:
    model = random_upscaler()
    small = inputs()[2]
    compiled = hicache_compile(model, HiCache(interval=1, scope=scope), backend="eager")
    with compiled.trajectory(8):
        assert torch.equal(upscale(compiled, small, 8), upscale(model, small, 8))
    compiled.policy = HiCache(interval=3, scope=scope)
    with compiled.trajectory(8):
        upscale(compiled, small, 8)
    report = compiled.report()
    assert report.decisions() == "FFF..F.."
    assert report.graph_breaks == 0
    assert report.flops_forecast < (0.35 if scope == "module" else 0.02) * report.flops_full


def test_what_it_learns_from() -> None:
    pictures = torch.rand(4, 3, 64, 64) * 2 - 1
    varied = vary(pictures, torch.Generator().manual_seed(0))
    assert varied.shape == pictures.shape
    assert torch.equal(varied, vary(pictures, torch.Generator().manual_seed(0)))
    flat = torch.full((1, 3, 64, 64), 0.25)
    assert torch.allclose(enlarged(shrunk(flat)), flat)
    loss = loss_of(Upscaler().requires_grad_(False), pictures, torch.Generator().manual_seed(0))
    assert 0.5 < float(loss) < 4
    model = Upscaler()
    for step in range(2):  # the first opens the gates of the layers
        model.zero_grad()
        loss_of(model, pictures, torch.Generator().manual_seed(step)).backward()
        with torch.no_grad():
            for weight in model.parameters():
                weight.sub_(0.1 * weight.grad)  # type: ignore[operator]  # each has one
    assert all(weight.grad.abs().max() > 0 for weight in model.layers.parameters())  # type: ignore[union-attr]
    assert is_unseen(Subject("owl", "flat"))  # held out
    assert is_unseen(Subject("owl", "noto"))
    assert not is_unseen(Subject("red heart", "flat"))
