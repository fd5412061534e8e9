"""Large tensors as a few numbers that keep how far apart they are."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Sketches:
    """Tensors as sums under random signs of at most ``most`` numbers, float32, which keeps inner products in the mean.

    The signs are the same for all tensors of a size. A tensor of at most ``most`` numbers is its own sketch.
    """

    most: int
    _signs: dict[int, Tensor] = field(default_factory=dict)

    def __call__(self, values: Tensor) -> Tensor:
        flat = values.detach().flatten().float()
        if flat.numel() <= self.most:
            return flat.clone()
        padded = torch.nn.functional.pad(flat * self._signs_of(flat), (0, -flat.numel() % self.most))
        return padded.view(-1, self.most).sum(0)

    def _signs_of(self, flat: Tensor) -> Tensor:
        size = flat.numel()
        if size not in self._signs:
            generator = torch.Generator().manual_seed(0)
            signs = torch.randint(0, 2, (size,), generator=generator, dtype=torch.int8) * 2 - 1
            self._signs[size] = signs.to(flat.device)
        return self._signs[size]
