"""Two charts of a race: the sampling time of each contender, and its speed-up against its error."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hicache_compile.benchmarks.contenders import BASELINE, MODULE
from hicache_compile.inspection.figures import save_figure

Line = dict[str, Any]
GREY, OURS, THEIRS = "#9a9a9a", "#1f6f8b", "#d08c60"


def draw(lines: Sequence[Line], folder: Path) -> list[Path]:
    """``SCENARIO-time.png`` and ``SCENARIO-fidelity.png`` for every scenario in ``lines``; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for scenario in dict.fromkeys(line["scenario"] for line in lines):
        raced = [line for line in lines if line["scenario"] == scenario and "refused" not in line]
        paths += [_bars(scenario, raced, folder), _plane(scenario, raced, folder)]
    return paths


def _colour(line: Line) -> str:
    if line["kind"] == BASELINE:
        return GREY
    return OURS if line["contender"].startswith("ours") else THEIRS


def _about(line: Line) -> str:
    return f"{line['steps']} steps, {line['computed']} computed, {line['dtype']}, {line['hardware']}"


def _bars(scenario: str, raced: Sequence[Line], folder: Path) -> Path:
    import matplotlib.pyplot as plt

    ordered = sorted(raced, key=lambda line: -line["trajectory_ms"])
    figure, axes = plt.subplots(figsize=(9, 0.36 * len(ordered) + 1.6), layout="constrained")
    seconds = [line["trajectory_ms"] / 1e3 for line in ordered]
    bars = axes.barh([line["contender"] for line in ordered], seconds, color=[_colour(line) for line in ordered])
    axes.bar_label(
        bars, [f"{s:.2f} s  {line['clock_speedup']:.2f}x" for s, line in zip(seconds, ordered, strict=True)], padding=4
    )
    axes.set_xlim(0, max(seconds) * 1.3)
    axes.set_xlabel("seconds for a trajectory (medians of steps), and speed-up over torch.compile")
    axes.set_title(f"{scenario}: {_about(ordered[0])}", fontsize=9, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    path = folder / f"{scenario}-time.png"
    save_figure(figure, path, dpi=130)
    plt.close(figure)
    return path


def _plane(scenario: str, raced: Sequence[Line], folder: Path) -> Path:
    import matplotlib.pyplot as plt

    cached = sorted((line for line in raced if line["kind"] != BASELINE), key=lambda line: line["clock_speedup"])
    figure, axes = plt.subplots(figsize=(9, 5.5), layout="constrained")
    for number, line in enumerate(cached, 1):
        marker = "s" if line["kind"] == MODULE else "o"
        place = (line["relative_error"], line["clock_speedup"])
        label = f"{number}  {line['contender']} ({line['kind']})"
        axes.scatter(*place, marker=marker, s=70, color=_colour(line), label=label, zorder=3)
        axes.annotate(str(number), place, xytext=(6, 5), textcoords="offset points", fontsize=9)
    axes.set_xscale("log")
    axes.set_xlabel("relative error of the sample against torch.compile (less is truer)")
    axes.set_ylabel("speed-up over torch.compile by the clock")
    axes.set_title(f"{scenario}: {_about(cached[0])}", fontsize=9, loc="left")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8, frameon=False)
    path = folder / f"{scenario}-fidelity.png"
    save_figure(figure, path, dpi=130)
    plt.close(figure)
    return path
