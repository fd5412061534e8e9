"""Train the demo model: ``python -m hicache_compile.demo.train OUT``.

A rectified flow (Liu et al., 2209.03003) on the digits: ``x_t = (1 - t) x_0 + t e``, and the transformer learns the
velocity ``e - x_0``. A tenth of the labels are dropped, for guidance. The saved weights are the exponential moving
average, in fp16, in the diffusers folder format.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel

from hicache_compile.demo import digits
from hicache_compile.demo.training import Plan
from hicache_compile.demo.training import train as train_by
from hicache_compile.policy.progress import script

CONFIG = {
    "patch_size": 1,
    "in_channels": digits.CHANNELS,
    "num_layers": 2,
    "num_single_layers": 4,
    "attention_head_dim": 32,
    "num_attention_heads": 4,
    "joint_attention_dim": digits.TEXT_DIM,
    "pooled_projection_dim": digits.CLASSES,
    "guidance_embeds": False,
    "axes_dims_rope": (8, 12, 12),
}


def loss_of(
    model: Callable[..., Any], images: torch.Tensor, labels: torch.Tensor, generator: torch.Generator
) -> torch.Tensor:
    """The rectified-flow loss of one batch, with times from a logit-normal distribution (Esser et al., 2403.03206)."""
    clean = digits.pack(images)
    noise = torch.randn(clean.shape, generator=generator)
    time = torch.sigmoid(torch.randn(len(images), generator=generator))
    dropped = torch.rand(len(labels), generator=generator) < 0.1
    noisy = torch.lerp(clean, noise, time[:, None, None])
    velocity = model(
        hidden_states=noisy,
        timestep=time,
        **digits.prompt(labels.masked_fill(dropped, digits.NO_CLASS)),
        return_dict=False,
    )[0]
    return (velocity - (noise - clean)).square().mean()


def train(out: Path, plan: Plan, batch: int = 64) -> FluxTransformer2DModel:
    """Train by ``plan``, with a checkpoint in ``out``, and return the moving average of the weights."""
    torch.manual_seed(plan.seed)
    images, labels = digits.dataset()
    model = FluxTransformer2DModel(**CONFIG)
    model.compile()

    def loss(model: FluxTransformer2DModel, generator: torch.Generator) -> torch.Tensor:
        chosen = torch.randint(len(images), (batch,), generator=generator)
        return loss_of(model, images[chosen], labels[chosen], generator)

    return train_by(model, loss, plan, out / "digits.pt")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with script():
        model = train(arguments.out, Plan(arguments.steps, rate=2e-3, seed=arguments.seed))
        model.to(torch.float16).save_pretrained(arguments.out / "transformer")
        FlowMatchEulerDiscreteScheduler(shift=1.0).save_pretrained(arguments.out / "scheduler")


if __name__ == "__main__":
    main()
