"""The race of rivals as tables and one chart: ``python -m hicache_compile.benchmarks.rivals_tables rivals.jsonl``."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hicache_compile.benchmarks.measurement import Line
from hicache_compile.inspection.figures import save_figure

BASE, OURS = "HiCache", "(ours)"
DRAWS = 2000
COLOUR, OTHERS, PLAIN = "#c0392b", "#5b7c99", "#9a9a9a"


def compare(lines: Sequence[Line]) -> None:
    """Add to each line its error relative to HiCache's at as many steps: ``to_base``, by the bootstrap over the same
    pictures."""
    base = {line["budget"]: line for line in lines if line["method"] == BASE}
    for line in lines:
        if line["budget"] in base:
            line["to_base"] = _ratio(_squares(line), _squares(base[line["budget"]]))


def _squares(line: Line) -> np.ndarray:
    return np.array([[row["squared_error"], row["squared_size"]] for row in line["pictures"]])


def _ratio(one: np.ndarray, other: np.ndarray) -> dict[str, float]:
    """The ratio of two relative errors, and its 95 % interval; pictures are resampled in pairs."""
    picked = np.random.default_rng(0).integers(0, len(one), (DRAWS, len(one)))

    def relative(rows: np.ndarray) -> np.ndarray:
        sums = rows.sum(-2)
        return np.asarray(np.sqrt(sums[..., 0] / sums[..., 1]))

    low, high = np.quantile(relative(one[picked]) / relative(other[picked]), [0.025, 0.975])
    return {"value": float(relative(one) / relative(other)), "low": float(low), "high": float(high)}


def tables(lines: Sequence[Line]) -> str:
    """A Markdown table for each number of computed steps, the least error first."""
    parts = []
    for budget in dict.fromkeys(line["budget"] for line in lines):
        mine = sorted(_of(lines, budget), key=lambda line: line["relative_error"]["value"])
        steps = mine[0]["steps"]
        rows = [f"| {budget} of {steps} steps | computed | error | of HiCache's | PSNR |", "|---|---|---|---|---|"]
        rows += [_row(line) for line in mine]
        parts.append("\n".join(rows))
    return "\n\n".join(parts)


def _row(line: Line) -> str:
    error, ratio = line["relative_error"], line.get("to_base")
    shown = f"{error['value']:.3f} ± {(error['high'] - error['low']) / 2:.3f}"
    against = "" if ratio is None else f"{ratio['value']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})"
    name = f"**{line['method']}**" if OURS in line["method"] else line["method"]
    return f"| {name} | {line['computed']:.3g} | {shown} | {against} | {line['psnr']['value']:.1f} |"


def _of(lines: Sequence[Line], budget: int) -> list[Line]:
    return [line for line in lines if line["budget"] == budget]


def draw(lines: Sequence[Line], folder: Path) -> list[Path]:
    """``rivals.png``: the error of each method and its interval, a panel for each number of computed steps."""
    if not lines:
        return []
    import matplotlib.pyplot as plt

    folder.mkdir(parents=True, exist_ok=True)
    budgets = list(dict.fromkeys(line["budget"] for line in lines))
    newest = {line["method"]: line for line in lines}  # of the fewest steps
    names = sorted(newest, key=lambda name: (newest[name]["budget"], newest[name]["relative_error"]["value"]))[::-1]
    size = (3.0 * len(budgets) + 2.4, 0.27 * len(names) + 1.2)
    figure, panels = plt.subplots(
        1, len(budgets), figsize=size, sharex=True, sharey=True, layout="constrained", squeeze=False
    )
    for axes, budget in zip(panels[0], budgets, strict=True):
        for line in _of(lines, budget):
            place, error = names.index(line["method"]), line["relative_error"]
            colour = _colour(line["method"])
            axes.plot([error["low"], error["high"]], [place, place], color=colour, lw=1.6, solid_capstyle="round")
            axes.plot(error["value"], place, "o", color=colour, ms=6)
        steps = lines[0]["steps"]
        axes.set_title(f"{budget} of {steps} steps ({steps / budget:.1f}x)", loc="left", fontsize=10)
        axes.set_xscale("log")
        axes.set_xticks([0.01, 0.02, 0.05, 0.1, 0.2, 0.5], ["1 %", "2 %", "5 %", "10 %", "20 %", "50 %"])
        axes.minorticks_off()
        axes.grid(axis="x", alpha=0.3)
        axes.set_yticks(range(len(names)), names)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(axis="y", length=0)
    for label in panels[0][0].get_yticklabels():
        label.set_color(_colour(label.get_text()))
        label.set_fontweight("bold" if OURS in label.get_text() else "normal")
    figure.supxlabel("error of the picture against the one in full", fontsize=10)
    path = folder / "rivals.png"
    save_figure(figure, path, dpi=130)
    plt.close(figure)
    return [path]


def _colour(name: str) -> str:
    return COLOUR if OURS in name else PLAIN if "no cache" in name else OTHERS


if __name__ == "__main__":
    found = [json.loads(text) for text in Path(sys.argv[1]).read_text(encoding="utf-8").splitlines()]
    compare(found)
    print(tables(found))
