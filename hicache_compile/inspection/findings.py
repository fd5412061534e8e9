"""What ``explain`` finds, as plain data: of each site, block and scope, and of the whole."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class SiteRow:
    """A site under the policy: what it computes, and what is kept of it.

    ``flops``: of one full step inside the site; ``share``: of the whole step; ``nbytes``: its rings in one context;
    ``shapes``: of the rings a forecast reads, none where it reads nothing of the site.
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
    """What the policy would be at another scope: ``ceiling`` is the speed-up if the clock followed the FLOPs."""

    scope: str
    sites: int
    slots: int
    flops_forecast: int
    state_bytes: int
    ceiling: float


@dataclass(frozen=True, slots=True)
class BlockRow:
    """A block: its nodes, its FLOPs in one full step."""

    name: str
    nodes: int
    flops: int


@dataclass(frozen=True, slots=True)
class Findings:
    """``decisions``: one letter a step; bytes are those of one guidance branch."""

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
        """Steps that are computed, densely or sparsely."""
        return sum(letter in "FS" for letter in self.decisions)

    @property
    def stacks(self) -> dict[str, int]:
        """How many blocks each list of modules has."""
        counted: dict[str, int] = {}
        for block in self.blocks:
            name = ".".join(part for part in block.name.split(".") if not part.isdigit()) or block.name
            counted[name] = counted.get(name, 0) + 1
        return counted

    def to_json(self) -> str:
        """The same as JSON."""
        return json.dumps({**asdict(self), "stacks": self.stacks}, indent=1)
