"""Load the demo model and sample digits with it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from importlib.resources import as_file, files
from typing import Any

import torch
from torch import nn

from hicache_compile.demo import digits
from hicache_compile.frontend.denoiser import CompiledDenoiser

RANGE = 2.0  # of the values of an image


@dataclass(frozen=True, slots=True)
class Sample:
    """Images ``[B, 16, 16]`` in about [-1, 1], and the seconds of each step so far."""

    images: torch.Tensor
    step_seconds: Sequence[float]

    @property
    def seconds(self) -> float:
        """Of all steps."""
        return sum(self.step_seconds)


def psnr(found: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Of each image ``[B, ...]``, in dB over ``RANGE``; infinite where it is bit for bit the one that is wanted."""
    return 10 * torch.log10(RANGE**2 / (found - wanted).square().flatten(1).mean(1))


def load_model() -> nn.Module:
    """The trained transformer, 2.3 M parameters, in float32."""
    from diffusers import FluxTransformer2DModel
    from diffusers.utils import logging

    logging.set_verbosity_error()  # hides a recommendation of accelerate, which a small model does not need
    with as_file(files("hicache_compile.demo") / "digits-model" / "transformer") as folder:
        return FluxTransformer2DModel.from_pretrained(folder, torch_dtype=torch.float32).eval()


def load_scheduler() -> Any:
    """The model's ``FlowMatchEulerDiscreteScheduler``."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    with as_file(files("hicache_compile.demo") / "digits-model" / "scheduler") as folder:
        return FlowMatchEulerDiscreteScheduler.from_pretrained(folder)


@torch.no_grad()
def sample_by_steps(denoiser: nn.Module, labels: torch.Tensor, num_steps: int = 50, seed: int = 0) -> Iterator[Sample]:
    """The sample after each step, of one digit for each of ``labels`` ``[B]``; the same seed gives the same noise.

    A compiled denoiser makes no other steps while this goes on.
    """
    scheduler = load_scheduler()
    scheduler.set_timesteps(num_steps)
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(len(labels), digits.TOKENS, digits.CHANNELS, generator=generator)
    conditioning = digits.prompt(labels)
    seconds: list[float] = []
    with denoiser.trajectory(num_steps) if isinstance(denoiser, CompiledDenoiser) else nullcontext():
        for timestep in scheduler.timesteps:
            began = time.perf_counter()
            velocity = denoiser(
                hidden_states=x,
                timestep=(timestep / 1000).expand(len(x)),
                **conditioning,
                return_dict=False,
            )[0]
            x = scheduler.step(velocity, timestep, x, return_dict=False)[0]
            seconds.append(time.perf_counter() - began)
            yield Sample(digits.unpack(x), seconds)


def sample(
    denoiser: nn.Module,
    labels: torch.Tensor,
    num_steps: int = 50,
    seed: int = 0,
    on_step: Callable[[], object] = lambda: None,
) -> Sample:
    """The sample after the last of ``sample_by_steps``; ``on_step`` is called after each."""
    for now in sample_by_steps(denoiser, labels, num_steps, seed):  # noqa: B007  # the last one is the result
        on_step()
    return now
