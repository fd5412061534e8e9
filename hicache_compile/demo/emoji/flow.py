"""The flow: a FLUX transformer that draws the latents of a picture from its caption.

A rectified flow (Liu et al., 2209.03003): ``x_t = (1 - t) x_0 + t e``, and the model learns the velocity ``e - x_0``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from random import Random

import torch
from diffusers import FluxTransformer2DModel
from torch import nn
from torch.nn import functional

from hicache_compile.demo.emoji import SIZE, text
from hicache_compile.demo.emoji.autoencoder import CHANNELS, FACTOR
from hicache_compile.demo.emoji.captions import Subject, vary
from hicache_compile.demo.training import Plan, train

PATCH = 2  # latents a side of one token, as FLUX packs them
GRID = SIZE // FACTOR // PATCH
BATCH = 32
CONFIG = {
    "patch_size": 1,
    "in_channels": CHANNELS * PATCH * PATCH,
    "num_layers": 2,
    "num_single_layers": 6,
    "attention_head_dim": 32,
    "num_attention_heads": 5,
    "joint_attention_dim": text.WIDTH,
    "pooled_projection_dim": text.WIDTH,
    "guidance_embeds": False,
    "axes_dims_rope": (8, 12, 12),
}


def pack(latents: torch.Tensor) -> torch.Tensor:
    """Latents ``[B, 8, 16, 16]`` to tokens ``[B, 64, 32]``, in the order of ``FluxPipeline``."""
    patches = latents.unflatten(3, (GRID, PATCH)).unflatten(2, (GRID, PATCH))
    return patches.permute(0, 2, 4, 1, 3, 5).reshape(len(latents), GRID * GRID, -1)


class TextToPicture(nn.Module):
    """Text encoders and transformer with random weights: 1.1 M and 4.4 M parameters."""

    def __init__(self, captions: Sequence[str], compiled: bool = False) -> None:
        super().__init__()
        self.text = text.TextEncoders(captions)
        self.transformer = FluxTransformer2DModel(**CONFIG)
        # at first each block hands on its input (DiT, 2212.09748)
        for name, module in self.transformer.named_modules():
            if isinstance(module, nn.Linear) and ("norm" in name or name == "proj_out"):
                nn.init.zeros_(module.weight)
                nn.init.zeros_(module.bias)
        if compiled:
            self.transformer.compile()

    def forward(self, tokens: torch.Tensor, time: torch.Tensor, captions: Sequence[str]) -> torch.Tensor:
        """The velocity ``[B, 64, 32]`` of noisy ``tokens`` of that shape at ``time`` ``[B]``, where 1 is noise."""
        pooled, words = self.text(captions)
        rows = torch.arange(GRID, dtype=torch.float32)
        grid = torch.stack(torch.meshgrid(rows, rows, indexing="ij"), dim=-1).reshape(-1, 2)
        return self.transformer(
            hidden_states=tokens,
            timestep=time,
            encoder_hidden_states=words,
            pooled_projections=pooled,
            txt_ids=torch.zeros(words.shape[1], 3),
            img_ids=functional.pad(grid, (1, 0)),
            return_dict=False,
        )[0]


def draw_times(count: int, generator: torch.Generator) -> torch.Tensor:
    """Times ``[count]`` of a logit-normal distribution (Esser et al., 2403.03206), one from each of its quantiles."""
    quantiles = (torch.arange(count) + torch.rand(count, generator=generator)) / count
    return torch.sigmoid(torch.special.ndtri(quantiles.clamp(1e-4, 1 - 1e-4)))


def loss_of(model: nn.Module, clean: torch.Tensor, captions: Sequence[str], generator: torch.Generator) -> torch.Tensor:
    """The rectified-flow loss of ``clean`` tokens ``[B, 64, 32]``."""
    noise = torch.randn(clean.shape, generator=generator)
    time = draw_times(len(clean), generator)
    velocity = model(torch.lerp(clean, noise, time[:, None, None]), time, captions)
    return functional.mse_loss(velocity, noise - clean)


def train_flow(
    model: TextToPicture, latents: torch.Tensor, subjects: Sequence[Subject], plan: Plan, out: Path
) -> TextToPicture:
    """Train on ``latents`` ``[N, 8, 16, 16]``, of mean 0 and deviation 1, of ``subjects``, with ``vary``'s captions."""
    tokens = pack(latents)

    def loss(model: TextToPicture, generator: torch.Generator) -> torch.Tensor:
        chosen = torch.randint(len(tokens), (BATCH,), generator=generator)
        random = Random(int(torch.randint(2**31, (), generator=generator)))
        captions = [vary(subjects[index], random) for index in chosen.tolist()]
        return loss_of(model, tokens[chosen], captions, generator)

    return train(model, loss, plan, out / "flow.pt")
