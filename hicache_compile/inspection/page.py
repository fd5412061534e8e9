"""``index.html``: a self-contained page that shows a policy on a denoiser."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files

from hicache_compile.inspection.decision_map_svg import decision_map
from hicache_compile.inspection.explanation import Explanation
from hicache_compile.inspection.findings import BlockRow, SiteRow
from hicache_compile.inspection.tables import percent, size, tera

INLINE = 400_000  # maximum characters of a graph on the page; longer ones are only linked


def page(
    found: Explanation,
    sources: Mapping[str, str],
    names: Sequence[str],
    versions: Mapping[str, str],
    compared: Sequence[tuple[str, Explanation]] = (),
) -> str:
    """The page's HTML.

    Args:
        found: the explanation to show.
        sources: the text of graphs and generated code, by file name.
        names: the names of the other files in the page's folder.
        versions: of the packages used.
        compared: other policies on the same denoiser.
    """
    here = files("hicache_compile.inspection")
    parts = [
        _headline(found),
        _section("When", "each step of a run, each site", _when(found)),
        _section("Where", "block by block, before and after", _blocks(found)),
        _section("What it costs", "sites by FLOPs and bytes; the same policy elsewhere", _costs(found, compared)),
        _section("Graphs", "as Python; the forecast step is what is left of the denoiser", _sources(sources)),
        _section("Files", "beside this page", _files(names, versions)),
    ]
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(found.model)}: {escape(_policy_name(found))}</title>",
            f"<style>{(here / 'page.css').read_text(encoding='utf-8')}</style></head><body>",
            *parts,
            f"<script>{(here / 'page.js').read_text(encoding='utf-8')}</script></body></html>",
        ]
    )


def _section(title: str, subtitle: str, body: str) -> str:
    anchor = title.lower().replace(" ", "-")
    return f'<section id="{anchor}"><h2>{title} <small>{subtitle}</small></h2>\n{body}\n</section>'


def _policy_name(found: Explanation) -> str:
    policy = found.policy
    schedule, forecaster = policy["schedule"], policy["forecaster"]
    return f"{_call(schedule)}, {_call(forecaster)}, scope {found.scope}"


def _call(part: Mapping[str, object]) -> str:
    kind = next((str(part[key]) for key in ("type", "kind", "name") if key in part), "")
    given = ", ".join(f"{k}={v}" for k, v in part.items() if k not in ("type", "kind", "name"))
    return f"{kind}({given})"


def _headline(found: Explanation) -> str:
    computed = found.computed
    tiles = [
        (f"{computed} of {found.num_steps}", "steps computed in full"),
        (f"{found.flops_speedup:.2f}x", "fewer FLOPs: the most it can be faster"),
        (percent(found.flops_forecast / max(1, found.flops_full)), "of a full step is a forecast step"),
        (size(found.state_bytes), "of anchors a guidance branch"),
        (str(len(found.blocks)), "blocks found"),
        (str(len(found.sites)), f"site{'s' * (len(found.sites) != 1)} at scope {found.scope}"),
    ]
    shown = "".join(
        f"<div class=tile><b>{escape(value)}</b><span>{escape(label)}</span></div>" for value, label in tiles
    )
    return (
        f"<header><h1>{escape(found.model)}</h1><p class=policy>{escape(_policy_name(found))}</p>"
        f"<div class=tiles>{shown}</div></header>"
    )


def _when(found: Explanation) -> str:
    legend = (
        '<p class=legend><span class="key full"></span> computed in full <span class="key forecast"></span> forecast '
        '<span class="key unread"></span> nothing reads it <span class="key live"></span> live: always computed</p>'
    )
    return legend + f"<div class=scroll>{decision_map(found)}</div>"


def _blocks(found: Explanation) -> str:
    if not found.blocks:
        return "<p>No block was found: nothing is cached, and every step is computed in full.</p>"
    most = max(block.flops for block in found.blocks) or 1
    by_block: dict[str, list[SiteRow]] = {}
    for site in found.sites:
        for name in site.blocks:
            by_block.setdefault(name, []).append(site)
    rows, pending = [], 0
    for block in found.blocks:
        sites = by_block.get(block.name, [])
        wide = next((site for site in sites if len(site.blocks) > 1), None)
        cell = ""
        if wide is not None and pending == 0:
            pending = len(wide.blocks)
            cell = f"<td rowspan={pending} class=wide>{_branches(wide)}</td>"
        elif wide is None:
            live = "<span class=chip>live</span> computed at every step"
            cell = f"<td>{''.join(map(_branches, sites)) or live}</td>"
        pending = max(0, pending - 1)
        rows.append(f"<tr><td>{_before(block, most)}</td>{cell}</tr>")
    head = "<tr><th>before: the denoiser's block</th><th>after: one branch is taken a step</th></tr>"
    return f'<div class="scroll tall"><table class=blocks><thead>{head}</thead><tbody>{"".join(rows)}</tbody></table></div>'


def _before(block: BlockRow, most: int) -> str:
    bar = f'<i class=bar style="width:{100 * block.flops / most:.1f}%"></i>'
    return f"<b>{escape(block.name)}</b> <span class=dim>{block.nodes} ops, {tera(block.flops)}</span>{bar}"


def _branches(site: SiteRow) -> str:
    if site.shapes:
        rings = ", ".join(" x ".join(map(str, shape)) for shape in site.shapes)
        forecast = f"weighted sum of anchors <code>{rings}</code>"
    else:
        forecast = "not needed: nothing else reads it"
    return (
        f'<div class=site data-name="{escape(site.name)}"><b>{escape(site.name)}</b> <span class=dim>{escape(site.kind)}'
        f'</span><div><span class="chip full">full</span> {site.nodes} ops, {tera(site.flops)}</div>'
        f'<div><span class="chip forecast">forecast</span> {forecast}</div></div>'
    )


def _costs(found: Explanation, compared: Sequence[tuple[str, Explanation]]) -> str:
    most = max((site.flops for site in found.sites), default=1) or 1
    largest = max((site.nbytes for site in found.sites), default=1) or 1
    rows = "".join(
        f'<tr data-name="{escape(site.name)} {escape(site.kind)}"><td>{escape(site.name)}</td><td>{escape(site.kind)}</td>'
        f"{_measure(site.flops, most, tera(site.flops))}{_measure(site.share, 0, percent(site.share))}"
        f"{_measure(site.nbytes, largest, size(site.nbytes))}</tr>"
        for site in found.sites
    )
    sites = (
        '<p><input id=search type=search placeholder="search sites: attn, mlp, blocks.7 ..." aria-label="search sites"> '
        '<span id=hits class=dim></span></p><div class="scroll tall"><table id=sites><thead><tr><th>site</th><th>kind</th>'
        "<th class=num>FLOPs</th><th class=num>of a step</th><th class=num>anchors</th></tr></thead>"
        f"<tbody>{rows}</tbody></table></div>"
    )
    scopes = "".join(
        f"<tr{' class=chosen' if row.scope == found.scope else ''}><td>{row.scope}</td><td class=num>{row.sites}</td>"
        f"<td class=num>{row.slots}</td><td class=num>{tera(row.flops_forecast)}</td><td class=num>{size(row.state_bytes)}"
        f"</td><td class=num>{row.ceiling:.2f}x</td></tr>"
        for row in found.scopes
    )
    head = "<th>scope</th><th>sites</th><th>slots kept</th><th>forecast step</th><th>anchors</th><th>ceiling</th>"
    elsewhere = f"<h3>the same policy at each scope</h3><table class=plain><tr>{head}</tr>{scopes}</table>"
    return sites + elsewhere + _compared(compared) + _refused(found)


def _measure(value: float, most: float, label: str) -> str:
    bar = f'<i class=bar style="width:{100 * value / most:.1f}%"></i>' if most else ""
    return f'<td class=num data-value="{value}">{label}{bar}</td>'


def _compared(compared: Sequence[tuple[str, Explanation]]) -> str:
    if not compared:
        return ""
    rows = "".join(
        f"<tr><td>{escape(name)}</td><td>{each.scope}</td><td class=num>{each.computed} of {each.num_steps}</td>"
        f"<td class=num>{size(each.state_bytes)}</td><td class=num>{each.flops_speedup:.2f}x</td></tr>"
        for name, each in compared
    )
    head = "<th>policy</th><th>scope</th><th>full steps</th><th>anchors</th><th>ceiling</th>"
    return f"<h3>other policies</h3><table class=plain><tr>{head}</tr>{rows}</table>"


def _refused(found: Explanation) -> str:
    if not found.refused:
        return ""
    rows = "".join(f"<tr><td>{escape(site)}</td><td>{escape(reason)}</td></tr>" for site, reason in found.refused)
    return f'<h3>refused</h3><div class="scroll tall"><table class=plain><tr><th>site</th><th>why</th></tr>{rows}</table></div>'


def _sources(sources: Mapping[str, str]) -> str:
    shown = []
    for name, text in sources.items():
        lines = text.count("\n")
        title = f'<a href="{escape(name)}">{escape(name)}</a> <span class=dim>{lines:,} lines</span>'
        if len(text) > INLINE:
            shown.append(f"<p>{title} <span class=dim>too long for this page</span></p>")
        else:
            shown.append(f"<details><summary>{title}</summary><pre>{escape(text)}</pre></details>")
    return "\n".join(shown)


def _files(names: Sequence[str], versions: Mapping[str, str]) -> str:
    links = " ".join(f'<a href="{escape(name)}">{escape(name)}</a>' for name in names)
    return f"<p class=files>{links}</p><p class=dim>{escape(json.dumps(dict(versions))[1:-1].replace(chr(34), ''))}</p>"
