"""What the passes work on, what they make, and how one pass is declared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import fx

from hicache_compile.errors import CannotRewrite
from hicache_compile.passes.analysis.blocks import Run
from hicache_compile.passes.analysis.sites import Site
from hicache_compile.passes.analysis.token_sites import TokenSite
from hicache_compile.passes.graph.choices import Choice, Phases
from hicache_compile.policy.layout import NOWHERE, Layout


@dataclass(frozen=True, slots=True)
class Stage:
    """A decision in the middle of a step: the guard it is for, the program that measures, and the one that ends a step
    that is skipped."""

    guard: int
    probe: Choice
    skip: Choice


@dataclass(frozen=True, slots=True)
class PassRecord:
    """What one pass did: rewrites it made, what it declined, and seconds. ``own``: it is one of ``program_passes``."""

    name: str
    rewrites: int
    refused: int
    seconds: float
    own: bool = False


@dataclass(slots=True)
class Work:
    """A graph on its way through the passes.

    Args:
        captured: the graph as it was captured; no pass changes it.
        layout: what is wanted.
        module: the working copy.
        runs: the runs of blocks in ``module``.
        block_nodes: the names of each block's nodes.
        sites, refused: what can be cached, and what was declined.
        ranks: the process groups that sample one thing.
        verified: what forecasts are verified against, by guard (SpeCa).
        tokenwise: the sites of which some tokens can be computed, by name.
        sparse, partitioned: the attentions and MLPs that are sparse in some steps, the attentions over partitions.
        guarded: the graph with a guarded call for each site.
        specialiser: makes programs of ``guarded``.
        programs: straight-line programs by choice.
        stages: where guards decide in the middle of a step.
    """

    captured: fx.GraphModule
    layout: Layout
    module: fx.GraphModule
    runs: list[Run] = field(default_factory=list)
    block_nodes: dict[str, list[str]] = field(default_factory=dict)
    sites: list[Site] = field(default_factory=list)
    refused: list[CannotRewrite] = field(default_factory=list)
    ranks: tuple[str, ...] = ()
    verified: dict[int, fx.Node] = field(default_factory=dict)
    tokenwise: dict[str, TokenSite] = field(default_factory=dict)
    sparse: list[str] = field(default_factory=list)
    partitioned: list[str] = field(default_factory=list)
    guarded: fx.GraphModule | None = None
    specialiser: Any = None  # a Specialiser, which imports this module
    programs: dict[Choice, fx.GraphModule] = field(default_factory=dict)
    stages: list[Stage] = field(default_factory=list)
    records: list[PassRecord] = field(default_factory=list)


def always(layout: Layout) -> bool:
    return True


def nothing(work: Work) -> None:
    return None


@dataclass(frozen=True, slots=True)
class Pass:
    """One pass.

    Args:
        name: as it is reported.
        run: changes the work; returns how many rewrites it made.
        applies: whether a layout needs it.
        ensures: raises ``HiCacheError`` unless what the pass promises holds.
    """

    name: str
    run: Callable[[Work], int]
    applies: Callable[[Layout], bool] = always
    ensures: Callable[[Work], None] = nothing


@dataclass(frozen=True, slots=True)
class Rewrite:
    """What the passes made: a graph for each level, and what was declined on the way.

    ``ranks``: the process groups over which measurements are summed.
    ``groups``: the groups of sites that are decided each by itself, in the order of their rows; ``[""]``: one for all.
    ``sparsify``: makes the program of a computed step in given phases from a dense one.
    """

    layout: Layout
    captured: fx.GraphModule
    guarded: fx.GraphModule
    programs: dict[Choice, fx.GraphModule]
    block_nodes: dict[str, list[str]]
    sites: list[Site]
    refused: list[CannotRewrite]
    ranks: tuple[str, ...]
    groups: list[str]
    stages: list[Stage]
    tokenwise: list[str]
    partitioned: list[str]
    sparse: list[str]
    records: list[PassRecord]
    make: Callable[[Choice], fx.GraphModule]

    @property
    def why_nothing(self) -> str:
        """Why nothing is cached, with the nearest miss; empty where something is, or nothing was asked for."""
        layout = self.layout
        if layout.partitions is not None:
            if self.partitioned:
                return ""
            return f"no attention can be partitioned; nearest miss: {self._nearest_miss('it has no attention')}"
        if self.sites or layout.scope == NOWHERE or layout.observed:
            return ""
        found = f"{len(self.block_nodes)} blocks, 0 sites at scope {layout.scope}"
        missed = self._nearest_miss("no list of modules with a residual stream was found")
        return f"{found}; nearest miss: {missed}"

    def _nearest_miss(self, otherwise: str) -> str:
        """What was refused: of blocks that were found, else the first."""
        blocks = [name.rpartition(".")[0] for name in self.block_nodes]
        of_blocks = [entry for entry in self.refused if any(entry.site.startswith(name) for name in blocks)]
        return str(next(iter(of_blocks or self.refused), otherwise))

    def program(self, choice: Choice) -> fx.GraphModule:
        """The program of ``choice``, made now if it was not yet."""
        if choice not in self.programs:
            self.programs[choice] = self.make(choice)
        return self.programs[choice]

    def parts(self, choice: Choice) -> list[fx.GraphModule]:
        """The programs a step of ``choice`` runs, one after another."""
        if choice == Choice.PLAIN or not self.stages:
            return [self.program(choice)]
        ends = [stage.skip for stage in self.stages]
        forecast = replace(choice, tokens=False)
        last = ends.index(forecast) if forecast in ends else len(ends) - 1
        return [*(self.programs[stage.probe] for stage in self.stages[: last + 1]), self.program(choice)]

    def choice(self, forecasts: Sequence[str], phases: Phases = ()) -> Choice:
        """The choice to forecast the groups ``forecasts`` and to compute the others in ``phases``."""
        choice = Choice.forecasting(forecasts, self.groups)
        return choice.with_phases(phases) if phases and self.sparse else choice

    @property
    def blocks(self) -> int:
        return len(self.block_nodes)

    def levels(self) -> dict[str, fx.GraphModule]:
        """Every graph by name, in the order they were made."""
        programs = {str(choice): program for choice, program in self.programs.items()}
        return {"captured": self.captured, "guarded": self.guarded, **programs}
