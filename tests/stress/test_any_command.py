"""Every command takes any words for its options, or says in a few what is wrong: never a traceback, never a hang.

What takes long (sampling, capturing, measuring) is left out: the command is stopped where it would begin.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import torch
import typer.main
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from hicache_compile import HiCacheError
from hicache_compile.cli import app
from hicache_compile.errors import LONGEST
from tests.stress.size import size

SECONDS = 20  # of one command
COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]  # a group
STOPPED = {  # where a command would begin to work
    "hicache_compile.demo.emoji.drawing.load_pipeline",
    "hicache_compile.evaluation.subjects.DemoSubject.draw",
    "hicache_compile.evaluation.runs.Judge.lines",
    "hicache_compile.tune.tuner.Tuner.candidates",
    "hicache_compile.tune.fit_subject.fit",
    "hicache_compile.tune.fit_subject.measure",
    "hicache_compile.runtime.replay.capture.capture_call",
    "hicache_compile.export.files.capture_call",
    "hicache_compile.collect_env.subject.open_subject",
    "hicache_compile.generate.maker.load_pipeline",
    "hicache_compile.generate.cluster._ray",
    "hicache_compile.evaluation.subjects.load_pipeline",
    "hicache_compile.benchmarks.command._race",
}
CONFIG = {
    "_class_name": "FluxTransformer2DModel",
    "num_layers": 1,
    "num_single_layers": 1,
    "attention_head_dim": 8,
    "num_attention_heads": 2,
    "joint_attention_dim": 16,
    "pooled_projection_dim": 8,
    "axes_dims_rope": [2, 2, 4],
}
FILES: dict[str, bytes] = {
    "empty": b"",
    "empty.json": b"",
    "binary": bytes(range(256)) * 8,
    "binary.json": bytes(range(256)),
    "binary.jsonl": bytes(range(255, -1, -1)),
    "list.json": b"[1, 2]",
    "number.jsonl": b"1\n2\n",
    "policy.json": b'{"preset": "HiCache", "interval": 3}',
    "prompts.txt": b"3\n7\n",
    "prompts.jsonl": b'{"prompt": "a cat", "image": "none.png"}\n{"prompt": "3"}\n',
    "config.json": json.dumps(CONFIG).encode(),
    "odd/config.json": json.dumps({**CONFIG, "num_layers": "many"}).encode(),
    "other/config.json": b'{"_class_name": ["x"]}',
    "pipeline/model_index.json": b"{}",
    "broken/model_index.json": b"{]",
    "chipmunk.yaml": b"attn: [1, {",
}
HOSTILE = [
    "/dev/null",
    "/dev/null/x",
    "/dev/full",
    "/dev/zero",
    "/proc/none/x",
    ".",
    "/",
    "",
    "x" * 300,
    "no/such/file",
]
WORDS = st.one_of(
    st.sampled_from([*FILES, "pipeline", "broken", "odd", "demo", *HOSTILE]),
    st.sampled_from(["0", "1", "2", "50", "-1", "3.5", "nan", "inf", "1e999", "9" * 18, "9" * 400, "1e308", "0x10"]),
    st.sampled_from(
        ["HiCache", "FORA", "teacache", "magcache", "calibrated", "eager", "float32", "int8", "4GiB", "env"]
    ),
    st.sampled_from(["0.01,0.02,0.05", "nan,nan,nan", "1,2,inf", "onnx", "pt2", "aoti", "batch", "cpu", "cuda:99"]),
    st.sampled_from(
        ["{", "[" * 5000, "{}", '{"preset": "SCM", "mask": "1101"}', "--help", "--", "-", "\x1b[31m", "[red]"]
    ),
    st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), max_size=12),
    st.sampled_from(["x" * 5000, "é" * 200]),
)
FITTING: dict[str, st.SearchStrategy[str]] = {  # words of the right kind, by the type of an option or its name
    "int": st.one_of(
        st.integers(2, 20), st.integers(2, 9999), st.integers(), st.sampled_from([10**4, 2**62, 2**63, 10**400])
    ).map(str),
    "float": st.floats().map(str),
    "Path": st.sampled_from([*FILES, "new.json", "new.png", "new/new.png", "pipeline", "broken", *HOSTILE]),
    "model": st.sampled_from(["demo", "pipeline", "broken", "config.json", "odd", "other", "odd/config.json"]),
    "policy": st.sampled_from(["HiCache", "policy.json", '{"preset": "TeaCache", "threshold": 0.1}', "env"]),
    "backend": st.sampled_from(["eager", "inductor"]),
    "prompt": st.sampled_from(["3", "7", "a cat"]),
    "method": st.sampled_from(["teacache", "magcache", "calibrated", "sigma", "gates"]),
}


def option(parameter: Any, hints: dict[str, Any]) -> st.SearchStrategy[list[str]]:
    """What may stand for ``parameter`` on the command line; ``hints``: the types of the command's parameters."""
    name, kinds = parameter.opts[0], str(hints.get(parameter.name))
    kind = next((kind for kind in ("int", "float", "Path") if kind in kinds), "")
    words = st.one_of(*[FITTING.get(parameter.name, FITTING.get(kind, WORDS))] * 6, WORDS)
    if parameter.param_type_name == "argument":
        return words.map(lambda word: [word])
    if getattr(parameter, "is_flag", False):
        return st.just([name])
    return words.map(lambda word: [name, word])


