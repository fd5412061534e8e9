"""The benchmarks measure what they say: who computes which steps, how it is written down, checked and drawn."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from hicache_compile.benchmarks import command
from hicache_compile.benchmarks.charts import draw
from hicache_compile.benchmarks.contenders import BASELINES, Contender, Prepared, ours
from hicache_compile.benchmarks.expectations import Expectation, check, with_best_peer
from hicache_compile.benchmarks.floor import bytes_touched
from hicache_compile.benchmarks.host import at_scope
from hicache_compile.benchmarks.lockstep import race
from hicache_compile.benchmarks.models import Flux
from hicache_compile.benchmarks.peers import PEERS
from hicache_compile.benchmarks.record import records
from hicache_compile.benchmarks.scenarios import SCENARIOS, Scenario
from hicache_compile.cli import app
from hicache_compile.passes import Choice, rewrite
from hicache_compile.policy.layout import Layout
from tests.support.captured_graphs import captured

TINY = Flux(layers=1, single_layers=2, heads=2, head_dim=16, image_tokens=16, text_tokens=8)


def line(contender: str, kind: str, trajectory_ms: float, **more: Any) -> dict[str, Any]:
    return {
        "scenario": "flux-70m",
        "contender": contender,
        "kind": kind,
        "trajectory_ms": trajectory_ms,
        "clock_speedup": 1000 / trajectory_ms,
        "relative_error": 0.01,
        "steps": 50,
        "computed": 9,
        "dtype": "float32",
        "hardware": "none",
        **more,
    }


def test_twins_share_weights_and_nothing_else() -> None:
    original = TINY.model()
    twin = TINY.twin(original)
    pairs = list(zip(original.parameters(), twin.parameters(), strict=True))
    assert all(a.data_ptr() == b.data_ptr() for a, b in pairs)
    assert twin is not original


@pytest.mark.slow
def test_a_race() -> None:
    scenario = Scenario("tiny", TINY, interval=3, steps=8, warmup=2)

    def broken(model: torch.nn.Module, scenario: Scenario) -> Prepared:
        raise ValueError("no such model")

    field = (*BASELINES[:2], ours("stack"), Contender("broken", "module cache", broken))
    lines = with_best_peer(records(race(scenario, field, rounds=2), "test"))
    found = {entry["contender"]: entry for entry in lines}
    assert found["broken"]["refused"] == "ValueError: no such model"
    mine = found["ours, stack"]
    assert (mine["decisions"], mine["computed"], mine["rounds"]) == ("FF..F..F", 4, 2)
    assert (mine["programs"], mine["recompiles"], mine["graph_breaks"]) == (2, 0, 0)
    assert found["eager"]["relative_error"] < 1e-5 < mine["relative_error"] < 0.1
    assert mine["trajectory_ms"] == pytest.approx(4 * mine["full_step_ms"] + 4 * mine["forecast_step_ms"])
    json.dumps(lines)


@pytest.mark.parametrize("peer", [p.name for p in PEERS if "regional" in p.name or "MagCache" in p.name])
def test_peers_compute_the_steps_they_are_told(peer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted at their last block, which no cache computes in a cached step; run eagerly."""
    pytest.importorskip("cache_dit")
    shape = Flux(layers=4, single_layers=8, heads=2, head_dim=16, image_tokens=16, text_tokens=8)
    scenario = Scenario("tiny", shape, interval=4, steps=14)
    model = shape.twin(shape.model())
    monkeypatch.setattr(type(model), "compile_repeated_blocks", lambda self: None)
    monkeypatch.setattr(torch, "compile", lambda model: model)
    seen: list[int] = []
    last = model.single_transformer_blocks[-1]  # type: ignore[index,union-attr]
    target = last.attn if "TaylorSeer" in peer and "diffusers" in peer and "lite" not in peer else last
    computing = target.to_q if target is not last else last.proj_out  # type: ignore[union-attr]
    computing.register_forward_hook(lambda *_: seen.append(1))  # type: ignore[union-attr]
    prepared = next(p for p in PEERS if p.name == peer).prepare(model, scenario)
    arguments = {**shape.branches()["cond"], "return_dict": False}
    letters = ""
    with torch.no_grad(), prepared.run(), prepared.context("cond"):
        x = shape.noise()
        for step in range(scenario.steps):
            prepared.before(step)
            seen.clear()
            x = x - prepared.denoiser(hidden_states=x, timestep=torch.tensor([1 - step / 14]), **arguments)[0] / 14
            letters += "F" if seen else "."
    assert letters == prepared.decisions


