"""Pictures side by side: a row for each policy, a column for each picture."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path

import torch

from hicache_compile.inspection.figures import save_figure

INK, FAINT = "#222222", "#777777"
COLUMNS = 10
LETTERS = 32  # of a line of a name


def draw_sheet(rows: Mapping[str, tuple[torch.Tensor, str]], path: Path) -> None:
    """Write a PNG: under each name its ``images`` ``[B, C, H, W]`` in [-1, 1], the first ``COLUMNS``, and a caption."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(COLUMNS, *(len(images) for images, _ in rows.values()))
    inch, label = 0.9, 2.6
    figure = Figure(figsize=(label + inch * columns, inch * len(rows) + 0.15), dpi=130, facecolor="white")
    FigureCanvasAgg(figure)
    width, height = figure.get_figwidth(), figure.get_figheight()
    for number, (name, (images, caption)) in enumerate(rows.items()):
        bottom = (height - 0.08 - inch * (number + 1)) / height
        wrapped = textwrap.fill(name, LETTERS)
        figure.text(0.1 / width, bottom + 0.52 * inch / height, wrapped, size=9, weight="bold", color=INK)
        figure.text(0.1 / width, bottom + 0.30 * inch / height, caption, size=7.5, color=FAINT)
        for column in range(columns):
            left, low = (label + inch * column) / width, bottom + 0.04 * inch / height
            axes = figure.add_axes((left, low, 0.94 * inch / width, 0.92 * inch / height))
            axes.set_axis_off()
            shown = ((images[column].float().cpu() + 1) / 2).clamp(0, 1).permute(1, 2, 0).numpy()
            axes.imshow(shown.squeeze(-1) if shown.shape[-1] == 1 else shown, cmap="gray", vmin=0, vmax=1)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_figure(figure, path)
