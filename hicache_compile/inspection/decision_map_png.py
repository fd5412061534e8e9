"""The decision map as a PNG: one column per step, one row per site."""

from __future__ import annotations

from pathlib import Path

from hicache_compile.inspection.decision_rows import NAMES, DecisionRows
from hicache_compile.inspection.figures import save_figure

COLOURS = {"f": "#8f8a80", "a": "#2a9d6f", "c": "#d1495b", "t": "#e8a0aa", "r": "#e7e5df", "-": "#ffffff"}
INK, FAINT = "#222222", "#777777"
MOST_LABELS = 40


def draw(decisions: DecisionRows, path: Path) -> None:
    """Write the map as a PNG to ``path``."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    rows, steps = decisions.rows, decisions.steps
    cell = 0.2 if len(rows) <= MOST_LABELS else 0.09
    labels = max((len(row.name) for row in rows), default=0) * 0.075 + 0.3
    wide, high = max(5.0, 0.19 * steps) + labels, max(0.2, cell * len(rows)) + 1.25
    figure = Figure(figsize=(wide, high), dpi=150, facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_axes((labels / wide, 0.55 / high, 1 - (labels + 0.15) / wide, 1 - 1.2 / high))
    for number, row in enumerate(rows):
        for step, letter in enumerate(row.cells):
            axes.add_patch(_cell(step, number, COLOURS[letter]))
        if number and decisions.groups > 1 and number % decisions.groups == 0:
            axes.axhline(number, color=INK, lw=0.4)
    axes.set_xlim(0, max(1, steps))
    axes.set_ylim(max(1, len(rows)), 0)
    every = -(-len(rows) // MOST_LABELS)
    shown = range(0, len(rows), every)
    axes.set_yticks([number + 0.5 for number in shown], [rows[number].name for number in shown], size=7, color=INK)
    ticks = range(0, steps, 5 if steps > 12 else 1)
    axes.set_xticks([step + 0.5 for step in ticks], [str(step) for step in ticks], size=7, color=FAINT)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    figure.text(
        0.15 / wide, 1 - 0.3 / high, f"{decisions.strategy}: what each step computed", size=11, weight="bold", color=INK
    )
    seen = [letter for letter in NAMES if any(letter in row.cells for row in rows)]
    share = sum(row.cells.count("r") for row in rows) / max(1, sum(len(row.cells) for row in rows))
    figure.text(
        0.15 / wide,
        1 - 0.52 / high,
        f"{steps} steps, {len(rows)} rows, {100 * share:.0f} % of the cells not computed",
        size=8,
        color=FAINT,
    )
    patches = [Patch(facecolor=COLOURS[letter], edgecolor="#bbbbbb", lw=0.4, label=NAMES[letter]) for letter in seen]
    figure.legend(handles=patches, loc="lower right", ncols=len(patches), frameon=False, fontsize=7.5)
    save_figure(figure, path)


def _cell(step: int, number: int, colour: str):  # type: ignore[no-untyped-def]  # matplotlib is half typed
    from matplotlib.patches import Rectangle

    return Rectangle((step + 0.04, number + 0.04), 0.92, 0.92, facecolor=colour, lw=0)
