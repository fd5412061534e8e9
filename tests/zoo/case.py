"""One denoiser of the zoo: a real class of diffusers built small, and how it is called in a sampling loop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


def first_tensor(output: Any) -> Tensor:
    """The first tensor of what a model returned: a tensor, a tuple, a list or an output dataclass."""
    while not isinstance(output, Tensor):
        output = output[0]
    return output


@dataclass(frozen=True, slots=True)
class Case:
    """A denoiser and one call of it.

    Args:
        name: its class name in diffusers.
        build: ``build(layers)`` makes the model in eval mode and float32, its (main) block lists ``layers`` long.
        start: ``start(batch, size)`` is the noise ``x`` a run starts from; ``size`` 0, 1, 2 are different spatial
            sizes (token counts), 1 being an odd one.
        arguments: ``arguments(x, t)`` are the keyword arguments of one call for the state ``x`` at time ``t``, which
            runs from 1 down to 0; conditioning is the same at each call, follows the batch of ``x`` and, where it is
            floating, its dtype.
        velocity: what the call returned, as a tensor of the shape of ``x``.
        reason: why this class is not part of the coverage; empty when it is.
    """

    name: str
    build: Callable[[int], nn.Module]
    start: Callable[[int, int], Tensor]
    arguments: Callable[[Tensor, float], dict[str, Any]]
    velocity: Callable[[Any], Tensor] = first_tensor
    reason: str = ""


def constant(*shape: int, like: Tensor, seed: int = 7) -> Tensor:
    """Normal numbers ``[*shape]`` that are the same at each call, in the dtype of ``like``."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(like.dtype)


def enliven(model: nn.Module, seed: int = 0) -> nn.Module:
    """Random numbers for the parameters a fresh model starts with at zero (gates, final layers), so that every
    block contributes and the output moves."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point() and not parameter.any():
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(0.1 * noise)
    return model
