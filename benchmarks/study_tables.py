"""The study's lines as Markdown tables (``python -m hicache_compile.benchmarks.study_tables FILE``) and charts."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any

from hicache_compile.inspection.figures import save_figure

Line = dict[str, Any]
FITTED = ("calibrated", "calibrated by slot", "sigma", "gates")
NAMES = {"sigma": "Hermite 2, sigma of each step", "gates": "Hermite 2, .71, gate of each step"}


def tables(lines: Sequence[Line]) -> str:
    """Every section present in ``lines``, each with a heading."""
    found = []
    for scope in dict.fromkeys(line["scope"] for line in _of(lines, "methods")):
        mine = [line for line in _of(lines, "methods") if line["scope"] == scope]
        found.append(f"Scope {scope}\n\n" + _table(mine, _method, "method", _budget))
    found += [
        f"{title}\n\n" + _table(_of(lines, section), row, head, column)
        for section, title, row, head, column in (
            ("scope", "Scope, N = 7", _plain, "basis", _scope),
            ("sigma", "Sigma, Hermite 2 at N = 7", lambda one: one["method"], "sigma", _scope),
            ("order", "Order, scope stack", lambda one: f"{one['method']}, N = {one['every']}", "basis", _order),
            ("samples", "Pictures calibrated on", lambda one: one["method"], "", lambda one: one["samples"]),
            ("correction", "Share made up by the next computed step", _plain, "", lambda one: one["correction"]),
            ("length", "Another length", lambda one: f"{one['method']}, {one['scope']}", "weights", _length),
            ("classes", "Other classes", _plain, "weights", lambda one: f"judged on {one['classes']}"),
        )
        if _of(lines, section)
    ]
    found += [
        f"Calibrating, scope {line['scope']}: {line['seconds']:.0f} s, {line['bytes'] / 2**20:.0f} MiB beyond sampling"
        for line in _of(lines, "cost")
    ]
    return "\n\n".join(found)


def _of(lines: Sequence[Line], section: str) -> list[Line]:
    return [line for line in lines if line.get("section") == section]


def _method(line: Line) -> str:
    name = NAMES.get(line["method"]) or str(line["method"])
    return f"{name}, planned" if line["schedule"] == "planned" else name


def _plain(line: Line) -> str:
    return str(line["method"])


def _budget(line: Line) -> str:
    return f"{line['computed']} of {line['steps']}"


def _scope(line: Line) -> str:
    return str(line["scope"])


def _order(line: Line) -> str:
    return f"order {line['order']}"


def _length(line: Line) -> str:
    return f"{line['computed']} of {line['steps']}"


Key = Callable[[Line], Hashable]


def _table(lines: Sequence[Line], row: Key, head: str, column: Key) -> str:
    """Errors by ``row`` and ``column`` with half of their interval width; the smallest of each column in bold."""
    rows, columns = (list(dict.fromkeys(map(key, lines))) for key in (row, column))
    cells = {(row(line), column(line)): line for line in lines}
    least = {c: min(line["relative_error"] for (_, at), line in cells.items() if at == c) for c in columns}
    text = [f"| {head} | " + " | ".join(map(str, columns)) + " |", "|---|" + "---|" * len(columns)]
    for name in rows:
        shown = []
        for c in columns:
            line = cells.get((name, c))
            shown.append("" if line is None else _cell(line, len(rows) > 1 and line["relative_error"] == least[c]))
        text.append(f"| {name} | " + " | ".join(shown) + " |")
    return "\n".join(text)


def _cell(line: Line, best: bool) -> str:
    value = f"{line['relative_error']:.4f}"
    low, high = line["interval"] or (0.0, 0.0)  # missing in some committed lines, see docs/study.md
    return (f"**{value}**" if best else value) + (f" ±{(high - low) / 2:.4f}" if high > low else "")


def draw(lines: Sequence[Line], folder: Path) -> list[Path]:
    """``study.png``: error against computed steps for each scope, fitted methods in colour."""
    methods = _of(lines, "methods")
    if not methods:
        return []
    import matplotlib.pyplot as plt

    folder.mkdir(parents=True, exist_ok=True)
    scopes = list(dict.fromkeys(line["scope"] for line in methods))
    figure, panels = plt.subplots(1, len(scopes), figsize=(5.2 * len(scopes), 5), sharey=True, layout="constrained")
    for axes, scope in zip([panels] if len(scopes) == 1 else panels, scopes, strict=True):
        mine = [line for line in methods if line["scope"] == scope]
        for name in dict.fromkeys(map(_method, mine)):
            curve = sorted((line for line in mine if _method(line) == name), key=lambda line: line["computed"])
            fitted = curve[0]["method"] in FITTED
            named = fitted or curve[0]["method"] in ("reuse", "Hermite 2, .5 (HiCache)", "Taylor 2")
            axes.plot(
                [line["computed"] for line in curve],
                [line["relative_error"] for line in curve],
                marker="o",
                ms=4,
                lw=1.8 if fitted else 0.9,
                ls="-" if curve[0]["schedule"] == "planned" else "--",
                color=_colour(curve[0]),
                label=name if named else None,
                zorder=3 if fitted else 1,
            )
        axes.set_yscale("log")
        axes.set_title(f"scope {scope}", loc="left", fontsize=10)
        axes.set_xlabel(f"steps of {mine[0]['steps']} computed")
        axes.set_xticks(sorted({line["computed"] for line in mine}))
        axes.spines[["top", "right"]].set_visible(False)
    first = panels if len(scopes) == 1 else panels[0]
    first.set_ylabel("relative error against the pictures in full")
    known = {
        label: handle for axes in figure.axes for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    known["other bases"] = plt.Line2D([], [], color=_colour({"method": ""}), ls="--", marker="o", ms=4)
    figure.legend(list(known.values()), list(known), loc="outside right center", frameon=False, fontsize=8)
    path = folder / "study.png"
    save_figure(figure, path, dpi=130)
    plt.close(figure)
    return [path]


def _colour(line: Line) -> str:
    fitted = {"calibrated": "#d1495b", "calibrated by slot": "#8c1c2f", "sigma": "#30638e", "gates": "#2e8b57"}
    known = {"reuse": "#9a9a9a", "Hermite 2, .5 (HiCache)": "#edae49", "Taylor 2": "#00798c"}
    return fitted.get(line["method"]) or known.get(line["method"], "#dddddd")


if __name__ == "__main__":
    print(tables([json.loads(line) for line in Path(sys.argv[1]).read_text(encoding="utf-8").splitlines()]))
