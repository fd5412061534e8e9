"""The autoencoder: pictures of 64x64 pixels to latents of 8 channels and 16x16, with ``AutoencoderTiny`` of diffusers.

It learns to decode what it encoded after noise was added, so that it forgives the small errors of a sampled latent.
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderTiny
from torch.nn import functional

from hicache_compile.demo.emoji import SIZE
from hicache_compile.demo.emoji.icons import to_values
from hicache_compile.demo.training import Plan, train

CHANNELS = 8
FACTOR = 4  # pixels a side of one latent
WIDTH = 32
NOISE = 0.1  # standard deviation, of latents of standard deviation 1
BATCH = 16


def new_autoencoder() -> AutoencoderTiny:
    """Untrained: 0.27 M parameters."""
    return AutoencoderTiny(
        encoder_block_out_channels=(WIDTH,) * 3,
        decoder_block_out_channels=(WIDTH,) * 3,
        num_encoder_blocks=(0, 1, 2),
        num_decoder_blocks=(3, 2, 0),
        latent_channels=CHANNELS,
    )


def loss_of(model: AutoencoderTiny, pictures: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """The error of the decoded ``pictures``, float32 ``[B, 3, 64, 64]`` in [-1, 1], and of their edges.

    The last term holds the mean of each channel of the latents near 0 and its variance near 1.
    """
    latents = model.encode(pictures).latents
    noise = NOISE * torch.randn(latents.shape, generator=generator)
    decoded = model.decode(latents + noise).sample
    error = functional.smooth_l1_loss(decoded, pictures, beta=0.1)
    edges = sum(functional.l1_loss(decoded.diff(dim=axis), pictures.diff(dim=axis)) for axis in (2, 3))
    variance, mean = torch.var_mean(latents, dim=(0, 2, 3))
    return error + 0.5 * edges + 0.1 * (mean.square() + (variance - 1).square()).mean()


def train_autoencoder(pictures: torch.Tensor, plan: Plan, out: Path) -> AutoencoderTiny:
    """Train on ``pictures``, uint8 ``[N, 3, 64, 64]``, half of them mirrored."""
    torch.manual_seed(plan.seed)

    def loss(model: AutoencoderTiny, generator: torch.Generator) -> torch.Tensor:
        chosen = torch.randint(len(pictures), (BATCH,), generator=generator)
        mirrored = torch.rand(BATCH, 1, 1, 1, generator=generator) < 0.5
        batch = to_values(pictures[chosen])
        return loss_of(model, torch.where(mirrored, batch.flip(3), batch), generator)

    model = new_autoencoder().to(memory_format=torch.channels_last)
    return train(model, loss, plan, out / "autoencoder.pt")


@torch.no_grad()
def encode(model: AutoencoderTiny, pictures: torch.Tensor) -> torch.Tensor:
    """Latents, float32 ``[N, 8, 16, 16]``, of ``pictures``, uint8 ``[N, 3, 64, 64]``."""
    return torch.cat([model.encode(to_values(batch)).latents for batch in pictures.split(64)])


assert SIZE % FACTOR == 0
