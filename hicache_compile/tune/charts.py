"""Charts of a search: the front, what thresholds do, where in a run errors come from, memory, batch size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hicache_compile.evaluation.intervals import Interval95
from hicache_compile.inspection.figures import save_figure
from hicache_compile.tune.grid import Candidate
from hicache_compile.tune.halving import as_standing, front

Found = Mapping[str, Mapping[str, Interval95]]  # by candidate
INK, FAINT = "#222222", "#8a8a8a"
COLOURS = {"calibrated": "#d1495b", "Hermite": "#30638e", "Taylor": "#00798c", "reuse": "#a0a0a0", "FBCache": "#edae49"}
COLOURS |= {"TeaCache": "#7a4e9f", "FBCache + TeaCache": "#2e8b57"}


def family_of(candidate: str) -> str:
    """The colour a candidate is drawn in."""
    if "FBCache" in candidate and "TeaCache" in candidate:
        return "FBCache + TeaCache"
    return next(
        (name for name in ("FBCache", "TeaCache", "calibrated", "Hermite", "Taylor") if name in candidate), "reuse"
    )


def pareto(found: Found, chosen: Mapping[str, str], path: Path) -> None:
    """Error against speed-up of every candidate, the front as a line, the recommended ones named."""
    figure, axes = _figure(8.6, 5.4)
    for family in COLOURS:
        mine = [one for name, one in found.items() if family_of(name) == family and one["relative_error"].value > 0]
        if mine:
            axes.scatter(
                [one["flops_speedup"].value for one in mine],
                [one["relative_error"].value for one in mine],
                s=20,
                color=COLOURS[family],
                label=family,
                zorder=2,
            )
    best = [one for one in front([as_standing(name, dict(one)) for name, one in found.items()]) if one.error > 0]
    axes.plot([1 / one.cost for one in best], [one.error for one in best], color=INK, lw=1, zorder=1, label="front")
    places: dict[str, list[str]] = {}
    for level, name in chosen.items():
        places.setdefault(name, []).append(level)
    for name, levels in places.items():
        one = found[name]
        x, y = one["flops_speedup"].value, one["relative_error"].value
        axes.scatter([x], [y], s=110, facecolors="none", edgecolors=INK, zorder=3)
        text = f"{', '.join(levels)}\n{name}"
        axes.annotate(text, (x, y), xytext=(10, -18), textcoords="offset points", fontsize=8, color=INK)
    axes.set_yscale("log")
    axes.set_xlabel("speed-up in FLOPs")
    axes.set_ylabel("relative error of pictures against those in full")
    axes.legend(frameon=False, fontsize=8, loc="lower right")
    _save(figure, path)


def thresholds(candidates: Sequence[Candidate], found: Found, path: Path) -> None:
    """Steps computed and error against the threshold, of each guard."""
    figure, panels = _figure(10.4, 4.2, columns=2)
    families = dict.fromkeys(c.family for c in candidates if "FBCache," in c.family or "TeaCache," in c.family)
    for family in families:
        mine = [c for c in candidates if c.family == family and c.name in found]
        for axes, metric in zip(panels, ("computed", "relative_error"), strict=True):
            values = [found[c.name][metric] for c in mine]
            line = axes.plot(
                [c.knob for c in mine],
                [v.value for v in values],
                marker="o",
                ms=4,
                lw=1.4,
                color=COLOURS[family_of(family)],
                ls="--" if "reuse" in family else "-",
                label=family,
            )
            ends = [v.low for v in values], [v.high for v in values]
            axes.fill_between([c.knob for c in mine], *ends, color=line[0].get_color(), alpha=0.13, lw=0)
            axes.set_xlabel("threshold")
    panels[0].set_ylabel("steps computed")
    panels[1].set_ylabel("relative error")
    panels[0].set_ylim(bottom=0)
    panels[1].set_ylim(bottom=0)
    panels[0].legend(frameon=False, fontsize=8)
    _save(figure, path)


def error_profile(profiles: Mapping[str, tuple[Sequence[float], str]], path: Path) -> None:
    """Step by step: how far the sample is from that of the run in full; ``|`` marks computed steps."""
    figure, axes = _figure(9.4, 4.2)
    for number, (name, (errors, decisions)) in enumerate(profiles.items()):
        colour = ("#2e8b57", "#30638e", "#d1495b", "#edae49")[number % 4]
        axes.plot(range(len(errors)), errors, lw=1.5, color=colour, label=name)
        computed = [step for step, letter in enumerate(decisions) if letter in "FS" and step < len(errors)]
        axes.plot(computed, [errors[step] for step in computed], "|", ms=9, color=colour)
    axes.set_xlabel("step")
    axes.set_ylabel("relative error of the sample before it")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize=8)
    _save(figure, path)


def bars(values: Mapping[str, Sequence[float]], labels: Sequence[str], ylabel: str, path: Path) -> None:
    """Grouped bars: a group for each of ``labels``, a bar for each name."""
    figure, axes = _figure(8.2, 4.0)
    width = 0.8 / len(values)
    for number, (name, heights) in enumerate(values.items()):
        places = [place + width * (number - (len(values) - 1) / 2) for place in range(len(labels))]
        drawn = axes.bar(places, heights, width * 0.92, color=("#30638e", "#edae49", "#d1495b")[number % 3], label=name)
        axes.bar_label(drawn, fmt="%.3g", fontsize=7.5, color=INK, padding=2)
    axes.set_xticks(range(len(labels)), labels, fontsize=8.5)
    axes.set_ylabel(ylabel)
    axes.margins(y=0.12)
    axes.legend(frameon=False, fontsize=8, loc="lower left", bbox_to_anchor=(0, 1), ncols=len(values))
    _save(figure, path)


def _figure(width: float, height: float, columns: int = 1) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=130, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, columns)
    for one in axes if columns > 1 else [axes]:
        one.spines[["top", "right"]].set_visible(False)
        one.grid(axis="y", color="#e9e9e9", lw=0.7, zorder=0)
        one.set_axisbelow(True)
    return figure, axes


def _save(figure: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_figure(figure, path)
