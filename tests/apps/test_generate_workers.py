"""``hicache generate`` with more than one process: prompts over workers on Ray, one sampling over ranks of torchrun."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from hicache_compile import HiCacheError
from hicache_compile.cli import app
from hicache_compile.generate import ray_workers as on_ray
from hicache_compile.generate.cluster import HERE
from hicache_compile.generate.items import Item, plain_items
from hicache_compile.generate.maker import Made
from hicache_compile.generate.record import Record
from hicache_compile.generate.run import generate as run
from hicache_compile.generate.settings import Settings
from hicache_compile.generate.spread import Spread
from hicache_compile.generate.workers import UnfitError
from tests.apps.test_generate import PROMPTS, SMALL, digests, generate, lines, model

__all__ = ["model"]  # a fixture
MANY = [f"{prompt}, {colour}" for prompt in PROMPTS for colour in ("red", "green", "blue", "grey")]


def without_times(folder: Path) -> list[dict[str, Any]]:
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines(folder)]


def test_a_worker_that_is_killed_costs_no_picture(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray")
    assert generate(model, tmp_path / "whole", MANY).failed == 0
    settings = Settings(model=model, policy="HiCache", steps=5, backend="eager", device="cpu", arguments=SMALL)
    made: list[str] = []
    with on_ray.ray_workers(settings, HERE, 3) as workers:
        names = [ray.get(actor.name.remote()) for actor in workers.actors]
        add = Record.add

        def killing(self: Record, line: dict[str, Any]) -> None:
            made.append(line["file"])
            if len(made) == 6:
                os.kill(int(names[1].rpartition(":")[2]), signal.SIGKILL)
            add(self, line)

        monkeypatch.setattr(Record, "add", killing)
        outcome = run(
            plain_items([{"prompt": prompt} for prompt in MANY], 1, 0, None), tmp_path / "ray", settings, workers
        )
    assert (outcome.items, outcome.failed) == (len(MANY), 0)
    assert len(set(made)) == len(made) == len(MANY)
    assert digests(tmp_path / "ray") == digests(tmp_path / "whole")
    assert without_times(tmp_path / "ray") == without_times(tmp_path / "whole")


class Scripted:
    """An actor that does what ``script`` says of each item."""

    def __init__(self, name: str, script: dict[str, Any]) -> None:
        self.script, self.attempt, self.asked = script, self, list[str]()
        self.name = SimpleNamespace(remote=lambda: name)

    def remote(self, item: Item) -> tuple[Scripted, Item]:
        self.asked.append(item.file)
        return self, item


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Actors answer in the order in which they were asked, with no cluster; text: why they failed."""

    def answered(busy: dict[Any, Any]) -> Any:
        actor, item = busy.pop(next(iter(busy)))
        if item is None:
            return actor, None, "started"
        answer = actor.script.get(item.file, actor.script.get("all", Made(".png", b"", {}, 1.0)))
        return actor, item, answer

    monkeypatch.setattr(on_ray, "_next", answered)


def ended(actors: Sequence[Scripted], count: int) -> Iterator[tuple[str, str]]:
    """The items in the order they came back in, ``made``, ``failed`` or ``again``."""
    items = plain_items([{"prompt": "x"}] * count, 1, 0, None)
    for item, result in on_ray.RayWorkers(actors).made(items):
        yield item.file[-1], "made" if isinstance(result, Made) else "again" if result.again else "failed"


@pytest.mark.usefixtures("scripted")
def test_what_a_worker_fails_at_others_try() -> None:
    broken = Scripted("a", {"all": "no room"})
    well = Scripted("b", {})
    found = list(ended([broken, well], 9))
    assert sorted(item for item, how in found if how == "made") == [str(item) for item in range(9)]
    assert len(found) == 9 + len(broken.asked)
    assert len(broken.asked) < 9 // 2  # once the other had made what it failed at, it got no more
    bad = {"00001": "a bad prompt"}
    actors = [Scripted(name, bad) for name in "abcd"]
    found = list(ended(actors, 6))
    assert [how for item, how in found if item == "1"] == ["again", "again", "failed"]
    assert sorted(item for item, how in found if how == "made") == ["0", "2", "3", "4", "5"]
    assert list(ended([Scripted("a", bad)], 2)) == [("0", "made"), ("1", "failed")]


