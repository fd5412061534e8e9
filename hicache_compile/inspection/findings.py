"""The results of ``explain`` as plain data: per site, per block, per scope, and in total."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from hicache_compile.inspection.decision_rows import Row


@dataclass(frozen=True, slots=True)
class SiteRow:
    """A site under the policy: its computation and its cache.

    ``flops``: of the site in one full step; ``share``: of the full step's FLOPs; ``nbytes``: of its rings in one
    context; ``shapes``: of the rings a forecast reads, empty if it reads none; ``dtypes``: of those rings.
    """

    name: str
    kind: str
    blocks: list[str]
    nodes: int
    flops: int
    share: float
    shapes: list[list[int]]
    nbytes: int
    dtypes: list[str] = field(default_factory=list)


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
class BranchRow:
    """A branch of guidance with a schedule of its own (``PerBranch``): one letter a step, and its speed-up by FLOPs."""

    name: str
    decisions: str
    flops_speedup: float


@dataclass(frozen=True, slots=True)
class BlockRow:
    """A block: its number of nodes, and its FLOPs in one full step.

    ``skipped``: FLOPs of its part in sites, which a forecast step does not compute; ``kinds``: FLOPs of its attentions,
    MLPs, ..., by kind, at whatever scope the policy cuts.
    """

    name: str
    nodes: int
    flops: int
    skipped: int = 0
    kinds: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ProgramRow:
    """A graph: its number of operators, and its FLOPs; ``None``: it holds both branches of each site."""

    name: str
    ops: int
    flops: int | None


@dataclass(frozen=True, slots=True)
class GraphRow:
    """One captured graph of a call.

    ``flops_full``, ``flops_forecast``: of its part of a step; ``opaque``: submodules that are one operator; ``why``:
    why nothing of it is cached, empty where something is.
    """

    nodes: int
    blocks: int
    sites: int
    flops_full: int
    flops_forecast: int
    opaque: int
    why: str


@dataclass(frozen=True, slots=True)
class PassRow:
    """A pass of your own (``program_passes``): how many of the programs it changed, of those that were made."""

    name: str
    changed: int
    programs: int


@dataclass(frozen=True, slots=True)
class Ran:
    """The newest run of the calling thread: what decided, one letter a step and the cells of each site, by context;
    ``groups``: rows that belong to one attention."""

    strategy: str
    letters: dict[str, str]
    rows: dict[str, list[Row]]
    groups: int = 1


def computed_in(decisions: str) -> int:
    """The number of computed steps among ``decisions``, dense or sparse."""
    return sum(letter in "FS" for letter in decisions)


@dataclass(frozen=True, slots=True)
class Findings:
    """``decisions``: one letter per step; ``state_bytes`` and the sites' bytes are for one guidance branch. Of a
    denoiser over several ranks, FLOPs, bytes and collectives (calls, and bytes put into them) are those of this rank.
    Where the samples of a batch decide each for itself (``by_sample``), FLOPs and bytes are those of one sample. Where
    ``branches`` have schedules of their own, ``decisions`` and ``flops_speedup`` are of every other branch.
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
    programs: list[ProgramRow] = field(default_factory=list)
    partitioned: list[str] = field(default_factory=list)
    tokenwise: list[str] = field(default_factory=list)
    branches: list[BranchRow] = field(default_factory=list)
    by_sample: bool = False
    ran: Ran | None = None
    program_passes: list[PassRow] = field(default_factory=list)
    parts: list[GraphRow] = field(default_factory=list)
    opaque: list[tuple[str, str]] = field(default_factory=list)

    @property
    def computed(self) -> int:
        """The number of computed steps, dense or sparse."""
        return computed_in(self.decisions)

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
