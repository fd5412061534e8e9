"""One denoiser of the zoo: a real class of diffusers built small, and how it is called in a sampling loop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

GRIDS = ((4, 4), (3, 5), (6, 4))  # height and width in tokens of the sizes 0, 1 and 2


def first_tensor(output: Any) -> Tensor:
    """The first tensor of what a model returned: a tensor, a tuple, a list or an output dataclass."""
    while not isinstance(output, Tensor):
        output = output[0]
    return output


def half_channels(output: Any) -> Tensor:
    """The mean of a model that also predicts a variance in as many channels."""
    return first_tensor(output).chunk(2, dim=1)[0]


def stacked(output: Any) -> Tensor:
    """One tensor of a model that returns a list with one for each sample."""
    return torch.stack(list(output[0]))


@dataclass(frozen=True, slots=True)
class Case:
    """A denoiser and one call of it.

    Args:
        name: its class name in diffusers.
        config: ``config(layers)`` are the arguments of the class; the structure is that of the published
            checkpoint, the sizes are small, and the block lists are ``layers`` long.
        start: ``start(batch, height, width)`` is the shape of the state a run starts from; height and width are
            in tokens.
        arguments: ``arguments(x, t, height, width)`` are the keyword arguments of one call for the state ``x`` at
            time ``t``, which runs from 1 down to 0; conditioning is the same at each call and follows the batch of
            ``x`` and, where it is floating, its dtype.
        velocity: what the call returned, as a tensor of the shape of ``x``.
        reason: why this class is not part of the coverage; empty when it is.
    """

    name: str
    config: Callable[[int], dict[str, Any]]
    start: Callable[[int, int, int], tuple[int, ...]]
    arguments: Callable[[Tensor, float, int, int], dict[str, Any]]
    velocity: Callable[[Any], Tensor] = first_tensor
    label: str = ""
    reason: str = ""

    @property
    def title(self) -> str:
        return self.label or self.name

    def build(self, layers: int) -> nn.Module:
        """The model with random weights, in eval mode and float32."""
        import diffusers
        from diffusers.models import transformers

        cls = getattr(transformers, self.name, None) or getattr(diffusers, self.name)
        torch.manual_seed(0)
        return enliven(cls(**self.config(layers))).eval()

    def noise(self, batch: int = 1, size: int = 0, seed: int = 0) -> Tensor:
        """The state a run starts from."""
        return torch.randn(self.start(batch, *GRIDS[size]), generator=torch.Generator().manual_seed(seed))

    def call(self, model: nn.Module, x: Tensor, t: float, size: int = 0) -> Tensor:
        """One step: the velocity at state ``x`` and time ``t``."""
        return self.velocity(model(**self.arguments(x, t, *GRIDS[size])))


def constant(*shape: int, like: Tensor, seed: int = 7) -> Tensor:
    """Normal numbers ``[batch, *rest]`` that are the same at each call and in each batch, in the dtype of ``like``."""
    batch, *rest = shape
    return torch.randn(8, *rest, generator=torch.Generator().manual_seed(seed))[:batch].to(like.dtype)


def grid_ids(height: int, width: int, columns: int = 3) -> Tensor:
    """Position ids ``[height * width, columns]``: row and column in columns 1 and 2."""
    ids = torch.zeros(height, width, columns)
    ids[..., 1] += torch.arange(height)[:, None]
    ids[..., 2] += torch.arange(width)[None]
    return ids.flatten(0, 1)


def thousand(x: Tensor, t: float) -> Tensor:
    """The time of every sample, 0 to 1000."""
    return torch.full((len(x),), 1000 * t)


def whole(x: Tensor, t: float) -> Tensor:
    """The time of every sample, a whole number from 0 to 1000."""
    return torch.full((len(x),), round(1000 * t))


def one(x: Tensor, t: float) -> Tensor:
    """The time of every sample, 0 to 1, in the dtype of ``x``."""
    return torch.full((len(x),), t).to(x.dtype)


def enliven(model: nn.Module, seed: int = 0) -> nn.Module:
    """Random numbers for the parameters a fresh model starts with at zero (gates, final layers) or leaves as the
    memory was (banks of experts), so that every block contributes and the output moves."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not parameter.any() or ("expert" in name and parameter.dim() == 3):
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(0.1 * noise)
    return model
