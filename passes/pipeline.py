"""The pipeline: from a captured graph to one straight-line program per choice. Read ``PASSES`` from top to bottom."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection

from torch import fx

from hicache_compile.errors import switched_on
from hicache_compile.passes.analysis.ranks import ranks_of
from hicache_compile.passes.graph import contexts
from hicache_compile.passes.graph.choices import Choice
from hicache_compile.passes.graph.graphs import copy_graph
from hicache_compile.passes.own_passes import OwnPasses
from hicache_compile.passes.transforms.collapse import collapse_sites
from hicache_compile.passes.transforms.cut_sites import cut_sites, find_blocks
from hicache_compile.passes.transforms.fuel import spend_fuel
from hicache_compile.passes.transforms.guard import guard_sites
from hicache_compile.passes.transforms.insert_probes import insert_guard_probes
from hicache_compile.passes.transforms.local_linears import localise_linears
from hicache_compile.passes.transforms.mark_sparse import mark_sparse
from hicache_compile.passes.transforms.order_tokens import order_grid_tokens
from hicache_compile.passes.transforms.partition_attention import partition_attention
from hicache_compile.passes.transforms.sparsify import sparsify_steps
from hicache_compile.passes.transforms.specialise import specialise
from hicache_compile.passes.transforms.split import split_at_probes
from hicache_compile.passes.transforms.token_steps import plan_tokens
from hicache_compile.passes.verify import (
    verify_captured,
    verify_guarded,
    verify_new,
    verify_parts,
    verify_phases,
    verify_programs,
)
from hicache_compile.passes.work import Pass, PassRecord, Rewrite, Work
from hicache_compile.policy.layout import Layout

log = logging.getLogger(__name__)


def _orders(layout: Layout) -> bool:
    return layout.sparsity is not None and (layout.sparsity.order is not None or layout.sparsity.window > 0)


def _is_sparse(layout: Layout) -> bool:
    return layout.sparsity is not None


def _cuts_sites(layout: Layout) -> bool:
    return layout.partitions is None and not layout.observed


PASSES = (
    Pass("local linears", localise_linears, _is_sparse),
    Pass("order tokens", order_grid_tokens, _orders),
    Pass("find blocks", find_blocks),
    Pass("mark sparse", mark_sparse, _is_sparse),
    Pass("insert probes", insert_guard_probes, lambda layout: bool(layout.probes)),
    Pass("partition attention", partition_attention, lambda layout: layout.partitions is not None),
    Pass("cut sites", cut_sites, _cuts_sites, verify_captured),
    Pass("collapse", collapse_sites, lambda layout: layout.scope == "block"),
    Pass("spend fuel", spend_fuel, _cuts_sites),
    Pass("guard", guard_sites, _cuts_sites, verify_guarded),
    Pass("plan tokens", plan_tokens, lambda layout: layout.tokens is not None and _cuts_sites(layout)),
    Pass("specialise", specialise, ensures=verify_programs),
    Pass("split at probes", split_at_probes, lambda layout: layout.staged, verify_parts),
    Pass("sparsify", sparsify_steps, _is_sparse, verify_phases),
)


def rewrite(captured: fx.GraphModule, layout: Layout, without: Collection[str] = ()) -> Rewrite:
    """Rewrite ``captured`` as ``layout`` says.

    Args:
        captured: what ``capture`` returned; it is not changed.
        layout: what is wanted.
        without: names of passes to leave out, to see what they do.

    Raises:
        HiCacheError: the layout cannot be had of this denoiser; with ``HICACHE_VERIFY=1`` also a pass that broke what
            it promises. A pass of your own (``layout.program_passes``) that failed, or broke its contract.
    """
    lifted = contexts.lifted(captured)
    work = Work(lifted, layout, copy_graph(lifted)[0], ranks=ranks_of(captured, layout.together))
    for step in PASSES:
        if step.applies(layout) and step.name not in without:
            _observed(step, work)
    return _finished(work, captured)


def _observed(step: Pass, work: Work) -> None:
    """Run ``step``: timed, recorded, and verified where the environment asks for it."""
    refused, began = len(work.refused), time.perf_counter()
    rewrites = step.run(work)
    record = PassRecord(step.name, rewrites, len(work.refused) - refused, time.perf_counter() - began)
    work.records.append(record)
    log.debug("%s: %d rewrites, %d refused, %.3f s", *(record.name, record.rewrites, record.refused, record.seconds))
    if verifying():
        step.ensures(work)


def verifying() -> bool:
    """Whether every level is checked after every pass: ``HICACHE_VERIFY=1``."""
    return switched_on("HICACHE_VERIFY")


def _finished(work: Work, captured: fx.GraphModule) -> Rewrite:
    groups = list(dict.fromkeys(site.group for site in work.sites)) if work.layout.groups else [""]
    guarded = work.guarded if work.guarded is not None else work.module
    own = OwnPasses(work, verifying()) if work.layout.program_passes else _as_it_is

    def make(choice: Choice) -> fx.GraphModule:
        program: fx.GraphModule = work.specialiser.make(choice)
        if verifying():
            verify_new(work, choice, program)
        return contexts.write_back(own(choice, program))

    programs = {choice: contexts.write_back(own(choice, program)) for choice, program in work.programs.items()}
    _log_outcome(work)
    return Rewrite(
        work.layout,
        captured,
        guarded,
        programs,
        work.block_nodes,
        work.sites,
        work.refused,
        work.ranks,
        groups,
        work.stages,
        [*work.tokenwise],
        work.partitioned,
        work.sparse,
        work.records,
        make,
    )


def _as_it_is(choice: Choice, program: fx.GraphModule) -> fx.GraphModule:
    return program


def _log_outcome(work: Work) -> None:
    layout, sites = work.layout, work.sites
    blocks, slots = len(work.block_nodes), sum(len(site.slots) for site in sites)
    log.info("scope %s: %d blocks, %d sites, %d slots", layout.scope, blocks, len(sites), slots)
    for entry in work.refused:
        log.info("refused %s", entry)
