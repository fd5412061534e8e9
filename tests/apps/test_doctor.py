"""``hicache doctor`` tells what works here, and what is missing."""

from __future__ import annotations

import json
import sys

import pytest
from typer.testing import CliRunner

from hicache_compile.cli import app, doctor
from hicache_compile.cli.doctor import Small


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hicache_compile.cli.doctor.BACKENDS", ("eager", "cond_eager"))


def test_what_works_is_tried() -> None:
    done = CliRunner().invoke(app, ["doctor", "--json"])
    found = {each["about"]: each for each in json.loads(done.stdout)}
    assert done.exit_code == 0
    assert found["backend eager"]["well"] is found["backend cond_eager"]["well"] is True
    assert "scikit-learn" in found["extra demo"]["found"]
    assert {"Python", "torch", "C++ compiler", "GPU"} <= set(found)


def test_a_backend_that_is_wrong_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = iter(range(100))
    forward = Small.forward
    monkeypatch.setattr(Small, "forward", lambda self, x, t: forward(self, x, t) + next(calls))
    done = CliRunner().invoke(app, ["doctor"])
    assert done.exit_code == 1
    assert "fails" in done.output


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tqdm", None)
    done = CliRunner().invoke(app, ["demo"])
    assert done.exit_code == 2
    assert "tqdm is not installed: must be; pip install 'hicache_compile[demo]'" in done.output


def test_brackets_are_no_markup(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_version", lambda name: None if name == "tqdm" else "1.0")
    done = CliRunner().invoke(app, ["doctor"])
    assert "'hicache_compile[demo]'" in " ".join(done.output.split())
