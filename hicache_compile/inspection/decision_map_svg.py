"""The decision map as SVG: one row per site, one column per step."""

from __future__ import annotations

from html import escape

from hicache_compile.inspection.explanation import Explanation

LABELS = 300  # width of the row names in pixels


def decision_map(found: Explanation) -> str:
    """The map of ``found``. Equal rows share one drawing, so the file stays small for deep models."""
    rows = _rows(found)
    steps = found.num_steps
    tall = 20 if len(rows) <= 12 else 13 if len(rows) <= 60 else 10
    wide = max(4, min(22, 880 // steps))
    width, height = LABELS + wide * steps + 8, 24 + tall * len(rows) + 4
    kinds = dict.fromkeys(kind for _, kind in rows)
    patterns = "".join(f'<g id="row-{kind}">{_cells(kind, found.decisions, wide, tall)}</g>' for kind in kinds)
    every = next(n for n in (1, 2, 5, 10, 20, 50, 100, 500, steps) if wide * n >= 22 or n >= steps)
    axis = "".join(
        f'<text class=axis x="{LABELS + wide * step + wide / 2:g}" y="15">{step}</text>'
        for step in range(0, steps, every)
    )
    drawn = "".join(
        f'<g class=row data-name="{escape(name)}"><text class=name x="{LABELS - 8}" y="{24 + tall * i + tall * 0.76:g}" '
        f'style="font-size:{min(12, tall - 1)}px">{escape(_shortened(name))}<title>{escape(name)}</title></text>'
        f'<use href="#row-{kind}" x="{LABELS}" y="{24 + tall * i}"/></g>'
        for i, (name, kind) in enumerate(rows)
    )
    return (
        f'<svg id=map width="{width}" height="{height}" role="img" aria-label="decision map"><defs>{patterns}</defs>'
        f"{axis}{drawn}</svg>"
    )


def _rows(found: Explanation) -> list[tuple[str, str]]:
    """Name and kind of each row, in block order."""
    order = {block.name: place for place, block in enumerate(found.blocks)}
    inside = {name for site in found.sites for name in site.blocks}
    placed = [
        (
            order.get(site.blocks[0], 0) if site.blocks else len(order),
            site.name,
            "forecast" if site.shapes else "unread",
        )
        for site in found.sites
    ]
    placed += [(place, name, "live") for name, place in order.items() if name not in inside]
    return [(name, kind) for _, name, kind in sorted(placed, key=lambda row: row[0])] + [("everything else", "live")]


def _cells(kind: str, decisions: str, wide: int, tall: int) -> str:
    cells = []
    for step, letter in enumerate(decisions):
        state = "full" if letter in "FS" and kind != "live" else kind
        cells.append(
            f'<rect class="{state}" x="{wide * step}" y="0" width="{wide - 1}" height="{tall - 1}">'
            f"<title>step {step}: {state}</title></rect>"
        )
    return "".join(cells)


def _shortened(name: str, most: int = 46) -> str:
    return name if len(name) <= most else "..." + name[3 - most :]
