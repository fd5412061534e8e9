"""Steps as drawings: a strip of letters, and a map with one row per site. Each state has a shape and a colour."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from itertools import groupby

from hicache_compile.inspection.page.markup import MORE
from hicache_compile.inspection.page.words import Letters
from hicache_compile.inspection.tables import pattern

MANY = 200  # steps of a run that are drawn one by one
LONGEST = 44  # characters of a row's name
HEIGHTS = {  # of a state's bar, as a part of the cell
    "full": 1.0,
    "forced": 1.0,
    "anchor": 1.0,
    "sparse": 0.8,
    "tokens": 0.62,
    "forecast": 0.4,
    "free": 0.4,
    "unread": 0.14,
    "live": 1.0,
    "unknown": 0.0,
}
MEANING = {
    "full": "computed in full",
    "forced": "computed, because the policy always computes this step",
    "anchor": "computed over all keys, as the anchor that later steps are compared with",
    "sparse": "computed sparsely",
    "tokens": "some tokens computed",
    "forecast": "forecast or reused",
    "free": "decided during the run",
    "unread": "not needed: nothing reads it",
    "live": "live: outside the sites, computed where something reads it",
    "unknown": "not known",
}
OF_CELL = {"f": "forced", "a": "anchor", "c": "full", "t": "tokens", "r": "forecast", "-": "unknown"}

Drawn = tuple[str, Sequence[str]]  # the name of a row, and its state in each step


def strip(run: str, letters: Letters, label: str) -> str:
    """One cell a step with its letter; of a long run the letters alone."""
    if len(run) > MANY:
        return f"<p><code>{escape(run)}</code></p>"
    cells = "".join(
        f'<span><b class="cell {letters[letter][0]}">{escape(letter)}</b>{f"<i>{step}</i>" if step % 5 == 0 else ""}</span>'
        for step, letter in enumerate(run)
    )
    spoken = "; ".join(
        f"{letters[letter][1].partition(':')[0]} in {_ranges([s for s, other in enumerate(run) if other == letter])}"
        for letter in dict.fromkeys(run)
    )
    return f'<div class=strip role=img aria-label="{escape(f"{label}: {spoken}")}">{cells}</div>'


def _ranges(steps: Sequence[int]) -> str:
    """``0 to 2, 8, 14``."""
    runs: list[list[int]] = []
    for step in steps:
        if runs and step == runs[-1][1] + 1:
            runs[-1][1] = step
        else:
            runs.append([step, step])
    return ", ".join(str(first) if first == last else f"{first} to {last}" for first, last in runs)


def letter_legend(run: str, letters: Letters) -> str:
    """What each letter that occurs means."""
    keys = "".join(
        f'<li><b class="cell {letters[letter][0]}">{escape(letter)}</b> {escape(letters[letter][1])}</li>'
        for letter in dict.fromkeys(run)
    )
    return f"<ul class=legend>{keys}</ul>"


def shape_legend(rows: Sequence[Drawn]) -> str:
    """What each shape that occurs in the map means."""
    states = dict.fromkeys(state for _, states in rows for state in states)
    keys = "".join(
        f"<li><svg width=16 height=16 aria-hidden=true focusable=false>{_shape(state, 1, 16, 16)}</svg> "
        f"{escape(MEANING[state])}</li>"
        for state in states
    )
    return f"<ul class=legend>{keys}</ul>"


def together(rows: Sequence[Drawn]) -> list[Drawn]:
    """``rows``, those of equal sites of different blocks as one where there would be too many."""
    if len(rows) <= MORE:
        return list(rows)
    found: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for name, states in rows:
        found.setdefault((pattern(name), tuple(states)), []).append(name)
    return [
        (names[0] if len(names) == 1 else f"{alike} ({len(names)})", states) for (alike, states), names in found.items()
    ]


def step_map(rows: Sequence[Drawn], identity: str, title: str) -> str:
    """A row per site, a column per step. Equal rows share one drawing, so that a deep model stays small."""
    steps = max((len(states) for _, states in rows), default=0)
    tall, wide = 20 if len(rows) <= 12 else 14, max(4, min(18, 880 // max(1, steps)))
    size = min(12, tall - 2)
    left = 16 + round(0.62 * size * max((len(_shortened(name)) for name, _ in rows), default=0))
    shared = {states: f"{identity}-{place}" for place, states in enumerate(dict.fromkeys(tuple(s) for _, s in rows))}
    patterns = "".join(f'<g id="{name}">{_cells(states, wide, tall)}</g>' for states, name in shared.items())
    drawn = "".join(
        f'<g class=row data-name="{escape(name)}"><text class=name x="{left - 8}" y="{24 + tall * (i + 0.72):g}" '
        f'style="font-size:{size}px">{escape(_shortened(name))}<title>{escape(name)}</title></text>'
        f'<use href="#{shared[tuple(states)]}" x="{left}" y="{24 + tall * i}"/></g>'
        for i, (name, states) in enumerate(rows)
    )
    width, height = left + wide * steps + 8, 28 + tall * len(rows)
    return (
        f'<svg class=map id="{identity}" width="{width}" height="{height}" viewBox="0 0 {width} {height}" role=img '
        f'aria-labelledby="{identity}-title"><title id="{identity}-title">{escape(title)}</title><defs>{patterns}</defs>'
        f"{_axis(steps, wide, left)}{drawn}</svg>"
    )


def _axis(steps: int, wide: int, left: int) -> str:
    every = next(n for n in (1, 2, 5, 10, 20, 50, 100, 500, max(1, steps)) if wide * n >= 22 or n >= steps)
    return "".join(
        f'<text class=axis x="{left + wide * step + wide / 2:g}" y="15">{step}</text>'
        for step in range(0, steps, every)
    )


def _cells(states: Sequence[str], wide: int, tall: int) -> str:
    """One bar a step; of a long run one bar for equal steps in a row."""
    if len(states) <= MANY:
        return "".join(_shape(state, wide * step, wide, tall) for step, state in enumerate(states))
    drawn, step = "", 0
    for state, equal in groupby(states):
        count = len(list(equal))
        drawn += _shape(state, wide * step, wide * count, tall)
        step += count
    return drawn


def _shape(state: str, x: float, wide: float, tall: float) -> str:
    """The bar of one step: the more of the site is computed, the taller."""
    height = round((tall - 2) * HEIGHTS[state], 1)
    top = round(tall - 1 - height, 1)
    if state == "live":
        return f'<rect class=live x="{x + 0.5}" y="{top + 0.5:g}" width="{wide - 2}" height="{height - 1:g}"/>'
    drawn = f'<rect class={state} x="{x}" y="{top:g}" width="{wide - 1}" height="{height:g}"/>' if height else ""
    if state == "forced":  # a slit tells it from a step that was computed for another reason
        drawn += f'<rect class=slit x="{x}" y="{tall / 2 - 1:g}" width="{wide - 1}" height="2"/>'
    if state == "anchor":
        drawn += f'<circle class=slit cx="{x + (wide - 1) / 2:g}" cy="{tall / 2:g}" r="{min(wide, tall) / 5:g}"/>'
    return drawn


def _shortened(name: str, most: int = LONGEST) -> str:
    return name if len(name) <= most else "..." + name[3 - most :]
