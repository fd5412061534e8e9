"""cut: the blocks and the sites of the layout, marked on the working copy.

Requires   a working copy of the captured graph
Ensures    ``work.runs`` and ``work.sites``; nodes of blocks have ``meta["block"]``
Raises     HiCacheError where ``first + last`` leaves no block to cache
"""

from __future__ import annotations

from hicache_compile.errors import HiCacheError
from hicache_compile.passes.analysis.blocks import find_runs
from hicache_compile.passes.analysis.sites import find_sites
from hicache_compile.passes.work import Work


def find_blocks(work: Work) -> int:
    """Find the runs of blocks; returns how many blocks there are."""
    work.runs, refused = find_runs(work.module)
    work.refused += refused
    for block in (block for run in work.runs for block in run.blocks):
        work.block_nodes.setdefault(block.name, []).extend(node.name for node in block.nodes)
        for node in block.nodes:
            node.meta["block"] = block.name
    return len(work.block_nodes)


def cut_sites(work: Work) -> int:
    """Find the sites; returns how many there are."""
    first, last = min(work.layout.starts), work.layout.last
    longest = max((len(run.blocks) for run in work.runs), default=0)
    if work.runs and first + last >= longest:
        raise HiCacheError(
            f"Policy.first + Policy.last = {first + last}: must be less than the {longest} blocks in the run"
        )
    work.sites, refused = find_sites(work.module, work.runs, work.layout)
    work.refused += refused
    return len(work.sites)
