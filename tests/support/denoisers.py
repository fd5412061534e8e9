"""Denoisers as a user would write them: nothing in their names says what they are."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


def _heads(x: Tensor) -> Tensor:
    return x.unflatten(-1, (2, -1)).transpose(1, 2)


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return functional.scaled_dot_product_attention(_heads(q), _heads(k), _heads(v)).transpose(1, 2).flatten(2)


class Mixer(nn.Module):
    """Self-attention on ``x [B, N, D]``."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.wqkv, self.wo = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.wo(_attend(*self.wqkv(x).chunk(3, dim=-1)))


class Glu(nn.Module):
    """A gated MLP on ``x [B, N, D]``."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.w1, self.w2, self.w3 = nn.Linear(dim, 2 * dim), nn.Linear(2 * dim, dim), nn.Linear(dim, 2 * dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(functional.silu(self.w1(x)) * self.w3(x))


class Unit(nn.Module):
    """Pre-norm attention and MLP with adaLN shift, scale and gate; with ``skip``, a long skip is merged first."""

    def __init__(self, dim: int, skip: bool = False) -> None:
        super().__init__()
        self.merge = nn.Linear(2 * dim, dim) if skip else None
        self.n1, self.n2 = nn.LayerNorm(dim, elementwise_affine=False), nn.LayerNorm(dim, elementwise_affine=False)
        self.mix, self.mlp = Mixer(dim), Glu(dim)
        self.mod = nn.Linear(dim, 6 * dim)

    def forward(self, x: Tensor, c: Tensor, skip: Tensor | None = None) -> Tensor:
        if self.merge is not None and skip is not None:
            x = self.merge(torch.cat([x, skip], dim=-1))
        s1, b1, g1, s2, b2, g2 = self.mod(functional.silu(c))[:, None].chunk(6, dim=-1)
        x = x + g1 * self.mix(self.n1(x) * (1 + s1) + b1)
        return x + g2 * self.mlp(self.n2(x) * (1 + s2) + b2)


class Painter(nn.Module):
    """A plain DiT: ``forward(x [B, N, D], t [B]) -> [B, N, D]``."""

    def __init__(self, dim: int = 16, depth: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.enter, self.clock = nn.Linear(dim, dim), nn.Linear(1, dim)
        self.stages = nn.ModuleList(Unit(dim) for _ in range(depth))
        self.leave = nn.Linear(dim, dim)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        c, x = self.clock(t[:, None]), self.enter(x)
        for stage in self.stages:
            x = stage(x, c)
        return self.leave(x)


class Hourglass(nn.Module):
    """A U-shaped DiT with long skips: ``forward(x [B, N, D], t [B]) -> [B, N, D]``."""

    def __init__(self, dim: int = 16, depth: int = 2) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.enter, self.clock = nn.Linear(dim, dim), nn.Linear(1, dim)
        self.going_in = nn.ModuleList(Unit(dim) for _ in range(depth))
        self.waist = Unit(dim)
        self.coming_out = nn.ModuleList(Unit(dim, skip=True) for _ in range(depth))
        self.leave = nn.Linear(dim, dim)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        c, x = self.clock(t[:, None]), self.enter(x)
        skips = []
        for unit in self.going_in:
            x = unit(x, c)
            skips.append(x)
        x = self.waist(x, c)
        for unit in self.coming_out:
            x = unit(x, c, skips.pop())
        return self.leave(x)


class Pair(nn.Module):
    """Joint attention over two streams; both share their norms, projections and MLP."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.wqkv, self.wo, self.mlp = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim), Glu(dim)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        both = torch.cat([self.norm(x), self.norm(y)], dim=1)
        mixed = _attend(*self.wqkv(both).chunk(3, dim=-1))
        x = x + self.wo(mixed[:, : x.shape[1]])
        y = y + self.wo(mixed[:, x.shape[1] :])
        return x + self.mlp(self.norm(x)), y + self.mlp(self.norm(y))


class Duet(nn.Module):
    """Two streams through one pair of blocks called over and over: ``forward(x, t, y) -> [B, N, D]``."""

    def __init__(self, dim: int = 16, depth: int = 2, rounds: int = 2) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.enter, self.clock = nn.Linear(dim, dim), nn.Linear(1, dim)
        self.pairs = nn.ModuleList(Pair(dim) for _ in range(depth))
        self.rounds = rounds
        self.leave = nn.Linear(dim, dim)

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        x = self.enter(x) + self.clock(t[:, None])[:, None]
        for _ in range(self.rounds):
            for pair in self.pairs:
                x, y = pair(x, y)
        return self.leave(x)


class AfterNorm(nn.Module):
    """Post-norm blocks, as in the first transformer: ``forward(x [B, N, D], t [B]) -> [B, N, D]``."""

    def __init__(self, dim: int = 16, depth: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.enter, self.clock = nn.Linear(dim, dim), nn.Linear(1, dim)
        self.parts = nn.ModuleList(
            nn.ModuleDict({"mix": Mixer(dim), "n1": nn.LayerNorm(dim), "mlp": Glu(dim), "n2": nn.LayerNorm(dim)})
            for _ in range(depth)
        )
        self.leave = nn.Linear(dim, dim)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        x = self.enter(x) + self.clock(t[:, None])[:, None]
        for part in self.parts:
            x = part["n1"](x + part["mix"](x))
            x = part["n2"](x + part["mlp"](x))
        return self.leave(x)
