"""A folder with everything about a compiled denoiser, in the order it was made, and a page that shows it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hicache_compile.inspection.explanation import Explanation, View
from hicache_compile.inspection.page import page
from hicache_compile.inspection.tables import render
from hicache_compile.inspection.versions import versions
from hicache_compile.passes import Choice
from hicache_compile.passes.graph.source import source_of
from hicache_compile.policy.files import make_folder, write_whole
from hicache_compile.policy.layout import Layout
from hicache_compile.policy.policy import Policy
from hicache_compile.runtime.deciders import RowSpec, make_decider
from hicache_compile.runtime.deciders.device_rows import StepRows


def write(
    folder: Path,
    explained: Explanation,
    graphs: Mapping[str, str],
    *,
    code: Mapping[str, str] | None = None,
    extra: Mapping[str, str] | None = None,
    compared: Sequence[tuple[str, Explanation]] = (),
) -> None:
    """Write the folder.

    Args:
        folder: made if it is not there; files of an earlier dump are replaced.
        explained: what the page is about.
        graphs: the source of each graph by name, in the order of the pipeline.
        code: what compilers generated, by name.
        extra: other files by name, with their suffix.
        compared: other policies on the same denoiser.

    Raises:
        HiCacheError: the folder cannot be made or written.
    """
    make_folder(folder)
    python = {**graphs, **(code or {})}
    numbered = {f"{number:02}_{name}.py": text for number, (name, text) in enumerate(python.items(), 1)}
    files = {
        **numbered,
        "policy.json": json.dumps(explained.policy, indent=2),
        **({"sparsity.json": json.dumps(explained.sparsity, indent=2)} if explained.sparsity is not None else {}),
        "explain.txt": render(explained),
        "explain.json": explained.to_json(),
        "versions.json": json.dumps(versions(), indent=2),
        **(extra or {}),
    }
    for name, text in files.items():
        write_whole(folder / name, text)
    html = page(explained, python, sorted(files), versions(), compared)
    write_whole(folder / "index.html", html)


def schedule(policy: Policy, num_steps: int, views: Sequence[View], layouts: Sequence[Layout]) -> str:
    """What is known of a run before it starts: one line a step and row of weights.

    ``decision`` is the program the step runs; ``free``: guards decide. ``row`` is the ring row a computed step writes,
    ``weight_k`` the weight of ring row ``k``. Where kinds are decided each by itself, ``group`` names the kind; where
    slots are forecast in parts, also the part.
    """
    depth = max(layout.depth for layout in layouts)
    lines = ["\t".join(["step", "decision", "group", "row", *(f"weight_{k}" for k in range(depth))])]
    letters = policy.decisions(num_steps)
    if policy.guards or layouts[0].partitions is not None:
        names = {"F": "full", ".": "free"}
        blank = [""] * (2 + depth)
        return "\n".join([*lines, *("\t".join([str(s), names[at], *blank]) for s, at in enumerate(letters))]) + "\n"
    offset = 0
    for view, layout in zip(views, layouts, strict=True):
        programs = view.programs(layout)
        spec = programs.rows(layout.depth, offset)
        offset += len(programs.rings)
        decider: Any = make_decider(policy, programs, num_steps, 0, spec, layout.sparsity)
        for step in range(num_steps):
            choice, rows = decider.decide(step, False).choice, decider.rows.steps[step]
            lines += [line + "\t" * (depth - layout.depth) for line in _lines(step, str(choice), rows, spec)]
    return "\n".join(lines) + "\n"


def _lines(step: int, decision: str, rows: StepRows, spec: RowSpec) -> list[str]:
    """The lines of one step: one for each group, or for each slot with weights of its own."""
    found = []
    for number, weights in enumerate(rows.weights):
        place = spec.group_of[number] if spec.per_slot else number // spec.parts
        group = spec.groups[place]
        if group in rows.forecasts:
            part = f"part {number % spec.parts}" if spec.parts > 1 else ""
            named = " ".join(filter(None, (group, part)))
            found.append("\t".join([str(step), decision, named, "", *map(repr, weights)]))
        elif number == (spec.group_of.index(place) if spec.per_slot else place * spec.parts):
            found.append("\t".join([str(step), decision, group, str(rows.positions[place]), *[""] * spec.depth]))
    return found


def sources(view: View, policy: Policy, model: str) -> dict[str, str]:
    """The source of every graph of ``view`` under ``policy``."""
    where = f"graph of {model}, scope {policy.scope}"
    levels = view.rewrite(policy.layout).levels()
    return {name: source_of(graph, f"{name} {where}") for name, graph in levels.items() if name != str(Choice.PLAIN)}
