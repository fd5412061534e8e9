"""``hicache tune``: try policies on a model, keep the best, measure them on fresh noise, recommend three."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from hicache_compile.evaluation.runs import quietly
from hicache_compile.evaluation.subjects import open_subject
from hicache_compile.tune.presentation import show
from hicache_compile.tune.recommend import LEVELS, Recommendation, choose
from hicache_compile.tune.tuner import Search, Tuner


def run(model: str, search: Search, folder: Path, arguments: Mapping[str, Any], *, as_json: bool = False) -> None:
    """Search, write everything into ``folder``, print what is recommended as a table (or JSON).

    An earlier search into the same folder goes on where it was stopped.

    Raises:
        HiCacheError: an option is not what is allowed, ``model`` is no folder of a pipeline, or ``folder`` holds a
            search of another kind.
    """
    subject = open_subject(model, search.prompts, search.steps, search.backend, arguments)
    tuner = Tuner(subject, search, folder)
    with quietly():
        candidates = tuner.candidates()
        found, left = tuner.search(candidates)
        chosen = choose({name: found[name] for name in left}, search.errors)
        recommended = [tuner.promised(level, candidates[name].policy, name) for level, name in chosen.items()]
        show(tuner, candidates, found, chosen, recommended)
    data = [one.as_data() for one in recommended]
    (folder / "recommendations.json").write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
    if as_json:
        print(json.dumps(data, indent=2))
    else:
        _tell(recommended, folder)


def _tell(recommended: Sequence[Recommendation], folder: Path) -> None:
    table = Table(box=None, pad_edge=False)
    for heading in ("", "policy", "steps", "FLOPs", "error", "another measurement"):
        table.add_column(heading, justify="left" if heading in ("", "policy") else "right")
    for one in recommended:
        span = f"{one.error.low:.4f} to {one.error.high:.4f}"
        table.add_row(
            one.level, one.candidate, f"{one.computed:.3g}", f"{one.flops_speedup:.2f}x", f"{one.error.value:.4f}", span
        )
    console = Console()
    console.print(table)
    missing = [level for level in LEVELS if level not in {one.level for one in recommended}]
    if missing:
        console.print(f"nothing tried was true enough for: {', '.join(missing)}")
    console.print(f"policies, charts, report.md: {folder}")
