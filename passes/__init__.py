"""From a captured graph to one straight-line program per choice. Read ``build`` from top to bottom."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, field, replace

import torch
from torch import fx

from hicache_compile.errors import CannotRewrite, HiCacheError
from hicache_compile.key_partitions import Split
from hicache_compile.passes.analysis.blocks import find_runs
from hicache_compile.passes.analysis.sites import Site, find_sites
from hicache_compile.passes.graph.graphs import copy_graph
from hicache_compile.passes.transforms.capture import capture
from hicache_compile.passes.transforms.collapse import collapse
from hicache_compile.passes.transforms.fuel import spend
from hicache_compile.passes.transforms.guard import guard
from hicache_compile.passes.transforms.insert_probes import insert_probes
from hicache_compile.passes.transforms.narrow_linears import narrow_rows
from hicache_compile.passes.transforms.order_tokens import order_tokens
from hicache_compile.passes.transforms.partition_attention import divide
from hicache_compile.passes.transforms.sparsify import mark, sparsify
from hicache_compile.passes.transforms.specialise import Choice, Specialiser, partial
from hicache_compile.passes.transforms.split import split
from hicache_compile.passes.verify import verify_captured, verify_guarded, verify_pair, verify_phases, verify_program
from hicache_compile.policy.guards import Probe
from hicache_compile.policy.policy import NOWHERE, Cut
from hicache_compile.policy.sparsity.chipmunk import Chipmunk
from hicache_compile.policy.sparsity.phases import phases_of

log = logging.getLogger(__name__)

__all__ = ["Choice", "Rewrite", "build", "build_divided", "build_observed", "capture"]


@dataclass(frozen=True, slots=True)
class Stage:
    """A decision in the middle of a step: the program that measures, and the one that ends a step that is skipped."""

    probe: str
    skip: str


@dataclass(frozen=True, slots=True)
class Rewrite:
    """Everything one run of the passes made: a graph per level and what was declined on the way."""

    captured: fx.GraphModule
    guarded: fx.GraphModule
    programs: dict[str, fx.GraphModule]
    block_nodes: dict[str, list[str]]
    sites: list[Site]
    refused: list[CannotRewrite]
    specialiser: Specialiser
    stages: list[Stage]
    divided: list[str] | None = None  # the attentions that are divided, where a policy does that
    sparse: list[str] = field(default_factory=list)  # the attentions and MLPs that are sparse in some computed steps

    def parts(self, choice: str) -> list[fx.GraphModule]:
        """The programs a step of ``choice`` runs, one after another."""
        if choice == Choice.PLAIN or not self.stages:
            return [self.program(choice)]
        ends = [stage.skip for stage in self.stages]
        last = ends.index(choice) if choice in ends else len(ends) - 1
        return [*(self.programs[stage.probe] for stage in self.stages[: last + 1]), self.programs[choice]]

    def program(self, choice: str) -> fx.GraphModule:
        """The program of ``choice``; one that forecasts some kinds of sites is made when it is first asked for."""
        if choice not in self.programs:
            self.programs[choice] = self.specialiser.program(choice.partition("_")[2].split("+"))
        return self.programs[choice]

    @property
    def blocks(self) -> int:
        return len(self.block_nodes)

    def levels(self) -> dict[str, fx.GraphModule]:
        """Every graph by name, in the order they were made."""
        programs = {str(choice): program for choice, program in self.programs.items()}
        return {"captured": self.captured, "guarded": self.guarded, **programs}


def build(
    captured: fx.GraphModule,
    scope: str,
    depth: int,
    first: int = 0,
    last: int = 0,
    anchor_dtype: torch.dtype | None = None,
    probes: tuple[Probe, ...] = (),
    groups: tuple[tuple[str, int | None], ...] = (),
    sparsity: Chipmunk | None = None,
    by_slot: bool = False,
    *,
    collapsing: bool = True,
    verify: bool | None = None,
) -> Rewrite:
    """Rewrite ``captured`` for sites of ``scope`` with rings of ``depth`` anchors.

    Args:
        captured: what ``capture`` returned; it is not changed.
        scope, first, last: where the sites are cut, see ``Policy``.
        probes, groups: what guards measure, and the kinds that are decided apart, see ``Cut``.
        depth: anchors a ring holds.
        sparsity: how sparse attention and MLPs are in computed steps.
        by_slot: whether each slot has weights of its own.
        anchor_dtype: what they are kept in; by default each in the dtype of its slot.
        collapsing: merge neighbouring residual sites (scope ``block``).
        verify: check every level; by default when the environment has ``HICACHE_VERIFY=1``.
    """
    cut = Cut(scope, first, last, probes)
    marked: list[str] = []
    declined: list[CannotRewrite] = []
    original = captured
    if sparsity is not None:
        captured, marked, declined = _marked(captured, sparsity, cut)
    found = find_sites(captured, scope, first, last, probes, groups)
    refused = [*found.refused, *declined]
    if collapsing and scope == "block":
        before = len(found.sites)
        found, apart = collapse(found)
        refused += apart
        log.info(
            "collapse: %d block sites became %d: residuals add up, so their forecasts do", before, len(found.sites)
        )
    sites, unfuelled = spend(found.sites)
    guarded, tangled = guard(replace(found, sites=sites), depth, anchor_dtype, by_slot)
    refused += unfuelled + tangled
    specialiser = Specialiser(guarded, bool(groups))
    staged = any(probe.before for probe in probes)
    programs = specialiser.programs(staged)
    verifying = verify if verify is not None else os.environ.get("HICACHE_VERIFY") == "1"
    if verifying:
        verify_captured(captured)
        verify_guarded(guarded, captured)
        for choice, program in programs.items():
            verify_program(program, choice, captured, guarded)
        verify_pair(programs)
    apart_from = {entry.site for entry in tangled}
    sites = [site for site in sites if site.name not in apart_from]
    _log_outcome(scope, sites, found.blocks, refused)
    stages: list[Stage] = []
    if sites and staged:
        stages, programs = _staged(programs, cut.starts)
    if sparsity is not None and marked:
        full = programs[Choice.FULL]
        programs |= {str(phase): sparsify(full, sparsity, phase) for phase in phases_of(sparsity)}
        if verifying:
            verify_phases(programs)
    if sparsity is not None and sparsity.order is not None:
        programs[Choice.PLAIN] = copy_graph(original)[0]
    return Rewrite(original, guarded, programs, found.block_nodes, sites, refused, specialiser, stages, sparse=marked)


def _marked(
    captured: fx.GraphModule, sparsity: Chipmunk, cut: Cut
) -> tuple[fx.GraphModule, list[str], list[CannotRewrite]]:
    """A copy of ``captured`` with what may be sparse marked, what that is, and what was refused."""
    captured, _ = copy_graph(captured)
    if sparsity.order is not None or sparsity.window:
        order_tokens(captured, sparsity)
    blockwise = cut.scope in ("block", "stack")
    marked = mark(captured, sparsity, max(cut.starts) if blockwise else 0, cut.last)
    log.info("sparse: %d attentions, %d MLPs", len(marked.attentions), len(marked.mlps))
    if marked.blocks and not marked.paths:
        nearest = marked.refused[0] if marked.refused else "no attention or MLP outside of the dense blocks"
        log.warning("nothing is sparse: %s", nearest)
    return captured, marked.paths, marked.refused


def build_divided(captured: fx.GraphModule, split: Split) -> Rewrite:
    """Rewrite ``captured`` for attention over partitions of the keys (``DiTangoSchedule``).

    A step that computes everything is the captured graph itself, unless the keys are on several ranks.
    """
    divided, names, refused = divide(captured, split)
    plain, _ = copy_graph(captured)
    log.info("divided %d attentions into %d groups of %d partitions", len(names), split.groups, split.partitions)
    for entry in refused:
        log.info("refused %s", entry)
    if split.distributed and refused:
        raise HiCacheError(f"DiTangoSchedule.distributed: must divide every attention; {refused[0]}")
    if not names:
        nearest = refused[0] if refused else "it has no attention"
        log.warning("nothing is cached: no attention can be divided; nearest miss: %s", nearest)
    full = divided if split.distributed else plain
    programs = {str(Choice.FULL): full, str(Choice.FORECAST): divided, str(Choice.PLAIN): plain}
    return Rewrite(captured, divided, programs, {}, [], refused, Specialiser(divided), [], names)


def build_observed(captured: fx.GraphModule, probe: Probe) -> Rewrite:
    """``captured`` with all that guards are fitted by measured in every step, and nothing forecast."""
    observed, _ = copy_graph(captured)
    runs, refused = find_runs(observed)
    insert_probes(observed, runs, [probe])
    observed.recompile()
    plain, _ = copy_graph(captured)
    programs = {str(Choice.FULL): observed, str(Choice.FORECAST): observed, str(Choice.PLAIN): plain}
    return Rewrite(captured, observed, programs, {}, [], refused, Specialiser(observed), [])


def _staged(
    programs: dict[str, fx.GraphModule], starts: tuple[int, ...]
) -> tuple[list[Stage], dict[str, fx.GraphModule]]:
    """``programs`` cut at each guard's probe; a guard that skips ends the step with a forecast from its start on."""
    whole = [Choice.FORECAST if start == min(starts) else partial([f"from_{start}"]) for start in starts]
    parts = split(programs[Choice.FULL], [copy_graph(programs[name])[0] for name in whole])
    stages: list[Stage] = []
    cut = {**programs, str(Choice.FULL): parts.full}
    for number, (name, probe, skip) in enumerate(zip(whole, parts.probes, parts.skips, strict=True)):
        ends_in = name if name not in [stage.skip for stage in stages] else f"{name}_after_{number}"
        narrow_rows(skip)
        stages.append(Stage(f"probe_{number}", str(ends_in)))
        cut |= {stages[-1].probe: probe, stages[-1].skip: skip}
    return stages, cut


def _log_outcome(scope: str, sites: list[Site], blocks: int, refused: list[CannotRewrite]) -> None:
    log.info("scope %s: %d blocks, %d sites, %d slots", scope, blocks, len(sites), sum(len(s.slots) for s in sites))
    for entry in refused:
        log.info("refused %s", entry)
    if not sites and scope != NOWHERE:
        nearest = refused[0] if refused else "no list of modules with a residual stream was found"
        log.warning("nothing is cached: %d blocks, 0 sites at scope %s; nearest miss: %s", blocks, scope, nearest)
