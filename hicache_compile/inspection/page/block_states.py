"""What becomes of each block in a step that is not computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hicache_compile.inspection.findings import BlockRow, Findings, SiteRow

STATES = {  # the mark on a tile
    "forecast": "forecast",
    "keys": "by keys",
    "unread": "not read",
    "first": "first",
    "last": "last",
    "refused": "refused",
    "live": "live",
}
MEANING = {
    "forecast": "forecast in steps that are not computed",
    "keys": "its attention is computed or reused by groups of keys",
    "unread": "not computed in forecast steps: nothing reads it",
    "first": "kept first: computed in every step",
    "last": "kept last: computed in every step",
    "refused": "refused: could not be rewritten, computed in every step",
    "live": "live: outside the sites, computed where something reads it",
}


@dataclass(frozen=True, slots=True)
class BlockState:
    """``name``: one of ``STATES``; the sites of the block, and what of it was refused, with the reason."""

    name: str
    sites: Sequence[SiteRow]
    refused: Sequence[tuple[str, str]]


def block_states(found: Findings) -> dict[str, BlockState]:
    """The state of each block, by its name."""
    by_block: dict[str, list[SiteRow]] = {}
    for site in found.sites:
        for name in site.blocks:
            by_block.setdefault(name, []).append(site)
    cached = [place for place, block in enumerate(found.blocks) if _is_skipped(block, by_block.get(block.name, []))]
    states = {}
    for place, block in enumerate(found.blocks):
        sites = by_block.get(block.name, [])
        refused = [(name, reason) for name, reason in found.refused if is_in(name, block)]
        states[block.name] = BlockState(_name(place, block, found, sites, refused, cached), sites, refused)
    return states


def is_in(name: str, block: BlockRow) -> bool:
    """Whether what is called ``name`` is ``block`` or inside it."""
    return f"{name}.".startswith(f"{block.name}.")


def _name(
    place: int,
    block: BlockRow,
    found: Findings,
    sites: Sequence[SiteRow],
    refused: Sequence[tuple[str, str]],
    cached: Sequence[int],
) -> str:
    if _is_skipped(block, sites):
        return "forecast" if any(site.shapes for site in sites) else "unread"
    if any(is_in(name, block) for name in found.partitioned):
        return "keys"
    if refused:
        return "refused"
    if cached and place < cached[0]:
        return "first"
    return "last" if cached and place > cached[-1] else "live"


def _is_skipped(block: BlockRow, sites: Sequence[SiteRow]) -> bool:
    """Whether most of ``block`` is in sites; what a guard measures is computed, though a site may reach into it."""
    return bool(sites) and 2 * block.skipped >= block.flops
