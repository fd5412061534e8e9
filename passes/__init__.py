"""From a captured graph to one straight-line program per choice. Read ``build`` from top to bottom."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, replace

import torch
from torch import fx

from hicache_compile.errors import CannotRewrite
from hicache_compile.passes.capture import capture
from hicache_compile.passes.collapse import collapse
from hicache_compile.passes.fuel import spend
from hicache_compile.passes.guard import guard
from hicache_compile.passes.sites import Site, find_sites
from hicache_compile.passes.specialise import Choice, specialise
from hicache_compile.passes.verify import verify_captured, verify_guarded, verify_pair, verify_program

log = logging.getLogger(__name__)

__all__ = ["Choice", "Rewrite", "build", "capture"]


@dataclass(frozen=True, slots=True)
class Rewrite:
    """Everything one run of the passes made: a graph per level and what was declined on the way."""

    captured: fx.GraphModule
    guarded: fx.GraphModule
    programs: dict[Choice, fx.GraphModule]
    block_nodes: dict[str, list[str]]
    sites: list[Site]
    refused: list[CannotRewrite]

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
    *,
    collapsing: bool = True,
    verify: bool | None = None,
) -> Rewrite:
    """Rewrite ``captured`` for sites of ``scope`` with rings of ``depth`` anchors.

    Args:
        captured: what ``capture`` returned; it is not changed.
        scope, first, last: where the sites are cut, see ``Policy``.
        depth: anchors a ring holds.
        anchor_dtype: what they are kept in; by default each in the dtype of its slot.
        collapsing: merge neighbouring residual sites (scope ``block``).
        verify: check every level; by default when the environment has ``HICACHE_VERIFY=1``.
    """
    found = find_sites(captured, scope, first, last)
    refused = list(found.refused)
    if collapsing and scope == "block":
        before = len(found.sites)
        found, apart = collapse(found)
        refused += apart
        log.info(
            "collapse: %d block sites became %d: residuals add up, so their forecasts do", before, len(found.sites)
        )
    sites, unfuelled = spend(found.sites)
    guarded, tangled = guard(replace(found, sites=sites), depth, anchor_dtype)
    refused += unfuelled + tangled
    programs = specialise(guarded)
    if verify if verify is not None else os.environ.get("HICACHE_VERIFY") == "1":
        verify_captured(captured)
        verify_guarded(guarded, captured)
        for choice, program in programs.items():
            verify_program(program, choice, captured, guarded)
        verify_pair(programs)
    declined = {entry.site for entry in tangled}
    sites = [site for site in sites if site.name not in declined]
    _log_outcome(scope, sites, found.blocks, refused)
    return Rewrite(captured, guarded, programs, found.block_nodes, sites, refused)


def _log_outcome(scope: str, sites: list[Site], blocks: int, refused: list[CannotRewrite]) -> None:
    log.info("scope %s: %d blocks, %d sites, %d slots", scope, blocks, len(sites), sum(len(s.slots) for s in sites))
    for entry in refused:
        log.info("refused %s", entry)
    if not sites:
        nearest = refused[0] if refused else "no list of modules with a residual stream was found"
        log.warning("nothing is cached: %d blocks, 0 sites at scope %s; nearest miss: %s", blocks, scope, nearest)
