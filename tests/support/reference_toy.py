"""A toy denoiser and the plain eager reference of its cached runs: decisions are given, forecasts are sums by hand."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from scipy.fft import dctn, idctn
from torch import Tensor, nn

from hicache_compile import ByBand, ByChannel, Policy
from hicache_compile.policy.compatibility import Trait
from hicache_compile.policy.forecasters import measured_weights
from hicache_compile.policy.run import RunInfo


class Block(nn.Module):
    """Attention and an MLP with gates on one stream."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, elementwise_affine=False)
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.up, self.down = nn.Linear(dim, 2 * dim), nn.Linear(2 * dim, dim)
        self.gates = nn.Linear(dim, 2 * dim)

    def attention(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).unsqueeze(1).chunk(3, dim=-1)
        return self.proj(nn.functional.scaled_dot_product_attention(q, k, v).squeeze(1))

    def mlp(self, x: Tensor) -> Tensor:
        return self.down(nn.functional.gelu(self.up(self.norm(x))))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        gate_a, gate_m = self.gates(c).unsqueeze(1).chunk(2, dim=-1)
        x = x + gate_a * self.attention(x)
        return x + gate_m * self.mlp(x)


class Toy(nn.Module):
    """``forward(x [B, N, D], t [B]) -> [B, N, D]``; ``breaks``: the graph breaks between its blocks."""

    def __init__(self, depth: int = 4, dim: int = 8, breaks: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.time = nn.Linear(dim, dim), nn.Linear(1, dim)
        self.blocks = nn.ModuleList(Block(dim) for _ in range(depth))
        self.head = nn.Linear(dim, dim)
        self.breaks = breaks

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        c, x = self.time(t[:, None]), self.embed(x)
        half = len(self.blocks) // 2
        for block in self.blocks[:half]:  # type: ignore[union-attr]  # a slice of a list of modules
            x = block(x, c)
        if self.breaks:
            torch._dynamo.graph_break()
        for block in self.blocks[half:]:  # type: ignore[union-attr]
            x = block(x, c)
        return self.head(x)


class CachedToy:
    """``toy`` under ``policy``, where ``cells`` say of each site in each step whether it is forecast (``r``).

    Sites are in the order of the graph. ``groups``: the slots of each group that weights are fitted to together.
    """

    def __init__(self, toy: Toy, policy: Policy, cells: Sequence[str], groups: Mapping[int, int], steps: int) -> None:
        self.toy = toy
        self.policy = policy.bind(RunInfo(steps))
        self.cells = cells
        self.groups = groups
        self.anchors: dict[int, list[tuple[int, Tensor]]] = {}  # by slot: computed steps and values, oldest first
        self.errors: dict[int, Tensor] = {}  # by slot: of tokens that were computed since the last full step
        self.step = -1
        self._rows: dict[int, list[float]] = {}

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        self.step += 1
        self._rows = {}
        toy = self.toy
        c, x = toy.time(t[:, None]), toy.embed(x)
        half = len(toy.blocks) // 2
        blocks = list(toy.blocks)
        self.number = 0
        for segment in (blocks[:half], blocks[half:]) if toy.breaks else (blocks,):
            x = self.segment(segment, x, c)
        return toy.head(x)

    def segment(self, blocks: Sequence[nn.Module], x: Tensor, c: Tensor) -> Tensor:
        """The blocks of one captured graph."""
        layout = self.policy.layout
        end = len(blocks) - layout.last
        if layout.scope == "output":
            return self.slot(lambda: self.through(blocks, x, c))
        if layout.scope == "module":
            return self.modules(blocks, x, c, min(layout.starts), end)
        ranges = [round(share * len(blocks)) for share in layout.ranges]
        starts = {*layout.starts, *(start for start in ranges if start > min(layout.starts))}
        places = [*sorted(starts), end]  # block sites in a row are one site: residuals add up
        hidden = self.through(blocks[: places[0]], x, c)
        for low, high in itertools.pairwise(places):
            part = blocks[low:high]
            hidden = hidden + self.slot(lambda p=part, h=hidden: self.through(p, h, c) - h)  # type: ignore[misc]
        return self.through(blocks[end:], hidden, c)

    def modules(self, blocks: Sequence[nn.Module], x: Tensor, c: Tensor, start: int, end: int) -> Tensor:
        for place, block in enumerate(blocks):
            gate_a, gate_m = block.gates(c).unsqueeze(1).chunk(2, dim=-1)  # type: ignore[operator]
            for gate, part in ((gate_a, block.attention), (gate_m, block.mlp)):
                cached = start <= place < end
                x = x + gate * (self.slot(lambda part=part, x=x: part(x)) if cached else part(x))  # type: ignore
        return x

    def through(self, blocks: Sequence[nn.Module], x: Tensor, c: Tensor) -> Tensor:
        for block in blocks:
            x = block(x, c)
        return x

    def slot(self, compute: object) -> Tensor:
        number, self.number = self.number, self.number + 1
        if self.cells[number][self.step] not in "rt":
            value: Tensor = compute()  # type: ignore[operator]
            self.anchors.setdefault(number, []).append((self.step, value))
            self.errors.pop(number, None)
            return value
        newest = [value for _, value in reversed(self.anchors[number])]
        pieces = [
            sum((w * value for w, value in zip(weights, newest, strict=False)), torch.zeros_like(newest[0]))
            for weights in self.rows(number)
        ]
        made = self.joined(pieces, number)
        whole = made + self.errors.get(number, 0)
        if self.cells[number][self.step] == "t":
            chosen = self.grid(made.shape[1])
            whole[:, chosen] = compute()[:, chosen]  # type: ignore[operator]
            self.errors[number] = whole - made
        return whole

    def rows(self, number: int) -> list[list[float]]:
        """The weights of each part of a slot."""
        if not isinstance(self.policy.forecaster, ByBand | ByChannel):
            return [self.weights(number)]
        return self.policy.part_weights([step for step, _ in self.anchors[number]], self.step)

    def joined(self, pieces: list[Tensor], number: int) -> Tensor:
        """Each part of the value from its own piece."""
        forecaster = self.policy.forecaster
        if isinstance(forecaster, ByChannel):
            whole = torch.stack(pieces, dim=-1)
            chosen = torch.tensor([*map(int, forecaster.chosen[number])])
            return whole.gather(-1, chosen.expand(pieces[0].shape)[..., None])[..., 0]
        if isinstance(forecaster, ByBand):
            assert forecaster.grid is not None
            spectra = [_spectrum(piece, forecaster.grid) for piece in pieces]
            is_low = np.ones(forecaster.grid, dtype=bool)
            for axis, size in enumerate(forecaster.grid):
                kept = np.arange(size) < max(1, int(forecaster.cutoff * size))
                is_low &= np.expand_dims(kept, tuple(i for i in range(len(forecaster.grid)) if i != axis))
            mixed = np.where(is_low[None, ..., None], *spectra)
            axes = tuple(range(1, 1 + len(forecaster.grid)))
            return torch.tensor(idctn(mixed, axes=axes, norm="ortho")).reshape(pieces[0].shape).to(pieces[0].dtype)
        return pieces[0]

    def grid(self, tokens: int) -> list[int]:
        """``count`` of the ``tokens``, evenly spaced, moved on by what is drawn in a step."""
        wanted = self.policy.tokens
        assert wanted is not None
        count = wanted.of(tokens)
        return [(place * tokens // count + wanted.draw(self.step)) % tokens for place in range(count)]

    def weights(self, number: int) -> list[float]:
        steps = [step for step, _ in self.anchors[number]]
        traits = self.policy.traits
        if Trait.PER_SLOT in traits:
            return self.policy.forecaster.slot_weights(self.policy.eligible(steps), self.step)[number]  # type: ignore[attr-defined]
        if Trait.READS_ANCHORS in traits:
            group = self.groups[number]
            if group not in self._rows:
                read = self.policy.eligible(steps)
                mine = [slot for slot, at in self.groups.items() if at == group and slot in self.anchors]
                gram = np.zeros((len(read), len(read)))
                for slot in mine:
                    values = [value for _, value in reversed(self.anchors[slot])][: len(read)]
                    flat = torch.stack(values).double().flatten(1)
                    gram += (flat @ flat.T).numpy()
                self._rows[group] = measured_weights(
                    self.policy.forecaster,
                    gram,
                    read,
                    self.step,
                    self.policy.smoothing,  # type: ignore[arg-type]
                )
            return self._rows[group]
        return self.policy.weights(steps, self.step)


def _spectrum(value: Tensor, grid: tuple[int, ...]) -> np.ndarray:
    """The cosine transform of ``[B, N, C]`` along the axes of ``grid``, in float64."""
    axes = tuple(range(1, 1 + len(grid)))
    return dctn(value.double().unflatten(1, grid).numpy(), axes=axes, norm="ortho")
