"""The sections that compare: sites with one another, the policy at other scopes, other policies."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from hicache_compile.inspection.findings import Findings, SiteRow
from hicache_compile.inspection.page.markup import bar, row, scrolled, table
from hicache_compile.inspection.tables import percent, size, tera

HEADINGS = ("site", "kind", "FLOPs", "of a step", "anchors")


def sites(found: Findings) -> str:
    """All sites, to search and sort."""
    if not found.sites:
        return f"<p>There is no site at scope {escape(found.scope)}.</p>"
    most = max(site.flops for site in found.sites) or 1
    largest = max(site.nbytes for site in found.sites) or 1
    rows = "".join(_row(site, most, largest) for site in found.sites)
    heads = "".join(
        f"<th scope=col{' class=num' if place > 1 else ''}><button type=button>{heading}</button></th>"
        for place, heading in enumerate(HEADINGS)
    )
    return (
        '<p><label for=search>Search sites</label> <input id=search type=search placeholder="attn, mlp, blocks.7 ..."> '
        "<span id=hits class=dim role=status></span></p>"
        + scrolled("sites", f"<table id=sites><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>", tall=True)
    )


def _row(site: SiteRow, most: int, largest: int) -> str:
    return (
        f'<tr data-name="{escape(site.name)} {escape(site.kind)}"><td>{escape(site.name)}</td><td>{escape(site.kind)}</td>'
        f"{_measure(site.flops, tera(site.flops), site.flops / most)}{_measure(site.share, percent(site.share))}"
        f"{_measure(site.nbytes, size(site.nbytes), site.nbytes / largest)}</tr>"
    )


def _measure(value: float, label: str, share: float | None = None) -> str:
    drawn = "" if share is None else bar(share)
    return f'<td class=num data-value="{value}">{label}{drawn}</td>'


def elsewhere(found: Findings, compared: Sequence[tuple[str, Findings]]) -> str:
    """The same policy at each scope, and other policies."""
    scopes = [
        row(
            [each.scope],
            [
                str(each.sites),
                str(each.slots),
                tera(each.flops_forecast),
                size(each.state_bytes),
                ceiling(each.ceiling),
            ],
            chosen=each.scope == found.scope,
        )
        for each in found.scopes
    ]
    headings = ("scope", "#sites", "#slots kept", "#forecast step", "#anchors", "#at most")
    shown = f"<h3>The same policy at each scope</h3>{table('the same policy at each scope', headings, scopes)}"
    if not compared:
        return shown
    others = [
        row(
            [name, each.scope],
            [f"{each.computed} of {each.num_steps}", size(each.state_bytes), ceiling(each.flops_speedup)],
            chosen=each is found,
        )
        for name, each in compared
    ]
    heads = ("policy", "scope", "#full steps", "#anchors", "#at most")
    return f"{shown}<h3>Other policies</h3>{table('other policies', heads, others)}"


def ceiling(speedup: float) -> str:
    """``5.00x``."""
    return f"{speedup:.2f}x"