@st.composite
def lines(draw: st.DrawFn) -> list[str]:
    """A command with its arguments: what it must have mostly, and some of what it may."""
    name = draw(st.sampled_from(list(COMMANDS)))
    needed = [one for one in COMMANDS[name].params if one.required or one.name in ("policy", "prompt", "backend")]
    others = [one for one in COMMANDS[name].params if one not in needed]
    chosen = [one for one in needed if draw(st.integers(0, 19))]
    chosen += draw(st.lists(st.sampled_from(others), max_size=5))
    hints = get_type_hints(COMMANDS[name].callback)
    words = [word for one in chosen for word in draw(option(one, hints))]
    return [name, *words, *draw(st.lists(WORDS, max_size=1) if draw(st.integers(0, 9)) == 0 else st.just([]))]


class StoppedError(HiCacheError):
    """Where work would begin."""


@contextlib.contextmanager
def at_most(seconds: int) -> Iterator[None]:
    def late(*_: object) -> None:
        raise TimeoutError(f"still running after {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The working folder, with files of every kind; nothing that takes long is begun."""
    from hicache_compile.benchmarks import command
    from hicache_compile.benchmarks.measurement import Measurement

    where = tmp_path_factory.mktemp("words")
    for name, content in FILES.items():
        (where / name).parent.mkdir(exist_ok=True)
        (where / name).write_bytes(content)

    def stop(*_: object, **__: object) -> None:
        raise StoppedError("stopped where it would begin")

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(where)
        for place in STOPPED:
            patch.setattr(place, stop)
        for name in command.OTHERS:
            patch.setitem(command.OTHERS, name, Measurement(stop))
        yield where


def said(output: str) -> str:
    """The message of an error: ours after the name of the command, or what typer puts into a box."""
    ours = re.search(r"^hicache [\w-]+: (.*)", output, re.MULTILINE | re.DOTALL)
    if ours:
        return ours[1].strip()
    lines = [line.strip("│╭╰╮╯─ ") for line in output.splitlines() if line.startswith(("│", "Error: "))]
    return " ".join(lines)


def assert_it_ends_well(arguments: list[str]) -> None:
    with at_most(SECONDS):
        result = CliRunner().invoke(app, arguments)
    if not isinstance(result.exception, SystemExit | None):
        raise result.exception
    assert result.exit_code in (0, 2), result.output
    if result.exit_code:
        assert "Traceback" not in result.output
        assert 0 < len(said(result.stderr)) <= LONGEST + 60, said(result.stderr)


@settings(max_examples=size(40, 5000), deadline=None, suppress_health_check=list(HealthCheck))
@given(lines())
def test_any_words(folder: Path, arguments: list[str]) -> None:
    os.chdir(folder)
    assert_it_ends_well(arguments)
    assert torch.get_default_dtype() == torch.float32
    assert all((folder / name).read_bytes() == content for name, content in FILES.items() if content)
