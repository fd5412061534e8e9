"""The demo's image: a row of pictures per contestant, with a strip of its full and forecast steps."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hicache_compile.demo.compare import Result
from hicache_compile.inspection.figures import save_figure

FULL, SPARSE, FORECAST = "#d1495b", "#e9a3ac", "#e7e5df"
COLOURS = {"F": FULL, "S": SPARSE}
INK, FAINT = "#222222", "#777777"
WIDTH, HEADER, GAP = 13.0, 1.05, 0.06  # inches
LEFT, RIGHT, STRIP = 1.85, 3.1, 2.8  # inches: names before the pictures, all after them, the strip itself
MOST = 10  # pictures of a row
WRAP = 11  # letters of a caption's line


def draw(results: Sequence[Result], captions: Sequence[str], path: Path) -> None:
    """Write the image of ``results``, of which the first is uncached, as a PNG to ``path``."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    count = min(MOST, len(captions))
    side = (WIDTH - LEFT - RIGHT) / max(count, 6)
    height = HEADER + (side + GAP) * len(results) + GAP
    figure = Figure(figsize=(WIDTH, height), dpi=150, facecolor="white")
    FigureCanvasAgg(figure)
    page = _Page(figure, height)
    _title(page, results)
    for column, caption in enumerate(captions[:count]):
        words = "\n".join(textwrap.wrap(caption.partition(",")[0], WRAP)[:2])
        page.text(LEFT + (column + 0.5) * side, HEADER - 0.08, words, size=9, color=FAINT, ha="center", va="bottom")
    for row, result in enumerate(results):
        top = HEADER + (side + GAP) * row
        page.text(0.15, top + 0.46 * side, result.name, size=11.5, weight="bold", color=INK, va="bottom")
        page.text(0.15, top + 0.52 * side, result.group or "every step computed", size=9, color=FAINT, va="top")
        for column in range(count):
            values = (result.pictures[column].permute(1, 2, 0).clamp(-1, 1) + 1) / 2
            axes = page.axes(LEFT + column * side + GAP / 2, top, side - GAP, side)
            axes.imshow(values.numpy(), interpolation="bicubic")
            axes.set_axis_off()
        _strip(page, result, top, side)
    save_figure(figure, path)


class _Page:
    """A figure measured in inches from its upper left corner."""

    def __init__(self, figure: Any, height: float) -> None:
        self.figure = figure
        self.height = height

    def text(self, x: float, y: float, words: str, **how: Any) -> None:
        self.figure.text(x / WIDTH, 1 - y / self.height, words, **how)

    def axes(self, x: float, y: float, width: float, height: float) -> Any:
        bottom = 1 - (y + height) / self.height
        return self.figure.add_axes((x / WIDTH, bottom, width / WIDTH, height / self.height))


def _title(page: _Page, results: Sequence[Result]) -> None:
    page.text(0.15, 0.33, "The same noise, sampled with a cache", size=15, weight="bold", color=INK)
    page.text(0.15, 0.56, "a FLUX of 5 M parameters that draws emoji, with guidance", size=9.5, color=FAINT)
    place = WIDTH - RIGHT + 0.15
    steps = len(results[0].decisions)
    page.text(place, 0.56, f"{steps} steps:", size=9.5, color=FAINT)
    page.text(place + 0.75, 0.56, "computed", size=9.5, color=FULL, weight="bold")
    page.text(place + 1.55, 0.56, "forecast", size=9.5, color="#a9a59a", weight="bold")
    if any("S" in result.decisions for result in results):
        page.text(place + 2.25, 0.56, "sparse", size=9.5, color=SPARSE, weight="bold")


def _strip(page: _Page, result: Result, top: float, height: float) -> None:
    place = WIDTH - RIGHT + 0.15
    axes = page.axes(place, top + 0.56 * height, STRIP, 0.22 * height)
    for step, letter in enumerate(result.decisions):
        axes.axvspan(step + 0.08, step + 0.92, color=COLOURS.get(letter, FORECAST), lw=0)
    axes.set_xlim(0, len(result.decisions))
    axes.set_axis_off()
    caption = f"all {len(result.decisions)} computed"
    if result.decisions.strip("F"):
        caption = f"{result.computed} computed, {result.clock_speedup:.1f}x speed, error {result.relative_error:.3f}"
    page.text(place, top + 0.46 * height, caption, size=10, color=INK, va="bottom")
