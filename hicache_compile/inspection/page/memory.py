"""The section about memory: what is kept, by kind of site."""

from __future__ import annotations

from html import escape

from hicache_compile.inspection.findings import Findings, SiteRow
from hicache_compile.inspection.page.markup import bar, counted, table
from hicache_compile.inspection.page.model import KINDS, rings, site_kinds
from hicache_compile.inspection.tables import size


def memory(found: Findings) -> str:
    """Anchors by kind of site, what else is kept, their total, and what a budget has to say."""
    budget = f"Memory budget: {found.memory}." if found.memory else "No memory budget is set."
    total = (
        f"<p><b>{size(found.state_bytes)}</b> for one guidance branch of one run; two branches keep twice as much. "
        f"{escape(budget)}</p>"
    )
    slots = sum(len(site.shapes) for site in found.sites)
    if not slots:
        return total + "<p>No forecast reads an anchor, so none is kept by site.</p>"
    rows = [_row(kind, sites, found.state_bytes) for kind, sites in site_kinds(found.sites).items()]
    others = found.state_bytes - sum(site.nbytes for site in found.sites)
    if others:
        what = "what guards, chosen tokens and sparse steps remember"
        rows.append(
            f"<tr><td>other</td><td>{what}</td><td></td><td></td>"
            f"<td class=num>{size(others)}{bar(others / max(1, found.state_bytes))}</td></tr>"
        )
    numbers = "".join(f"<td class=num>{one}</td>" for one in (len(found.sites), slots, size(found.state_bytes)))
    rows.append(f"<tr class=chosen><td>all</td><td></td>{numbers}</tr>")
    return total + table("memory by kind of site", ("kind", "kept of each site", "#sites", "#slots", "#bytes"), rows)


def _row(kind: str, sites: list[SiteRow], total: int) -> str:
    colour, letter, _ = KINDS.get(kind, KINDS["other"])
    kept = dict.fromkeys(rings(site) or "nothing: not read" for site in sites)
    some = "; ".join([*kept][:3]) + (f"; and {counted(len(kept) - 3, 'other shape')}" if len(kept) > 3 else "")
    nbytes = sum(site.nbytes for site in sites)
    slots = sum(len(site.shapes) for site in sites)
    return (
        f'<tr><td><b class="key {colour}" aria-hidden=true>{letter}</b> {escape(kind)}</td><td>{escape(some)}</td>'
        f"<td class=num>{len(sites)}</td><td class=num>{slots}</td>"
        f"<td class=num>{size(nbytes)}{bar(nbytes / max(1, total))}</td></tr>"
    )