@pytest.mark.usefixtures("scripted")
def test_a_worker_that_cannot_work_gets_no_more() -> None:
    lost = Scripted("a", {"all": UnfitError("cannot be loaded")})
    assert list(ended([lost, Scripted("b", {})], 2)) == [("0", "again"), ("1", "made"), ("0", "made")]
    assert lost.asked == ["00000"]
    with pytest.raises(HiCacheError, match=r"generate.workers: none is left, 1 items are: .*cannot be loaded"):
        list(ended([lost], 2))


@pytest.mark.usefixtures("scripted")
def test_an_item_that_nobody_left_may_try_is_said_to_have_failed() -> None:
    """Its worker failed at it, the other cannot work: what is left is made all the same."""
    one, other = Scripted("a", {"00000": "killed"}), Scripted("b", {"all": UnfitError("cannot be loaded")})
    found = list(ended([one, other], 3))
    assert sorted(found) == [("0", "again"), ("0", "failed"), ("1", "again"), ("1", "made"), ("2", "made")]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--ulysses", "2"], "ulysses 2 x ring 1 x tensor-parallel 1 are 2 ranks, 1 run"),
        (["--ring", "2", "--tensor-parallel", "2"], "generate.tensor_parallel = 2: must be 1 with ulysses or ring"),
        (["--workers", "2"], "generate.workers = 2: must be 1 without --ray"),
        (["--ray", "--ulysses", "2"], "generate.ray: must be without torchrun"),
    ],
)
def test_options_that_do_not_go_together(model: Path, tmp_path: Path, options: list[str], message: str) -> None:
    given = ["generate", "--model", str(model), "--policy", "HiCache", "--output-dir", str(tmp_path), "--prompt", "x"]
    result = CliRunner().invoke(app, [*given, *options], env={"COLUMNS": "400"})
    assert result.exit_code == 2
    assert message in result.stderr


def test_torchrun_must_be_told_how() -> None:
    with pytest.raises(HiCacheError, match="torchrun started 4 processes: must be told how they divide one sampling"):
        Spread().check(4)
    Spread(ulysses=2, ring=2).check(4)


ON_CPU = """
import sys, torch
torch.set_num_threads(1)
torch.accelerator.device_count = lambda: 1  # diffusers takes a CPU for no accelerator
from diffusers.hooks import tensor_parallel
tensor_parallel._SUPPORTED_TP_DEVICES = ("cpu",)
from hicache_compile.cli import app
app()
"""


@pytest.mark.parametrize("how", ["--ulysses", pytest.param("--tensor-parallel", marks=pytest.mark.slow)])
def test_two_ranks_make_each_picture_together(model: Path, tmp_path: Path, how: str) -> None:
    import numpy as np
    from PIL import Image

    out, whole = tmp_path / "ranks", tmp_path / "whole"
    (tmp_path / "script.py").write_text(ON_CPU)
    policy = '{"preset": "FBCache", "threshold": 0.2}'
    arguments = ["--model", str(model), "--policy", policy, "--output-dir", str(out)]
    arguments += [
        "--steps",
        "5",
        "--height",
        "16",
        "--width",
        "16",
        "--max-sequence-length",
        "48",
        "--backend",
        "eager",
    ]
    arguments += ["--json", *(word for prompt in PROMPTS[:2] for word in ("--prompt", prompt)), how, "2"]
    started = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*started, str(tmp_path / "script.py"), "generate", *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    summary = json.loads(done.stdout[done.stdout.index("{") :])
    assert (summary["items"], summary["failed"]) == (2, 0)
    generate(model, whole, PROMPTS[:2], policy=policy)
    assert without_times(out) == without_times(whole)
    for name in ("00000.png", "00001.png"):
        one, other = (np.asarray(Image.open(folder / name)).astype(int) for folder in (out, whole))
        assert abs(one - other).max() <= 1  # of 255
