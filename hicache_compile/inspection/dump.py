"""A folder with everything about a compiled denoiser, in the order it was made, and a page that shows it."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import torch

from hicache_compile.inspection.explanation import Explanation, View
from hicache_compile.inspection.page import page
from hicache_compile.inspection.tables import render
from hicache_compile.passes import Choice
from hicache_compile.passes.graph.source import source_of
from hicache_compile.policy.json_codec import from_dict
from hicache_compile.policy.policy import Policy
from hicache_compile.policy.sparsity.chipmunk import Chipmunk
from hicache_compile.runtime.deciders.scheduled import Plan, SlotPlan
from hicache_compile.runtime.storage.budget import layout_of


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
    """
    folder.mkdir(parents=True, exist_ok=True)
    policy = from_dict(explained.policy)
    sparsity = None if explained.sparsity is None else Chipmunk.from_dict(explained.sparsity)
    python = {**graphs, **(code or {})}
    numbered = {f"{number:02}_{name}.py": text for number, (name, text) in enumerate(python.items(), 1)}
    files = {
        **numbered,
        "policy.json": json.dumps(explained.policy, indent=2),
        **({"sparsity.json": json.dumps(explained.sparsity, indent=2)} if sparsity is not None else {}),
        "schedule.tsv": schedule(policy, explained.num_steps, sparsity),
        "explain.txt": render(explained),
        "explain.json": explained.to_json(),
        "versions.json": json.dumps(versions(), indent=2),
        **(extra or {}),
    }
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    html = page(explained, numbered, sorted(files), versions(), compared)
    (folder / "index.html").write_text(html, encoding="utf-8")


def schedule(policy: Policy, num_steps: int, sparsity: Chipmunk | None = None) -> str:
    """The weight table: one line a step with its decision, the ring row it writes, and the weight of each row; where
    each slot has weights of its own, one line for each."""
    plan = Plan(policy, num_steps, policy.depth, sparsity=sparsity)
    own = None
    if policy.cut.by_slot:
        own = SlotPlan(policy, num_steps, policy.depth, 0, policy.forecaster.table.slots)  # type: ignore[attr-defined]
    plan.computes(num_steps - 1)
    lines = ["\t".join(["step", "decision", "row", *(f"weight_{k}" for k in range(policy.depth))])]
    for step, full in enumerate(plan.full):
        row = str(plan.positions[step]) if full else ""
        rows = [plan.rows[step]] if own is None else own.each(step).tolist()
        for weights in rows[:1] if full else rows:
            numbers = [""] * policy.depth if full else map(repr, weights)
            lines.append("\t".join([str(step), plan.choices[step], row, *numbers]))
    return "\n".join(lines) + "\n"


def versions() -> dict[str, str]:
    return {
        "hicache_compile": version("hicache_compile"),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
    }


def sources(view: View, policy: Policy, model: str) -> dict[str, str]:
    """The source of every graph of ``view`` under ``policy``."""
    where = f"graph of {model}, scope {policy.scope}"
    levels = view.rewrite(layout_of(policy)).levels()
    return {name: source_of(graph, f"{name} {where}") for name, graph in levels.items() if name != Choice.PLAIN}