def test_scenarios_compute_nine_of_fifty() -> None:
    assert SCENARIOS["flux-70m"].decisions == "FFF......F......F......F......F......F......F....."[:50]


def test_bytes_of_a_forecast_are_its_rings_its_gates_and_its_ends() -> None:
    model = TINY.model()
    arguments = {**TINY.branches()["cond"], "hidden_states": TINY.noise(), "timestep": torch.ones(1)}
    forecast = rewrite(captured(model, **arguments), Layout("module", depth=3)).programs[Choice.FORECAST]
    width, tokens = 32, 16
    rings = 3 * 4 * tokens * width  # three anchors of two slots of the double block and one each of two single blocks
    gates = 4 * (width * width + width)
    embedders = [model.x_embedder, model.time_text_embed, model.norm_out, model.proj_out]
    ends = sum(p.numel() for part in embedders for p in part.parameters())
    inputs = tokens * 64 + 256 + 1 + 3  # sample, pooled prompt, time, weights of the forecast
    assert bytes_touched(forecast) == 4 * (rings + gates + ends + inputs + tokens * 64)


def test_best_peer_is_of_the_same_kind() -> None:
    lines = with_best_peer(
        [
            line("ours, stack", "residual cache", 100),
            line("peer a", "residual cache", 130),
            line("peer b", "residual cache", 120),
            line("peer c", "module cache", 50),
        ]
    )
    assert lines[0]["over_best_peer"] == pytest.approx(1.2)
    assert "over_best_peer" not in lines[1]


def test_expectations(monkeypatch: pytest.MonkeyPatch) -> None:
    bounds = (
        Expectation("flux-70m", "ours, stack", "full_over_plain", 1.02),
        Expectation("flux-70m", "ours, stack", "clock_over_flops", 0.97, at_least=True),
    )
    monkeypatch.setattr("hicache_compile.benchmarks.expectations.EXPECTATIONS", bounds)
    good = [line("ours, stack", "residual cache", 100, full_over_plain=1.01, clock_over_flops=0.98)]
    bad = [line("ours, stack", "residual cache", 100, full_over_plain=1.03, clock_over_flops=0.96)]
    assert [holds for _, _, holds in check(good)] == [True, True]
    assert [holds for _, _, holds in check(bad)] == [False, False]


def test_charts(tmp_path: Path) -> None:
    lines = [
        line("torch.compile", "baseline", 1000),
        line("ours, stack", "residual cache", 100),
        line("peer", "module cache", 150),
    ]
    paths = draw(lines, tmp_path)
    assert [path.name for path in paths] == ["flux-70m-time.png", "flux-70m-fidelity.png"]
    assert all(path.stat().st_size > 5_000 for path in paths)


def test_host_time_of_both() -> None:
    shape = Flux(1, 2, heads=2, head_dim=16, image_tokens=16, text_tokens=8)
    found = at_scope(shape, "stack", rounds=1)
    assert (found["blocks"], found["scope"]) == (3, "stack")
    assert found["ours_over_plain"] == found["ours_us"] / found["plain_us"]


def test_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fake(name: str, rounds: int, only: str | None) -> list[dict[str, Any]]:
        figures = {"parameters": 1e6, "full_step_ms": 1.0, "forecast_step_ms": None}
        return [
            line("torch.compile", "baseline", 1000, **figures),
            {"contender": "x", "refused": "why", "scenario": name},
        ]

    monkeypatch.setattr(command, "_race", fake)
    out = tmp_path / "results.jsonl"
    done = CliRunner().invoke(app, ["bench", "flux-70m", "--out", str(out), "--check"])
    assert done.exit_code == 0, done.output
    assert "torch.compile" in done.output
    assert "x: why" in done.output
    assert len(out.read_text().splitlines()) == 2


def test_unknown_scenario() -> None:
    done = CliRunner().invoke(app, ["bench", "flux-71m"])
    assert done.exit_code == 2
    assert "must be one of flux-70m" in done.output


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_full_size_needs_a_gpu() -> None:
    done = CliRunner().invoke(app, ["bench", "flux-dev-1024-n7"])
    assert done.exit_code == 2
    assert "must be run on a machine with a GPU" in done.output
