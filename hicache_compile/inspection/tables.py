"""An explanation, and a comparison of several, as terminal tables."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from hicache_compile.inspection.findings import Findings, SiteRow, computed_in

WIDTH = 128  # of text that is not printed to a terminal
MOST_PATHS = 4  # in one line
SHOWN = 24  # maximum number of rows; equal sites of different blocks share a row


def render(found: Findings) -> str:
    """The tables of ``found`` as text."""
    console = Console(markup=False, width=WIDTH, color_system=None, record=False, file=None)
    with console.capture() as captured:
        console.print(tables(found))
    return captured.get()


def tables(found: Findings) -> RenderableType:
    """The tables of ``found``, for a rich console."""
    parts: list[RenderableType] = [_summary(found), ""]
    if len(found.parts) > 1:
        parts += [_graphs(found), ""]
    parts += [_scopes(found), "", _sites(found)]
    if found.refused:
        parts += ["", _refused(found)]
    return Group(*parts)


def comparison(found: Sequence[tuple[str, Findings]]) -> Table:
    """One row per policy: full steps, FLOPs, anchor bytes, speed-up ceiling."""
    first = found[0][1]
    title = f"{first.model}, {first.num_steps} steps; uncached {tera(first.num_steps * first.flops_full)}"
    table = Table(box=SIMPLE_HEAD, title=title, title_justify="left")
    table.add_column("policy")
    table.add_column("scope")
    for heading in ("full steps", "forecast / full", "FLOPs", "anchors a branch", "speed-up ceiling"):
        table.add_column(heading, justify="right")
    for name, each in found:
        spent = each.num_steps * each.flops_full / each.flops_speedup
        table.add_row(
            name,
            each.scope,
            f"{each.computed} of {each.num_steps}",
            percent(each.flops_forecast / each.flops_full),
            tera(spent),
            size(each.state_bytes),
            f"{each.flops_speedup:.2f}x",
        )
    return table


def _summary(found: Findings) -> Text:
    stacks = ", ".join(f"{count} in {name}" for name, count in found.stacks.items()) or "none found"
    graphs = f"{found.graphs} graph{'s' * (found.graphs > 1)}, {found.nodes} nodes"
    every = ", in every branch that is not below" if found.branches else ""
    lines = [
        f"{found.model}: {graphs}; {len(found.blocks)} blocks: {stacks}",
        f"{found.decisions}  {found.computed} of {found.num_steps} steps computed{every}",
        *(
            f"{one.decisions}  {computed_in(one.decisions)} in branch {one.name}, "
            f"at most {one.flops_speedup:.2f}x faster"
            for one in found.branches
        ),
        f"full step {tera(found.flops_full)}, forecast step {tera(found.flops_forecast)} "
        f"({percent(found.flops_forecast / max(1, found.flops_full))}); at most {found.flops_speedup:.2f}x faster; "
        f"anchors {size(found.state_bytes)} a guidance branch",
    ]
    if found.by_sample:
        lines.append("FLOPs and bytes are of one sample: each of a batch decides for itself")
    if found.collectives_full:
        lines.append(
            f"to other ranks: {found.collectives_full} collectives, {size(found.bytes_sent_full)} in a full step; "
            f"{found.collectives_forecast}, {size(found.bytes_sent_forecast)} in a forecast"
        )
    if found.sparse:
        lines.append(f"{found.decisions.count('S')} steps sparse in {len(found.sparse)} attentions and MLPs")
    lines += passes(found) + opaque_lines(found.opaque)
    return Text("\n".join(lines))


def passes(found: Findings) -> list[str]:
    """A line for each pass of your own."""
    return [f"own pass {own.name}: changed {own.changed} of {own.programs} programs" for own in found.program_passes]


def opaque_lines(opaque: Sequence[tuple[str, str]]) -> list[str]:
    """A line for each piece of code that Dynamo cannot trace, with the submodules that are one operator for it."""
    of_code: dict[str, list[str]] = {}
    for path, why in opaque:
        of_code.setdefault(why, []).append(path)
    return [
        f"{len(paths)} opaque operator{'s' * (len(paths) > 1)} (own Python in computed steps): "
        f"{', '.join(paths[:MOST_PATHS])}{', ...' * (len(paths) > MOST_PATHS)}; Dynamo cannot trace {why or 'them'}"
        for why, paths in of_code.items()
    ]


def _graphs(found: Findings) -> Table:
    table = Table(box=SIMPLE_HEAD, title="the graphs of a call, in order", title_justify="left")
    for heading in ("graph", "nodes", "blocks", "sites", "full step", "forecast step", "opaque"):
        table.add_column(heading, justify="left" if heading == "graph" else "right")
    table.add_column("what is not cached")
    for number, part in enumerate(found.parts):
        steps = tera(part.flops_full), tera(part.flops_forecast)
        table.add_row(str(number), *map(str, (part.nodes, part.blocks, part.sites)), *steps, str(part.opaque), part.why)
    return table


def _scopes(found: Findings) -> Table:
    table = Table(box=SIMPLE_HEAD, title="the same policy at each scope", title_justify="left")
    table.add_column("scope")
    for heading in ("sites", "slots kept", "forecast step", "of a full one", "anchors a branch", "speed-up ceiling"):
        table.add_column(heading, justify="right")
    for row in found.scopes:
        table.add_row(
            row.scope,
            str(row.sites),
            str(row.slots),
            tera(row.flops_forecast),
            percent(row.flops_forecast / max(1, found.flops_full)),
            size(row.state_bytes),
            f"{row.ceiling:.2f}x",
            style="bold" if row.scope == found.scope else None,
        )
    return table


def _sites(found: Findings) -> Table:
    table = Table(box=SIMPLE_HEAD, title=f"sites at scope {found.scope}", title_justify="left")
    table.add_column("site", no_wrap=True)
    table.add_column("kind", no_wrap=True)
    for heading in ("sites", "FLOPs each", "of a step", "rings", "anchors"):
        table.add_column(heading, justify="right", no_wrap=True)
    groups = _alike(found.sites)
    for group in groups[:SHOWN]:
        one = group[0]
        table.add_row(
            one.name if len(group) == 1 else pattern(one.name),
            one.kind,
            str(len(group)),
            tera(one.flops),
            percent(sum(site.share for site in group)),
            " ".join(str(shape).replace(" ", "") for shape in one.shapes) or "not read",
            size(sum(site.nbytes for site in group)),
        )
    if len(groups) > SHOWN:
        table.add_row(f"and {len(groups) - SHOWN} more kinds of sites: see to_json()")
    return table


def _alike(sites: Sequence[SiteRow]) -> list[list[SiteRow]]:
    """Groups of sites that differ only in their block."""
    groups: dict[object, list[SiteRow]] = {}
    for site in sites:
        key = (pattern(site.name), site.kind, site.nodes, site.flops, str(site.shapes))
        groups.setdefault(key, []).append(site)
    return list(groups.values())


def pattern(name: str) -> str:
    """The name of a site without the number of its block: ``blocks.*.attn``."""
    return ".".join("*" if part.isdigit() else part for part in name.split("."))


def _refused(found: Findings) -> Table:
    table = Table(box=SIMPLE_HEAD, title="refused", title_justify="left")
    table.add_column("site")
    table.add_column("why")
    for site, reason in found.refused[:SHOWN]:
        table.add_row(site, reason)
    if len(found.refused) > SHOWN:
        table.add_row(f"and {len(found.refused) - SHOWN} more", "see to_json()")
    return table


def tera(flops: float) -> str:
    """``74.38 TFLOPs``."""
    for unit, scale in (("TFLOPs", 1e12), ("GFLOPs", 1e9), ("MFLOPs", 1e6)):
        if flops >= scale:
            return f"{flops / scale:.2f} {unit}"
    return f"{flops:,.0f} FLOPs"


def size(nbytes: float) -> str:
    """``1.88 GiB``."""
    for unit, scale in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if nbytes >= scale:
            return f"{nbytes / scale:.2f} {unit}"
    return f"{nbytes:.0f} B"


def percent(share: float) -> str:
    return f"{100 * share:.2f} %"
