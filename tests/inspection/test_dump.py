"""What explain, graphs and dump say before a run is what the run does: under a memory budget, guards, kinds."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from hicache_compile import (
    PAB,
    Calibrated,
    CompiledDenoiser,
    DiCache,
    DiTango,
    FBCache,
    FBCacheTeaCache,
    HiCache,
    KeySteps,
    Policy,
    SpeCa,
    StepMask,
    Table,
    hicache_compile,
)
from hicache_compile.passes.graph import ops
from hicache_compile.passes.graph.graphs import placeholders
from hicache_compile.passes.graph.inputs import is_ring
from tests.support.denoisers import Painter
from tests.support.models import flux_inputs, random_flux, sample

STEPS = 8
HEAD = ["step", "decision", "group", "row"]


class InTwoGraphs(Painter):
    """A denoiser that Dynamo captures in two graphs of two blocks each."""

    def __init__(self) -> None:
        super().__init__(depth=4)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        c, x = self.clock(t[:, None]), self.enter(x)
        for stage in self.stages[:2]:
            x = stage(x, c)
        torch._dynamo.graph_break()
        for stage in self.stages[2:]:
            x = stage(x, c)
        return self.leave(x)


def ran(model: nn.Module, policy: Policy, budget: str | None = None) -> CompiledDenoiser:
    """``model`` after a run of ``STEPS`` from noise."""
    torch._dynamo.reset()
    compiled = hicache_compile(model, policy, backend="eager", memory_budget=budget)
    x = torch.randn(2, 9, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), compiled.trajectory(STEPS):
        for step in range(STEPS):
            x = x - compiled(x, torch.full((2,), 1 - step / STEPS)) / STEPS
    return compiled


def ring_bytes(compiled: CompiledDenoiser) -> int:
    """Bytes of the rings that the computed steps of ``graphs`` write, and of their scales."""
    full = [graph for name, graph in compiled.graphs.items() if name.split(".")[0] == "full"]
    rings = [ops.value(node) for graph in full for node in placeholders(graph) if is_ring(node)]
    return sum(ring.numel() * ring.element_size() + len(ring) * 4 * (ring.dtype is torch.int8) for ring in rings)


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "schedule.tsv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


@pytest.mark.parametrize(
    ("cls", "budget", "layouts"),
    [
        (Painter, "100KB", ["scope module, 3 anchors"]),
        (Painter, "10KB", ["scope module, 3 anchors in int8"]),
        (Painter, "5KB", ["scope module, 2 anchors in int8"]),
        (InTwoGraphs, "100KB", ["scope module, 3 anchors"] * 2),
        (InTwoGraphs, "20KB", ["scope module, 3 anchors", "scope module, 3 anchors in int8"]),
        (InTwoGraphs, "8KB", ["scope module, 3 anchors in bfloat16", "scope block, 3 anchors in int8"]),
    ],
)
def test_what_a_memory_budget_chose(cls: type[nn.Module], budget: str, layouts: Sequence[str], tmp_path: Path) -> None:
    compiled = ran(cls(), HiCache(interval=4), budget)
    found, report = compiled.explain(STEPS), compiled.report()
    assert report.memory.count(" bytes") >= len(layouts)
    assert all(layout in report.memory for layout in layouts)
    assert f"{found.memory};".startswith(f"{layouts[0]}: ")
    assert (found.memory, found.state_bytes) == (report.memory, report.state_bytes)
    assert sum(site.nbytes for site in found.sites) == ring_bytes(compiled) == report.state_bytes
    assert found.state_bytes == next(row.state_bytes for row in found.scopes if row.scope == found.scope)
    assert (found.flops_full, found.flops_forecast) == (report.flops_full, report.flops_forecast)
    assert found.flops_speedup == pytest.approx(report.flops_speedup)
    assert found.decisions == report.decisions()
    for number, layout in enumerate(layouts):
        text = str(compiled.graphs["full" + (f".{number}" if number else "")])
        assert text.startswith(f"# full graph of {cls.__name__}, {layout.split(',')[0]}\n")
    compiled.dump(tmp_path, STEPS)
    written = json.loads((tmp_path / "explain.json").read_text())
    assert (written["memory"], written["state_bytes"]) == (report.memory, report.state_bytes)
    assert written["state_bytes"] == json.loads((tmp_path / "report.json").read_text())["state_bytes"]
    texts = {path.name[3:-3]: path.read_text() for path in tmp_path.glob("*.py")}
    assert {name: str(graph) for name, graph in compiled.graphs.items()}.items() <= texts.items()
    depths = [int(layout.split(", ")[1][0]) for layout in layouts]
    rows = rows_of(tmp_path)
    assert list(rows[0]) == [*HEAD, *(f"weight_{k}" for k in range(max(depths)))]
    for number, depth in enumerate(depths):
        mine = rows[STEPS * number : STEPS * (number + 1)]
        assert "".join("F" if row["decision"] == "full" else "." for row in mine) == report.decisions()
        weights = [[row[f"weight_{k}"] for k in range(max(depths))] for row in mine if row["decision"] == "forecast"]
        assert all(all(row[:depth]) and not any(row[depth:]) for row in weights)
        assert {int(row["row"]) for row in mine if row["row"]} == set(range(min(depth, report.computed)))


@pytest.mark.parametrize(
    "policy",
    [
        FBCache(1e9, warmup=2),
        FBCacheTeaCache(1e9, 0.0, max_skips=3),
        DiCache(1e9, warmup=3, cooldown=1),
        SpeCa(1e9, warmup=2),
        DiTango(0.5, 3, 2),
    ],
    ids=lambda policy: "+".join(type(guard).__name__ for guard in policy.guards) or "DiTango",
)
def test_a_schedule_lists_no_forecasts_it_cannot_know(policy: Policy, tmp_path: Path) -> None:
    compiled = hicache_compile(random_flux(2, 2), policy, backend="eager")
    with compiled.trajectory(STEPS):
        sample(compiled, flux_inputs(batch=1), STEPS)
    compiled.dump(tmp_path, STEPS)
    rows, explained = rows_of(tmp_path), compiled.explain(STEPS)
    assert [row["step"] for row in rows] == [str(step) for step in range(STEPS)]
    assert "".join({"full": "F", "free": "."}[row["decision"]] for row in rows) == explained.decisions
    assert {"F", "."} == set(explained.decisions)
    assert {text for row in rows for key, text in row.items() if key not in HEAD[:2]} == {""}
    for row, letter in zip(rows, compiled.report().decisions(), strict=True):
        assert letter == "F" or row["decision"] == "free"


def test_a_schedule_has_a_line_for_each_kind(tmp_path: Path) -> None:
    compiled = ran(Painter(), PAB(2, window=None, mlp=KeySteps((600,), 2)))
    compiled.dump(tmp_path, STEPS)
    rows = rows_of(tmp_path)
    kinds = list(dict.fromkeys(row.kind for row in compiled.report().map().rows))
    assert sorted(kinds) == ["mlp", "self-attention"]
    assert [(row["step"], row["group"]) for row in rows] == [(str(s), kind) for s in range(STEPS) for kind in kinds]
    for kind in kinds:
        lines = [row for row in rows if row["group"] == kind]
        computed = ["" if row["weight_0"] else "c" for row in lines]
        assert all((row["row"] == "") == (row["weight_0"] != "") for row in lines)  # it writes a row or it reads some
        cells = {row.cells for row in compiled.report().map().rows if row.kind == kind}
        assert {"".join(mark or "r" for mark in computed)} == cells
    letters = {row["step"]: row["decision"] for row in rows}
    known = {"full": "F", "forecast": "."}
    assert "".join(known.get(letters[str(step)], "p") for step in range(STEPS)) == compiled.report().decisions()


def test_a_schedule_of_slots_goes_on_from_graph_to_graph(tmp_path: Path) -> None:
    """Each slot has weights of its own: those of the second graph come after those of the first."""
    slots, pairs = 8, STEPS * (STEPS - 1) // 2  # of four blocks, an attention and an MLP each
    each = tuple((float(slot + 2), -float(slot + 1)) for slot in range(slots))
    table = Table(STEPS, (1.0,) * pairs, tuple((step, (1, 0), each) for step in range(2, STEPS)), slots)
    compiled = ran(InTwoGraphs(), Policy(StepMask("11000000"), Calibrated(table, 2), "module"))
    compiled.dump(tmp_path, STEPS)
    rows = [row for row in rows_of(tmp_path) if row["decision"] == "forecast"]
    for step in range(2, STEPS):
        mine = [row for row in rows if row["step"] == str(step)]
        assert [(float(row["weight_1"]), float(row["weight_0"])) for row in mine] == list(each)
