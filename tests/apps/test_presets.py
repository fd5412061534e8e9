"""``hicache presets`` lists every preset with what it does, when to use it, and its parameters."""

from __future__ import annotations

import inspect
import json

import pytest
from typer.testing import CliRunner

from hicache_compile.cli import app
from hicache_compile.policy.presets import PRESETS


def test_every_preset_says_what_it_does_and_when_to_use_it() -> None:
    listed = json.loads(CliRunner().invoke(app, ["presets", "--json"]).stdout)
    assert [each["name"] for each in listed] == list(PRESETS)
    for each in listed:
        assert each["does"].endswith(".")
        assert each["when"].startswith("Use it ")
        assert list(each["parameters"]) == list(inspect.signature(PRESETS[each["name"]]).parameters)


def test_the_table_has_every_name_at_80_columns() -> None:
    lines = CliRunner().invoke(app, ["presets"], env={"COLUMNS": "80"}).stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert {line.split()[0] for line in lines if line.split()} >= set(PRESETS)


@pytest.mark.parametrize(("given", "status"), [("hi-cache", 0), ("hicash", 2)])
def test_names_in_any_spelling(given: str, status: int) -> None:
    done = CliRunner().invoke(app, ["presets", given])
    assert done.exit_code == status
    assert "HiCache" in done.output
