"""Commands that are killed at any moment, or find the disk full, and are started again, end as if nothing had been."""

from __future__ import annotations

import functools
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from hicache_compile import HiCacheError
from hicache_compile.cli import app
from hicache_compile.errors import switched_on
from hicache_compile.evaluation.journal import Journal
from hicache_compile.policy.files import write_whole
from tests.pipelines import by_name
from tests.support.full_disk import room

KILLS = 10  # of each command
FULL = 5  # times the disk is full
# In lines: other each time. Rings are as deep as a policy that ran before in the process asked for.
TIMES = ("seconds", "clock_speedup", "state_bytes", "sha256")
DRAWN = ("batch.png", "summary.json")  # of times
SMALL = ["--backend", "eager", "--prompt", "3", "--steps", "6"]
PIPELINE = ["--height", "16", "--width", "16", "--max-sequence-length", "48", "--policy", "HiCache"]

Files = dict[str, Any]


def arguments(command: str, folder: Path, model: Path) -> list[str]:
    """The words of a ``command`` that writes into ``folder``."""
    return {
        "fit": ["tune", "demo", "--fit", "magcache", *SMALL, "--prompt", "7", "--out", f"{folder}/policy.json"],
        "eval": ["eval", "demo", "--policy", "FORA", *SMALL, "--samples", "4", "--out", f"{folder}/lines.jsonl"],
        "generate": [
            "generate",
            "--model",
            str(model),
            *PIPELINE,
            *SMALL,
            "--samples",
            "4",
            "--output-dir",
            str(folder),
        ],
        "tune": [
            "tune",
            "demo",
            *SMALL,
            "--runs",
            "2",
            "--evaluations",
            "1",
            "--errors",
            ".1,.3,.9",
            "--out",
            str(folder),
        ],
    }[command]


def outcome(folder: Path) -> Files:
    """Every file by its content, without times; of what a killed process left, nothing."""
    found: Files = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        if ".part." in path.name or path.name in DRAWN or path.suffix == ".lock":
            continue
        content: Any = path.read_bytes()
        if path.suffix == ".jsonl":
            lines = [json.loads(line) for line in content.decode().splitlines()]
            content = sorted(json.dumps({k: v for k, v in line.items() if k not in TIMES}) for line in lines)
        found[str(path.relative_to(folder))] = content
    return found


def in_a_child(work: Callable[[], Any]) -> multiprocessing.process.BaseProcess:
    child = multiprocessing.get_context("fork").Process(target=work)
    child.start()
    return child


def runs(words: list[str]) -> Callable[[], None]:
    """The command line in this process, which ends with its status."""

    def work() -> None:
        result = CliRunner().invoke(app, words)
        unexplained = result.exception is not None and not isinstance(result.exception, SystemExit)
        sys.exit(99 if unexplained or "Traceback" in result.output else result.exit_code)

    return work


def status(work: Callable[[], Any]) -> int | None:
    child = in_a_child(work)
    child.join()
    return child.exitcode


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return by_name("FluxPipeline").saved(tmp_path_factory.mktemp("flux"))


def emptied(folder: Path) -> Path:
    """``folder`` with nothing in it but a file of the user's."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    (folder / "mine.txt").write_text("mine")
    return folder


COMMANDS = ["fit", "eval", "generate", "tune"]
by_hand = pytest.mark.skipif(not switched_on("HICACHE_STRESS"), reason="minutes: HICACHE_STRESS=1 runs it")


@by_hand
@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_killed_and_started_again(command: str, model: Path, tmp_path: Path) -> None:
    whole, broken = emptied(tmp_path / "whole"), emptied(tmp_path / "broken")
    began = time.monotonic()
    assert status(runs(arguments(command, whole, model))) == 0
    longest, chance, kills = time.monotonic() - began, random.Random(0), 0
    work = runs(arguments(command, broken, model))
    while kills < KILLS:
        child = in_a_child(work)
        child.join(chance.uniform(0, longest))
        if child.is_alive():
            os.kill(child.pid, signal.SIGKILL)  # type: ignore[arg-type]  # it runs
            kills += 1
        child.join()
        if child.exitcode == 0:  # it was through before it could be killed
            assert outcome(broken) == outcome(whole)
            emptied(broken)
    assert status(work) == 0
    assert outcome(broken) == outcome(whole)


@by_hand
@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_a_full_disk_is_said_in_one_line(command: str, model: Path, tmp_path: Path) -> None:
    whole, broken = emptied(tmp_path / "whole"), emptied(tmp_path / "broken")
    assert status(runs(arguments(command, whole, model))) == 0
    largest = max(path.stat().st_size for path in whole.rglob("*") if path.is_file())
    work, chance = runs(arguments(command, broken, model)), random.Random(0)

    def without_room(limit: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        work()

    for _ in range(FULL):
        assert status(functools.partial(without_room, chance.randrange(largest // 2))) == 2
    assert status(work) == 0
    assert outcome(broken) == outcome(whole)


def test_what_a_library_says_of_a_full_disk(tmp_path: Path) -> None:
    """safetensors has an error of its own; nothing is left behind."""
    with room(1000), pytest.raises(HiCacheError, match="with room for it"):
        write_whole(tmp_path / "x.safetensors", lambda path: save_file({"x": torch.zeros(10_000)}, path))
    assert list(tmp_path.iterdir()) == []


def test_a_journal_goes_on_once_there_is_room(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    journal = Journal(path, {"steps": 12})
    journal.add("a", 0, [{"error": 1.0}])
    before = path.read_text()
    for limit in range(len(before), len(before) + 60, 7):
        with room(limit), pytest.raises(HiCacheError, match="with room for it"):
            journal.add("a", 1, [{"error": 2.0}])
        assert path.read_text() == before
        assert not Journal(path, {"steps": 12}).has("a", 1)
    journal.add("a", 1, [{"error": 2.0}])
    assert [line["error"] for line in Journal(path, {"steps": 12}).of("a")] == [1.0, 2.0]
