"""``hicache serve``: options, the start-up table, and how it ends. The pipeline is a stand-in."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from hicache_compile.cli import app
from hicache_compile.serving.http import server as servers
from hicache_compile.serving.http.source import Source
from tests.serving.http.fake_service import ARGUMENTS, FakeBatcher, fake_service
from tests.serving.packs import PACK, STEPS, TRUE

ASKED: list[Any] = []  # what clients of the command were answered


class AskedServer(servers.Server):
    """A server that asks itself once it listens, and then is interrupted."""

    def run(self, sockets: Any = None) -> None:
        import threading

        def ask() -> None:
            url = servers.address_of(sockets[0])
            try:
                ASKED.append(
                    httpx.post(f"{url}/v1/images/generations", json={"prompt": "a fox", "seed": 1}, timeout=30)
                )
            finally:
                self.should_exit = True

        tell, self._tell_started = self._tell_started, threading.Thread(target=ask).start
        tell()
        super().run(sockets)
        raise KeyboardInterrupt


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "fox").mkdir()
    (tmp_path / "fox" / "model_index.json").write_text("{}")
    return tmp_path / "fox"


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Source]:
    """The sources that the command opens."""
    opened: list[Source] = []

    def stand_in(source: Source) -> Any:
        opened.append(source)
        more = {"negative_prompt", "max_sequence_length", "true_cfg_scale"}
        return fake_service(arguments=ARGUMENTS | more, policy=source.policy)

    monkeypatch.setattr(Source, "open", stand_in)
    monkeypatch.setattr(servers, "Server", AskedServer)
    monkeypatch.setattr(servers, "end_at_sigterm", lambda: None)
    ASKED.clear()
    return opened


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["serve", *arguments])


def test_it_serves_until_ctrl_c(folder: Path, made: list[Source]) -> None:
    done = run(str(folder), "--port", "0", "--policy", "hicache", "--steps", "5", "--max-batch", "3", "--height", "96")
    assert done.exit_code == 130
    assert "requests that were taken are answered" in done.output
    for text in ("http://127.0.0.1:", "fox (FakePipeline, inductor)", "HiCache", "anybody", "n 10, steps 200"):
        assert text in done.output
    assert ASKED[0].status_code == 200
    assert ASKED[0].json()["hicache"]["num_inference_steps"] == 5
    assert ASKED[0].json()["size"] == "96x96"
    assert (made[0].max_batch, made[0].policy.scope) == (3, "module")


def test_the_table_as_data(folder: Path, made: list[Source]) -> None:
    done = run(str(folder), "--port", "0", "--json", "--sizes", "64x64", "--sizes", "128x64", "--no-warm-up")
    table = json.loads(done.stdout[: done.stdout.rindex("}") + 1])
    assert table["sizes"] == "64x64, 128x64"
    assert table["address"].startswith("http://127.0.0.1:")


@pytest.fixture
def pack(tmp_path: Path) -> str:
    PACK.save(tmp_path / "pack.json")
    return str(tmp_path / "pack.json")


def test_a_pack_in_place_of_a_policy(folder: Path, made: list[Source], pack: str) -> None:
    done = run(str(folder), "--port", "0", "--pack", pack, "--max-error", "0.1", "--fixed-policy", "--json")
    table = json.loads(done.stdout[: done.stdout.rindex("}") + 1])
    assert table["policy"] == "true, of the pack for max_error 0.1; requests may bring promises"
    assert (made[0].pack, made[0].policy, made[0].max_error, made[0].max_seconds) == (PACK, TRUE.policy, 0.1, None)
    assert ASKED[0].json()["hicache"]["num_inference_steps"] == STEPS
    assert ASKED[0].json()["hicache"]["policies"] == ["true"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--pack", "PACK", "--max-error", "0.1", "--policy", "HiCache"], "must be left out with --pack"),
        (["--pack", "PACK"], "max_error or max_seconds must be given"),
        (["--pack", "PACK", "--max-seconds", "0.5"], "pack.max_seconds = 0.5: must be 1.5 or more"),
        (["--pack", "PACK", "--max-error", "0.1", "--steps", "9"], "serve.steps = 9: must be 5 with this pack"),
        (["--pack", "none.json", "--max-error", "0.1"], "pack = 'none.json': must be a readable"),
        (["--policy", "PACK"], "this is a pack: give it as --pack"),
        (["--max-error", "0.1"], "serve.max_error = 0.1: must be given with a pack"),
    ],
)
def test_a_pack_that_cannot_be_served(
    folder: Path, made: list[Source], pack: str, arguments: list[str], says: str
) -> None:
    done = run(str(folder), "--port", "0", *(pack if each == "PACK" else each for each in arguments))
    assert done.exit_code == 2
    assert says in done.output
    assert made == []


def test_the_demo_has_its_own_guidance(made: list[Source], monkeypatch: pytest.MonkeyPatch) -> None:
    batchers: list[FakeBatcher] = []

    def close(batcher: FakeBatcher) -> None:
        batchers.append(batcher)

    monkeypatch.setattr(FakeBatcher, "close", close)
    run("demo", "--port", "0", "--true-cfg-scale", "2")
    call = batchers[0].calls[-1]
    assert (call["true_cfg_scale"], call["negative_prompt"], call["width"]) == (2.0, "", 64)
    assert made[0].folder.name == "emoji-pipeline"


def test_keys(folder: Path, made: list[Source], tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("one-of-the-keys\n")
    done = run(str(folder), "--port", "0", "--api-keys", str(keys), "--no-warm-up")
    assert ASKED[0].status_code == 401
    assert "1 in use" in done.output
    assert "one-of-the-keys" not in done.output


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--policy", "HiCach"], "did you mean HiCache"),
        (["--sizes", "big"], "serve.sizes = 'big': must be WIDTHxHEIGHT"),
        (["--api-keys", "none.txt"], "api-keys = 'none.txt': must be a readable"),
        (["--host", "203.0.113.7"], "must be a free address of this machine"),
        (["--backend", "fast"], "serve.backend = 'fast': must be one of"),
        (["--steps", "500"], "serve.steps = 500: must be an integer from 1 to 200"),
        (["--timeout", "-1"], "serve.seconds = -1.0"),
        (["--guidance-scale", "nan"], "--guidance-scale"),
        (["--true-cfg-scale", "-1"], "--true-cfg-scale"),
        (["--height", "4096", "--width", "4096"], "serve.size = '4096x4096': must be at most 2048 pixels"),
        (["--negative-prompt", "x" * 4001], "serve.negative_prompt: a text of 4001 characters"),
        (["--max-sequence-length", "9", "--num-frames", "5"], "FakePipeline takes no such argument"),
        (["--replicas", "0"], "serve.replicas = '0'"),
        (["--replicas", "4:2"], "LEAST:MOST"),
        (["--policy", '{"preset": "HiCache", "scope": "block"}'], "for this model"),
    ],
)
def test_a_wrong_option_is_named(folder: Path, made: list[Source], arguments: list[str], says: str) -> None:
    done = run(str(folder), "--port", "0", *arguments)
    assert done.exit_code == 2
    assert says in done.output


def test_a_folder_without_a_pipeline(tmp_path: Path) -> None:
    done = run(str(tmp_path))
    assert done.exit_code == 2
    assert "must be demo or a folder that save_pretrained wrote" in done.output


def test_an_extra_that_is_missing_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("hicache_compile.serving.http")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "fastapi", None)
    done = run(str(folder))
    assert done.exit_code == 2
    assert "hicache_compile[serve]" in done.output


def test_ray_may_stand_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hicache_compile.cli import serve as command

    asked: list[tuple[str | None, tuple[int, int]]] = []
    monkeypatch.setattr(command, "_run", lambda *_, ray, replicas, **__: asked.append((ray, replicas)))
    for arguments in (["--ray"], ["--ray", "--replicas", "2"], ["--ray", "ray://head:10001", "--replicas", "1:4"], []):
        assert run(str(folder), *arguments).exit_code == 0
    assert asked == [
        ("local", (1, 1)),
        ("local", (2, 2)),
        ("ray://head:10001", (1, 4)),
        (None, (1, 1)),
    ]
