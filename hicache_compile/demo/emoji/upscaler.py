"""A user's own denoiser: it draws 64x64 pixels from 16x16, a row of blocks after another.

As in Inf-DiT (Yang et al., 2405.04312, section 3.1): the picture is cut into blocks, and in every layer a block attends
to itself and to the blocks left of it, above it, and above to the left. Only the keys and values of the last row above
are kept, so that memory grows with the width of a picture and not with its area.
"""

from __future__ import annotations

import math
from importlib.resources import files

import torch
from safetensors.torch import load
from torch import Tensor, nn
from torch.nn import functional

FACTOR = 4  # times larger
PATCH = 4  # pixels a side of a token
BLOCK = 4  # tokens a side of a block
WIDTH, HEADS, LAYERS = 128, 4, 6
TIMES = 128  # sines and cosines of the time

KeysAndValues = tuple[Tensor, Tensor]  # [B, C, H, n, d] each: of the C blocks of a row, n tokens each


class Layer(nn.Module):
    """Attention to the own block and its neighbours, and an MLP, both modulated by the time (DiT, 2212.09748)."""

    def __init__(self) -> None:
        super().__init__()
        self.modulation = nn.Linear(WIDTH, 6 * WIDTH)
        self.norm1 = nn.LayerNorm(WIDTH, elementwise_affine=False)
        self.norm2 = nn.LayerNorm(WIDTH, elementwise_affine=False)
        self.to_qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.to_out = nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU("tanh"), nn.Linear(4 * WIDTH, WIDTH))
        nn.init.zeros_(self.modulation.weight)  # at first each layer hands on its input
        nn.init.zeros_(self.modulation.bias)

    def forward(
        self, x: Tensor, time: Tensor, above: KeysAndValues | None, turns: KeysAndValues
    ) -> tuple[Tensor, KeysAndValues]:
        """A row of blocks ``x`` ``[B, C, n, D]``; ``time`` ``[B, D]``; ``turns``: cosines and sines of the positions.

        Returns the row, and its keys and values for the row below.
        """
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(time)[:, None, None].chunk(6, dim=-1)
        qkv = self.to_qkv(self.norm1(x) * (1 + scale1) + shift1).unflatten(-1, (3, HEADS, -1))
        query, key, value = qkv.permute(3, 0, 1, 4, 2, 5)
        query, key = turned(query, turns), turned(key, turns)
        rows = [(key, value)] if above is None else [(key, value), above]
        keys, values = (torch.cat([part for row in rows for part in (row[i], left(row[i]))], dim=3) for i in (0, 1))
        mask = is_there(x.shape[1], len(rows), x.shape[2], x.device)
        attended = functional.scaled_dot_product_attention(query, keys, values, attn_mask=mask)
        x = x + gate1 * self.to_out(attended.transpose(2, 3).flatten(3))
        x = x + gate2 * self.mlp(self.norm2(x) * (1 + scale2) + shift2)
        return x, (key, value)


def left(parts: Tensor) -> Tensor:
    """For every block of a row what its left neighbour has, ``[B, C, H, n, d]``; zeros for the first."""
    return functional.pad(parts, (0, 0, 0, 0, 0, 0, 1, 0))[:, :-1]


def is_there(blocks: int, rows: int, tokens: int, device: torch.device) -> Tensor:
    """Whether a key is one of a block that exists, ``[C, 1, 1, keys]``: the first has no left neighbour."""
    there = torch.ones(blocks, rows, 2, tokens, dtype=torch.bool, device=device)
    there[0, :, 1] = False
    return there.reshape(blocks, 1, 1, -1)


def turned(parts: Tensor, turns: KeysAndValues) -> Tensor:
    """``parts`` ``[B, C, H, n, d]`` rotated by their positions (RoFormer, 2104.09864)."""
    even, odd = parts.unflatten(-1, (-1, 2)).unbind(-1)
    cosine, sine = turns
    return torch.stack([even * cosine - odd * sine, even * sine + odd * cosine], dim=-1).flatten(-2)


def turns_of(rows: int, columns: int) -> KeysAndValues:
    """Cosines and sines ``[R, C, 1, n, d / 2]``: half of them turn with a token's row, half with its column."""
    count = WIDTH // HEADS // 4
    frequencies = 100.0 ** -(torch.arange(count) / count)
    place = torch.arange(BLOCK)
    down = (torch.arange(rows)[:, None, None, None] * BLOCK + place[:, None]).expand(rows, columns, BLOCK, BLOCK)
    across = (torch.arange(columns)[:, None, None] * BLOCK + place).expand(rows, columns, BLOCK, BLOCK)
    angles = torch.cat([axis.flatten(2)[..., None] * frequencies for axis in (down, across)], dim=-1)
    return angles.cos().unsqueeze(2), angles.sin().unsqueeze(2)


