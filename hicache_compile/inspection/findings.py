"""The results of ``explain`` as plain data: per site, per block, per scope, and in total."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class SiteRow:
    """A site under the policy: its computation and its cache.

    ``flops``: of the site in one full step; ``share``: of the full step's FLOPs; ``nbytes``: of its rings in one
    context; ``shapes``: of the rings a forecast reads, empty if it reads none.
    """

    name: str
    kind: str
    blocks: list[str]
    nodes: int
    flops: int
    share: float
    shapes: list[list[int]]
    nbytes: int


@dataclass(frozen=True, slots=True)
class ScopeRow:
    """The policy at another scope. ``ceiling``: the speed-up if time were proportional to FLOPs."""

    scope: str
    sites: int
    slots: int
    flops_forecast: int
    state_bytes: int
    ceiling: float


@dataclass(frozen=True, slots=True)
class BlockRow:
    """A block: its number of nodes, and its FLOPs in one full step."""

    name: str
    nodes: int
    flops: int


@dataclass(frozen=True, slots=True)
class Findings:
    """``decisions``: one letter per step; ``state_bytes`` and the sites' bytes are for one guidance branch. Of a
    denoiser over several ranks, FLOPs, bytes and collectives (calls, and bytes put into them) are those of this rank.
    """

    model: str
    policy: dict[str, Any]
    scope: str
    num_steps: int
    decisions: str
    graphs: int
    nodes: int
    flops_full: int
    flops_forecast: int
    flops_speedup: float
    collectives_full: int
    collectives_forecast: int
    bytes_sent_full: int
    bytes_sent_forecast: int
    state_bytes: int
    blocks: list[BlockRow]
    sites: list[SiteRow]
    scopes: list[ScopeRow]
    sparsity: dict[str, Any] | None
    sparse: list[str]
    refused: list[tuple[str, str]]
    memory: str = ""

    @property
    def computed(self) -> int:
        """The number of computed steps, dense or sparse."""
        return sum(letter in "FS" for letter in self.decisions)

    @property
    def stacks(self) -> dict[str, int]:
        """The number of blocks in each module list."""
        counted: dict[str, int] = {}
        for block in self.blocks:
            name = ".".join(part for part in block.name.split(".") if not part.isdigit()) or block.name
            counted[name] = counted.get(name, 0) + 1
        return counted

    def to_json(self) -> str:
        """The findings as JSON."""
        return json.dumps({**asdict(self), "stacks": self.stacks}, indent=1)
