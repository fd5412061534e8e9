"""The demo's image: a row of digits per policy, with a strip of its full and forecast steps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from hicache_compile.demo import digits
from hicache_compile.demo.compare import Result
from hicache_compile.inspection.figures import save_figure

FULL, SPARSE, FORECAST = "#d1495b", "#e9a3ac", "#e7e5df"
COLOURS = {"F": FULL, "S": SPARSE}
INK, FAINT = "#222222", "#777777"
HEADER, ROW, GROUP_GAP = 0.78, 0.86, 0.3  # inches


def draw(results: Sequence[Result], path: Path) -> None:
    """Write the image of ``results``, of which the first is uncached, as a PNG to ``path``."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    groups = len({result.group for result in results})
    inches = HEADER + ROW * len(results) + GROUP_GAP * groups
    figure = Figure(figsize=(12.4, inches), dpi=150, facecolor="white")
    FigureCanvasAgg(figure)
    bottom = 1 - HEADER / inches
    group = results[0].group
    for result in results:
        bottom -= (ROW + (GROUP_GAP if result.group != group else 0)) / inches
        group = result.group
        _labels(figure, result, bottom, ROW / inches)
        _digits(figure, result, bottom, ROW / inches)
        _strip(figure, result, bottom, ROW / inches)
    _title(figure, results)
    save_figure(figure, path)


def _title(figure: Any, results: Sequence[Result]) -> None:
    inch = 1 / figure.get_figheight()
    figure.text(0.012, 1 - 0.32 * inch, "The same noise, sampled with a cache", size=15, weight="bold", color=INK)
    line = 1 - 0.58 * inch
    figure.text(0.012, line, "trained FLUX-architecture flow model of handwritten digits", size=9.5, color=FAINT)
    steps = len(results[0].report.decisions())
    figure.text(0.725, line, f"{steps} steps:", size=9.5, color=FAINT)
    figure.text(0.784, line, "computed", size=9.5, color=FULL, weight="bold")
    figure.text(0.858, line, "forecast", size=9.5, color="#a9a59a", weight="bold")
    if any("S" in result.report.decisions() for result in results):
        figure.text(0.922, line, "sparse", size=9.5, color=SPARSE, weight="bold")


def _labels(figure: Any, result: Result, bottom: float, height: float) -> None:
    middle = bottom + height * 0.56
    figure.text(0.012, middle, result.policy, size=11, weight="bold", color=INK, va="bottom")
    group = result.group or "every step computed"
    figure.text(0.012, middle - height * 0.06, group, size=9, color=FAINT, va="top")


def _digits(figure: Any, result: Result, bottom: float, height: float) -> None:
    count = min(digits.CLASSES, len(result.images))
    gap = torch.full((digits.SIZE, 2), -1.0)
    columns = [part for image in result.images[:count] for part in (image, gap)][:-1]
    axes = figure.add_axes((0.135, bottom + 0.06 * height, 0.57, 0.88 * height))
    axes.imshow(
        torch.cat(columns, dim=1).clamp(-1, 1), cmap="gray", vmin=-1, vmax=1, interpolation="nearest", aspect="auto"
    )
    axes.set_axis_off()


def _strip(figure: Any, result: Result, bottom: float, height: float) -> None:
    decisions = result.report.decisions()
    axes = figure.add_axes((0.725, bottom + 0.16 * height, 0.262, 0.24 * height))
    for step, letter in enumerate(decisions):
        axes.axvspan(step + 0.08, step + 0.92, color=COLOURS.get(letter, FORECAST), lw=0)
    axes.set_xlim(0, len(decisions))
    axes.set_axis_off()
    sparse = decisions.count("S")
    caption = f"all {len(decisions)} computed, {100 * result.accuracy:.0f} % read right"
    if result.report.forecast or sparse:
        computed = f"{result.report.computed} computed" + (f", {sparse} sparse" if sparse else "")
        caption = f"{computed}, {result.clock_speedup:.1f}x speed, PSNR {result.psnr:.0f} dB"
    figure.text(0.725, bottom + 0.50 * height, caption, size=9.5, color=INK, va="bottom")