class Upscaler(nn.Module):
    """The velocity of a rectified flow: 1.8 M parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(2 * 3 * PATCH**2, WIDTH)
        self.time = nn.Sequential(nn.Linear(TIMES, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH), nn.SiLU())
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, 3 * PATCH**2)

    def forward(self, noisy: Tensor, timestep: Tensor, small: Tensor) -> Tensor:
        """The velocity of ``noisy`` ``[B, 3, H, W]`` at ``timestep`` ``[B]``, 1 (noise) to 0, given the ``small``
        picture ``[B, 3, H / 4, W / 4]``; sides are multiples of 16."""
        blocks = into_blocks(torch.cat([noisy, enlarged(small)], dim=1))
        time = self.time(sines(timestep))
        x = self.embed(blocks)
        cosine, sine = (turn.to(x) for turn in turns_of(x.shape[1], x.shape[2]))
        above: list[KeysAndValues | None] = [None] * LAYERS
        drawn = []
        for row in range(x.shape[1]):
            hidden = x[:, row]
            for index, layer in enumerate(self.layers):
                hidden, above[index] = layer(hidden, time, above[index], (cosine[row], sine[row]))
            drawn.append(hidden)
        return from_blocks(self.head(self.norm(torch.stack(drawn, dim=1))))


def enlarged(small: Tensor) -> Tensor:
    """``small`` ``[B, 3, h, w]``, ``FACTOR`` times larger by bicubic interpolation: what the model is to better."""
    return functional.interpolate(small, scale_factor=float(FACTOR), mode="bicubic", antialias=False)


def shrunk(pictures: Tensor) -> Tensor:
    """``pictures`` ``[B, 3, H, W]``, ``FACTOR`` times smaller: the mean of each square."""
    return functional.avg_pool2d(pictures, FACTOR)


def sines(timestep: Tensor) -> Tensor:
    """Sines and cosines ``[B, TIMES]`` of ``timestep`` ``[B]``."""
    frequencies = torch.exp(-math.log(1e4) * torch.arange(TIMES // 2, device=timestep.device) / (TIMES // 2))
    angles = 1000 * timestep[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def into_blocks(pictures: Tensor) -> Tensor:
    """``pictures`` ``[B, c, H, W]`` as blocks of tokens ``[B, R, C, n, c * PATCH ** 2]``."""
    side = BLOCK * PATCH
    cut = pictures.unflatten(3, (-1, BLOCK, PATCH)).unflatten(2, (pictures.shape[2] // side, BLOCK, PATCH))
    return cut.permute(0, 2, 5, 3, 6, 1, 4, 7).flatten(5).flatten(3, 4)


def from_blocks(blocks: Tensor) -> Tensor:
    """What ``into_blocks`` cut: pictures ``[B, 3, H, W]``."""
    cut = blocks.unflatten(4, (3, PATCH, PATCH)).unflatten(3, (BLOCK, BLOCK))
    return cut.permute(0, 5, 1, 3, 6, 2, 4, 7).flatten(5, 7).flatten(2, 4)


def load_upscaler() -> Upscaler:
    """The trained model, in float32."""
    model = Upscaler()
    weights = load(files("hicache_compile.demo.emoji").joinpath("upscaler.safetensors").read_bytes())
    model.load_state_dict({name: weight.float() for name, weight in weights.items()})
    return model.eval().requires_grad_(False)


@torch.no_grad()
def upscale(denoiser: nn.Module, small: Tensor, steps: int = 50, seed: int = 0) -> Tensor:
    """Pictures ``[B, 3, 64, 64]`` in [-1, 1] of ``small`` ones, in ``steps`` of Euler from noise of ``seed``."""
    generator = torch.Generator().manual_seed(seed)
    pictures = torch.randn(len(small), 3, *(FACTOR * side for side in small.shape[2:]), generator=generator)
    for step in range(steps):
        now = torch.full((len(small),), 1 - step / steps)
        pictures = pictures - denoiser(pictures, now, small) / steps
    return pictures.clamp(-1, 1)
