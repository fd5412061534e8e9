"""hicache tune: who survives, what a killed search keeps, what is recommended and whether that holds."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hicache_compile import HiCacheError
from hicache_compile.cli import app
from hicache_compile.evaluation import Interval95
from hicache_compile.evaluation.journal import Journal
from hicache_compile.policy.json_codec import as_policy
from hicache_compile.tune.grid import THRESHOLDS, grid
from hicache_compile.tune.halving import Standing, front, halve, survivors
from hicache_compile.tune.recommend import choose, promise

A, B, C, D = (Standing("a", 0.2, 0.9), Standing("b", 0.5, 0.3), Standing("c", 0.6, 0.4), Standing("d", 0.9, 0.1))


def test_the_front_is_who_no_other_beats() -> None:
    assert front([D, C, B, A]) == [A, B, D]
    assert front([A, A._replace(name="worse", error=0.95)]) == [A]
    assert survivors([A, B, C, D], 1) == ["a", "b", "d"]
    assert survivors([A, B, C, D], 4) == ["a", "b", "d", "c"]
    second = [Standing("e", 0.7, 0.5), C]  # both behind the front
    assert survivors([A, B, D, *second], 4) == ["a", "b", "d", "c"]


def test_the_better_half_gets_twice_the_runs() -> None:
    made: dict[str, int] = {}

    def measure(name: str, run: int) -> None:
        made[name] = max(made.get(name, 0), run + 1)

    # On a line behind one another: every front is one candidate.
    left = halve([str(n) for n in range(8)], measure, lambda name: Standing(name, float(name), float(name)), 8, 3)
    assert left == ["0", "1"]
    assert made == {"0": 8, "1": 8, "2": 4, "3": 4, "4": 2, "5": 2, "6": 2, "7": 2}


def test_the_grid_has_what_it_promises() -> None:
    found = grid([0.0, 1.0])
    names = [candidate.name for candidate in found]
    assert len(set(names)) == len(names)
    for guard in ("FBCache", "TeaCache"):
        assert [c.knob for c in found if c.family == f"{guard}, reuse"] == list(THRESHOLDS)
    both = [c for c in found if len(c.policy.guards) == 2]
    assert len(both) == (len(THRESHOLDS) - 1) ** 2
    assert {c.policy.scope for c in found} == {"stack", "module"}


def test_a_journal_goes_on_where_it_was_torn(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    journal = Journal(path, {"steps": 12})
    journal.add("a", 0, [{"error": 1.0}, {"error": 2.0}])
    journal.add("b", 0, [{"error": 3.0}])
    path.write_text(path.read_text() + '{"candidate": "b", "run": 1, "err')  # killed while it wrote
    again = Journal(path, {"steps": 12})
    assert again.has("a", 0)
    assert not again.has("b", 1)
    again.add("b", 1, [{"error": 4.0}])
    assert [line["error"] for line in Journal(path, {"steps": 12}).of("b")] == [3.0, 4.0]
    with pytest.raises(HiCacheError, match="was measured with steps = 12, must be 50"):
        Journal(path, {"steps": 50})
    with pytest.raises(HiCacheError, match="was measured with height = None, must be 64"):
        Journal(path, {"steps": 12, "height": 64})
    with pytest.raises(HiCacheError, match="was measured with steps = 12, must be None"):
        Journal(path, {})
    path.write_text("what is this\n")
    with pytest.raises(HiCacheError, match="must be"):
        Journal(path, {"steps": 12})


def found(error: float, high: float, speed: float) -> dict[str, Interval95]:
    return {"relative_error": Interval95(error, error / 2, high), "flops_speedup": Interval95(speed, speed, speed)}


def test_the_fastest_that_is_true_enough_is_recommended() -> None:
    tried = {"slow": found(0.001, 0.002, 2.0), "fair": found(0.01, 0.018, 4.0), "fast": found(0.019, 0.03, 6.0)}
    assert choose(tried, (0.005, 0.02, 0.05)) == {"conservative": "slow", "balanced": "fair", "aggressive": "fast"}
    assert choose(tried, (0.001, 0.002, 0.02)) == {"balanced": "slow", "aggressive": "fair"}
    assert promise(Interval95(1.0, 0.8, 1.3)) == pytest.approx((1.0, 1 - 0.2 * 2**0.5, 1 + 0.3 * 2**0.5))


@pytest.mark.slow
def test_a_search_is_taken_up_again_and_keeps_its_promise(tmp_path: Path) -> None:
    out = tmp_path / "tuned"
    options = ["--steps", "10", "--runs", "4", "--evaluations", "2", "--backend", "eager", "--out", str(out)]
    options += ["--prompt", "3", "--prompt", "7", "--errors", "0.05,0.1,0.3", "--json"]
    first = CliRunner().invoke(app, ["tune", "demo", *options])
    assert first.exit_code == 0, first.output
    recommended = json.loads(first.stdout)
    lines = (out / "results.jsonl").read_text().splitlines()
    (out / "results.jsonl").write_text("\n".join(lines[: len(lines) // 2]) + "\n" + lines[-1][:20])
    second = CliRunner().invoke(app, ["tune", "demo", *options])
    again = json.loads(second.stdout)
    assert [(r["level"], r["candidate"]) for r in again] == [(r["level"], r["candidate"]) for r in recommended]
    assert len((out / "results.jsonl").read_text().splitlines()) == len(lines)
    for chart in ("pareto", "thresholds", "error_profile", "memory", "batch", "pictures"):
        assert (out / f"{chart}.png").stat().st_size > 5000
    assert logging.getLogger("hicache_compile.runtime.session").level == logging.NOTSET  # as it was
    assert "Both guards at once" in (out / "report.md").read_text()
    assert recommended
    for one in recommended:
        policy = as_policy(str(out / one["policy"]))
        assert policy.decisions(10).count("F") <= 10
        fresh = [
            "--policy",
            str(out / one["policy"]),
            "--samples",
            "2",
            "--seed",
            "777",
            "--prompt",
            "3",
            "--prompt",
            "7",
        ]
        result = CliRunner().invoke(app, ["eval", "demo", *fresh, "--steps", "10", "--backend", "eager", "--json"])
        error = json.loads(result.stdout)[one["level"]]["relative_error"]["value"]
        spread = one["error"]["high"] - one["error"]["low"]  # four pictures: the interval itself is rough
        assert one["error"]["low"] - spread <= error <= one["error"]["high"] + spread


@pytest.mark.parametrize("errors", ["0.01", "0.1,0.05,0.2", "0,1,2", "0.1,0.2,x", "nan,nan,nan", "1,2,inf"])
def test_levels_must_rise(errors: str) -> None:
    result = CliRunner().invoke(app, ["tune", "demo", "--errors", errors])
    assert result.exit_code == 2
    assert "must be three rising numbers" in " ".join(result.output.split())
