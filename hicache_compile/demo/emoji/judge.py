"""The judge: a small network that reads the name of a thing off its picture, trained on all real pictures.

It is trained on the held-out pairs too: no model that it judges has seen them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from hicache_compile.demo.emoji.captions import Subject
from hicache_compile.demo.emoji.icons import to_values
from hicache_compile.demo.training import Plan, train

WIDTHS = (32, 48, 64, 96)
BATCH = 64
Z95 = 1.96  # standard deviations: 95 % of a normal distribution


class Judge(nn.Module):
    """Four convolutions of stride 2, and one score for each of ``names``: 0.17 M parameters for 727 names."""

    def __init__(self, names: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inside, outside in zip((3, *WIDTHS), WIDTHS, strict=False):
            layers += [nn.Conv2d(inside, outside, 3, stride=2, padding=1), nn.GroupNorm(8, outside), nn.SiLU()]
        self.features = nn.Sequential(*layers)
        self.scores = nn.Linear(WIDTHS[-1], names)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Scores ``[B, names]``, before a softmax, of pictures ``[B, 3, 64, 64]`` in [-1, 1]."""
        return self.scores(self.features(values).mean(dim=(2, 3)))


def distort(values: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Pictures ``[B, 3, 64, 64]`` turned, moved, scaled, recoloured, with noise, half of them blurred."""
    count = len(values)

    def uniform(spread: float, *shape: int) -> torch.Tensor:
        return spread * (2 * torch.rand(count, *shape, generator=generator) - 1)

    angle, scale, moved = uniform(0.2), 1 + uniform(0.15), uniform(0.12, 2)
    turned = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], dim=1).view(-1, 2, 2)
    affine = torch.cat([turned * scale[:, None, None], moved.unsqueeze(2)], dim=2)
    grid = functional.affine_grid(affine, list(values.shape), align_corners=False)
    ink = functional.grid_sample(1 - values, grid, align_corners=False)  # no ink where there is no picture
    small = functional.interpolate(functional.avg_pool2d(ink, 2), scale_factor=2.0, mode="bilinear")
    blurred = torch.where(torch.rand(count, 1, 1, 1, generator=generator) < 0.5, small, ink)
    noise = 0.1 * torch.rand(count, 1, 1, 1, generator=generator) * torch.randn(values.shape, generator=generator)
    return 1 - blurred * (1 + uniform(0.15, 3, 1, 1)) + noise


def train_judge(subjects: Sequence[Subject], pictures: torch.Tensor, plan: Plan, out: Path) -> Judge:
    """Train on ``pictures``, uint8 ``[N, 3, 64, 64]``, of ``subjects``; its scores are in the order of ``names_of``."""
    names = {name: index for index, name in enumerate(names_of(subjects))}
    labels = torch.tensor([names[subject.name] for subject in subjects])
    torch.manual_seed(plan.seed)

    def loss(judge: Judge, generator: torch.Generator) -> torch.Tensor:
        chosen = torch.randint(len(pictures), (BATCH,), generator=generator)
        return functional.cross_entropy(judge(distort(to_values(pictures[chosen]), generator)), labels[chosen])

    return train(Judge(len(names)), loss, plan, out / "judge.pt")


def names_of(subjects: Sequence[Subject]) -> list[str]:
    """The names of ``subjects``, each once, sorted."""
    return sorted({subject.name for subject in subjects})


@dataclass(frozen=True, slots=True)
class Hits:
    """How many of ``count`` pictures have their name among the first so many that the judge reads."""

    found: int
    count: int

    @property
    def share(self) -> float:
        """Between 0 and 1."""
        return self.found / self.count

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the share (Wilson, 1927)."""
        middle = (self.found + Z95**2 / 2) / (self.count + Z95**2)
        spread = Z95 / (self.count + Z95**2) * math.sqrt(self.found * (1 - self.share) + Z95**2 / 4)
        return middle - spread, middle + spread

    def __str__(self) -> str:
        low, high = self.interval
        return f"{100 * self.share:.0f} % ({100 * low:.0f} to {100 * high:.0f})"


@torch.no_grad()
def read(judge: Judge, pictures: torch.Tensor, labels: torch.Tensor, first: int) -> Hits:
    """Of ``pictures``, uint8 ``[B, 3, 64, 64]``: how many have their ``labels`` ``[B]`` among the ``first`` scores."""
    best = judge(to_values(pictures)).topk(first, dim=1).indices
    return Hits(int((best == labels.unsqueeze(1)).any(dim=1).sum()), len(labels))
