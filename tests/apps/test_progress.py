"""Long work shows itself, keeps what is done when it is interrupted, and goes on from there."""

from __future__ import annotations

import functools
import json
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from hicache_compile.benchmarks import command
from hicache_compile.benchmarks.measurement import Line, Measurement
from hicache_compile.cli import app
from hicache_compile.demo.training import Plan, train
from hicache_compile.evaluation.runs import Judge
from hicache_compile.generate.maker import Maker
from hicache_compile.policy import progress
from hicache_compile.policy.files import only_one
from tests.pipelines.cases import by_name

EVAL = ["eval", "demo", "--policy", "FORA", "--policy", "HiCache", "--steps", "4", "--samples", "2", "--batch", "5"]


def test_a_log_gets_lines(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "EVERY", 0.0)
    assert list(progress.progress(range(3), what="runs", unit="run")) == [0, 1, 2]
    log = capsys.readouterr().err
    assert [line.split()[:2] for line in log.splitlines()] == [["runs:", f"{n}%"] for n in (0, 33, 67, 100, 100)]
    assert "\r" not in log


def test_of_one_item_a_log_says_nothing_at_first(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.progress(total=5, what="steps", unit="step", within=True) as bar:
        bar.update(5)
    assert capsys.readouterr().err == ""


def test_a_terminal_gets_a_bar(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    list(progress.progress(range(3), what="runs", unit="run"))
    log = capsys.readouterr().err
    assert log.count("\n") == 1  # one line, drawn over and over
    assert "\r" in log


def interrupted_at(call: int, function: Callable[..., Any], calls: list[int]) -> Callable[..., Any]:
    """``function``, the call number ``call`` of which is Ctrl-C; ``calls`` counts them."""

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        calls.append(len(calls))
        if calls[-1] == call:
            raise KeyboardInterrupt
        return function(*args, **kwargs)

    return run


def without_times(text: str) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in text.splitlines()]
    return [{key: value for key, value in row.items() if key not in ("seconds", "clock_speedup")} for row in rows]


def test_an_evaluation_goes_on_where_it_was_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, whole, rest = tmp_path / "lines.jsonl", tmp_path / "whole.jsonl", list[int]()
    arguments = [*EVAL, "--backend", "eager", "--out"]
    assert CliRunner().invoke(app, [*arguments, str(whole)]).exit_code == 0
    with monkeypatch.context() as patch:
        patch.setattr(Judge, "lines", interrupted_at(7, Judge.lines, []))
        stopped = CliRunner().invoke(app, [*arguments, str(out)])
    assert stopped.exit_code == 130
    assert f"interrupted; what was drawn is in {out}.unfinished; the same command goes on" in stopped.stderr
    assert not out.exists()
    monkeypatch.setattr(Judge, "lines", interrupted_at(-1, Judge.lines, rest))
    other = CliRunner().invoke(app, [*arguments, str(out), "--seed", "1"])
    assert (other.exit_code, rest) == (2, [])  # other pictures than those in the journal
    assert "was measured with seed = 0, must be 1" in other.stderr
    with only_one(tmp_path / ".lines.jsonl.unfinished.lock", "is here"):
        second = CliRunner().invoke(app, [*arguments, str(out)])
    assert second.exit_code == 2
    assert "another process writes" in " ".join(second.stderr.split())
    fewer = CliRunner().invoke(app, [*arguments, str(out), "--samples", "7"])
    assert fewer.exit_code == 2
    assert "must be 7" in fewer.stderr
    assert CliRunner().invoke(app, [*arguments, str(out)]).exit_code == 0
    assert len(rest) == 3 * 4 - 7
    assert without_times(out.read_text()) == without_times(whole.read_text())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lines.jsonl", "whole.jsonl"]


def test_without_a_place_to_keep_it_an_evaluation_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Judge, "lines", interrupted_at(0, Judge.lines, []))
    stopped = CliRunner().invoke(app, [*EVAL, "--backend", "eager"])
    assert stopped.exit_code == 130
    assert "with --out what was drawn would have been kept" in stopped.stderr


def test_a_bench_goes_on_where_it_was_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    measure = interrupted_at(2, lambda: {"measured": "some", "value": 2.0 ** len(calls)}, calls)

    def parts() -> Iterator[Callable[[], Line]]:
        for _ in range(4):
            yield measure

    def compare(lines: list[Line]) -> None:
        for line in lines:
            line["over_first"] = line["value"] / lines[0]["value"]

    monkeypatch.setitem(command.OTHERS, "host", Measurement(parts, compare))
    out = tmp_path / "results.jsonl"
    out.write_text('{"earlier": 1}\n')
    arguments = ["bench", "host", "--out", str(out)]
    stopped = CliRunner().invoke(app, arguments)
    assert stopped.exit_code == 130
    assert f"what was measured is in {out}.unfinished" in stopped.stderr
    assert CliRunner().invoke(app, arguments).exit_code == 0
    earlier, *lines = map(json.loads, out.read_text().splitlines())
    assert earlier == {"earlier": 1}
    assert [line["over_first"] for line in lines] == [1.0, 2.0, 8.0, 16.0]  # the third call was the interrupted one
    assert [path.name for path in tmp_path.iterdir()] == ["results.jsonl"]


def test_generating_keeps_what_was_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = by_name("FluxPipeline").saved(tmp_path / "flux")
    monkeypatch.setattr(Maker, "make", interrupted_at(1, Maker.make, []))
    arguments = ["generate", "--model", str(model), "--policy", "FORA", "--output-dir", str(tmp_path / "out")]
    arguments += ["--steps", "2", "--backend", "eager", "--prompt", "a", "--prompt", "b"]
    stopped = CliRunner().invoke(app, arguments)
    assert stopped.exit_code == 130, stopped.output
    assert f"what was made is in {tmp_path / 'out'}; the same command makes the rest" in stopped.stderr
    again = CliRunner().invoke(app, [*arguments, "--json"])
    assert json.loads(again.stdout)["skipped"] == 1
    assert json.loads(again.stdout)["items"] == 2


def test_a_training_ends_its_step_before_it_stops(tmp_path: Path) -> None:
    def loss_of(model: nn.Module, generator: torch.Generator, at: int = -1) -> torch.Tensor:
        calls.append(len(calls))
        if calls[-1] == at:
            signal.raise_signal(signal.SIGINT)
        return model(torch.randn(4, 3, generator=generator)).square().mean()

    def new_model() -> nn.Module:
        torch.manual_seed(0)
        return nn.Linear(3, 1)

    calls: list[int] = []
    plan = Plan(6, rate=0.1, warmup=1)
    whole = train(new_model(), loss_of, plan, tmp_path / "whole.pt")
    calls.clear()
    with pytest.raises(progress.Interrupted, match=r"step 3 is in .*broken\.pt; the same command goes on"):
        train(new_model(), functools.partial(loss_of, at=2), plan, tmp_path / "broken.pt")
    went_on = train(new_model(), loss_of, plan, tmp_path / "broken.pt")
    assert len(calls) == 6
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), went_on.parameters(), strict=True))
    with pytest.raises(KeyboardInterrupt):  # the handler is the one that was there
        signal.raise_signal(signal.SIGINT)


def test_a_script_ends_with_130(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended, progress.script(), progress.kept("all is in x"):
        raise KeyboardInterrupt
    assert ended.value.code == 130
    assert capsys.readouterr().err == "\ninterrupted; all is in x\n"
