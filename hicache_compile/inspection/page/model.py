"""The section about the model: its blocks in order, each with its sites."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from itertools import groupby

from hicache_compile.inspection.findings import BlockRow, Findings, SiteRow
from hicache_compile.inspection.page.block_states import MEANING, STATES, BlockState, block_states
from hicache_compile.inspection.page.markup import coded, counted, hidden, row, table
from hicache_compile.inspection.tables import pattern, percent, size, tera

KINDS = {  # of a site -> colour, letter, in words
    "self-attention": ("attention", "A", "self-attention"),
    "joint-attention": ("attention", "J", "joint attention: image and text tokens together"),
    "temporal-attention": ("attention", "T", "attention over time"),
    "cross-attention": ("cross", "X", "cross-attention"),
    "mlp": ("mlp", "M", "MLP"),
    "moe": ("mlp", "E", "mixture of experts"),
    "parallel": ("parallel", "P", "attention and MLP in parallel"),
    "blocks": ("other", "B", "several attentions or MLPs"),
    "other": ("other", "O", "other site"),
}
REST = ("rest", "", "other operators of the block")
LEAST = 0.02  # of a block's FLOPs: a smaller part is not drawn


def model(found: Findings) -> str:
    """The blocks as tiles; a tile opens to the block's sites."""
    if not found.blocks:
        return "<p>No block was found: nothing is cached, and every step is computed in full.</p>"
    states = block_states(found)
    most = max(block.flops for block in found.blocks) or 1
    shown = [_legend(found, states)]
    for stack, blocks in groupby(found.blocks, key=lambda block: pattern(block.name)):
        own = list(blocks)
        title = stack.removesuffix(".*") if len(own) > 1 else own[0].name
        tiles = "".join(_tile(block, states[block.name], found, most) for block in own)
        flops = sum(block.flops for block in own)
        about = f"{counted(len(own), 'block')}, {tera(flops)} in a full step"
        shown.append(f"<h3>{escape(title)} <small>{about}</small></h3><div class=blocks>{tiles}</div>")
    outside = found.flops_full - sum(block.flops for block in found.blocks)
    shown.append(f"<p class=dim>Outside the blocks: {tera(max(0, outside))} in a full step.</p>")
    return "\n".join(shown)


def _legend(found: Findings, states: dict[str, BlockState]) -> str:
    kinds = dict.fromkeys(kind for block in found.blocks for kind in block.kinds)
    drawn = {KINDS.get(kind, KINDS["other"]) for kind in kinds}
    parts = [part for part in dict.fromkeys(KINDS.values()) if part in drawn]
    parts += [REST] if any(colour == "rest" for block in found.blocks for colour, *_ in _parts(block)) else []
    keys = [f'<li><b class="key {colour}">{letter}</b> {words}</li>' for colour, letter, words in parts]
    marks = {state.name for state in states.values()}
    keys += [
        f'<li><b class="mark {name}">{STATES[name]}</b> {meaning}</li>'
        for name, meaning in MEANING.items()
        if name in marks
    ]
    if any(state.refused for state in states.values()):
        keys.append("<li><b class=flag>!</b> a part of it was refused</li>")
    return f"<ul class=legend>{''.join(keys)}</ul>"


def _parts(block: BlockRow) -> Iterator[tuple[str, str, str, float]]:
    """Colour, letter, words and share of each part of ``block`` that is drawn."""
    total = block.flops or sum(block.kinds.values()) or 1
    for kind, flops in block.kinds.items():
        if flops / total >= LEAST:
            yield (*KINDS.get(kind, KINDS["other"]), flops / total)
    rest = 1 - sum(block.kinds.values()) / total
    if rest >= LEAST:
        yield (*REST, rest)


def _tile(block: BlockRow, state: BlockState, found: Findings, most: int) -> str:
    parts = list(_parts(block))
    segments = "".join(
        f'<i class="part {colour}" style="flex:{share:.3f}">{letter if share >= 0.15 else ""}</i>'
        for colour, letter, _, share in parts
    )
    spoken = ", ".join(f"{words.partition(':')[0]} {100 * share:.0f} %" for _, _, words, share in parts)
    tall = max(14, round(64 * block.flops / most))
    stack, label = _named(block.name)
    flag = f"<b class=flag aria-hidden=true>!</b>{hidden(' in part refused')}" if state.refused else ""
    return (
        f'<details class=block><summary data-name="{escape(block.name)}"><b>{hidden(stack)}{escape(label)}{flag}</b>'
        f'<span class=stack aria-hidden=true><span style="height:{tall}px">{segments}</span></span>{hidden(f", {spoken}, ")}'
        f'<span class="mark {state.name}">{STATES[state.name]}</span></summary>'
        f"<div class=panel>{_panel(block, state, found)}</div></details>"
    )


def _named(name: str) -> tuple[str, str]:
    """What of the name of a block all of its stack have, and what tells it apart."""
    stack, dot, last = name.rpartition(".")
    return (stack + dot, last) if last.isdigit() else ("", name)


def _panel(block: BlockRow, state: BlockState, found: Findings) -> str:
    about = (
        f"{counted(block.nodes, 'operator')}, {tera(block.flops)} in a full step. {MEANING[state.name].capitalize()}."
    )
    if state.sites and block.skipped < block.flops:
        about += f" {tera(block.flops - block.skipped)} of it are outside the sites."
    wide = "".join(
        f"<p>It is inside the site <code>{escape(site.name)}</code>, over {counted(len(site.blocks), 'block')}.</p>"
        for site in state.sites
        if len(site.blocks) > 1
    )
    rows = [_site(site, found) for site in state.sites]
    headings = ("site", "kind", "in a forecast step", "#FLOPs", "#of a step", "#slot bytes")
    sites = table(f"sites of {block.name}", headings, rows) if rows else ""
    refused = "".join(
        f"<li><code>{escape(name)}</code> refused: {coded(reason)}</li>" for name, reason in state.refused
    )
    notes = f"<ul>{refused}</ul>" if refused else ""
    return f"<p><b>{escape(block.name)}</b> <span class=dim>{escape(about)}</span></p>{wide}{sites}{notes}"


def _site(site: SiteRow, found: Findings) -> str:
    numbers = (tera(site.flops), percent(site.share), size(site.nbytes))
    return row((site.name, site.kind, _instead(site, found)), numbers)


def _instead(site: SiteRow, found: Findings) -> str:
    if not site.shapes:
        return "not needed: nothing reads it"
    return f"from {rings(site)}" + (", or some tokens computed" if site.name in found.tokenwise else "")


def rings(site: SiteRow) -> str:
    """``3 anchors of [1, 4096, 3072] bfloat16``."""
    return " and ".join(
        f"{counted(shape[0], 'anchor')} of {shape[1:]} {dtype}"
        for shape, dtype in zip(site.shapes, site.dtypes or [""] * len(site.shapes), strict=True)
    )


def site_kinds(sites: Sequence[SiteRow]) -> dict[str, list[SiteRow]]:
    """The sites by kind, in the order of ``KINDS``."""
    found: dict[str, list[SiteRow]] = {kind: [] for kind in KINDS}
    for site in sites:
        found.setdefault(site.kind, []).append(site)
    return {kind: own for kind, own in found.items() if own}
