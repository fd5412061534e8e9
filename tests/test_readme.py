"""Every Python block of the README and of docs/ runs, and its commands are the Makefile's."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks_of(*paths: Path) -> list[str]:
    texts = [path.read_text(encoding="utf-8") for path in paths]
    return [block for text in texts for block in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)]


@pytest.mark.parametrize("block", blocks_of(ROOT / "README.md"), ids=itertools.count())
def test_a_block_runs_and_prints_what_it_says(block: str, tmp_path: Path) -> None:
    assert_it_runs(block, tmp_path)


@pytest.mark.parametrize("block", blocks_of(*sorted((ROOT / "docs").rglob("*.md"))), ids=itertools.count())
def test_a_block_of_docs_runs_and_prints_what_it_says(block: str, tmp_path: Path) -> None:
    assert_it_runs(block, tmp_path)


def assert_it_runs(block: str, tmp_path: Path) -> None:
    """As a script of its own, the way a reader tries it."""
    script = tmp_path / "block.py"
    script.write_text(block, encoding="utf-8")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for promised in re.findall(r"^print\(.*\)  # (.*)$", block, flags=re.MULTILINE):
        assert promised in done.stdout


@pytest.mark.parametrize("command", ["make demo", "make test"])
def test_its_commands_exist(command: str) -> None:
    target = command.split()[1]
    assert command in README
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert "make test" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_every_number_has_its_command() -> None:
    for heading in ("## What it costs and what it changes",):
        section = README.split(heading)[1].split("\n## ")[0]
        tables = len(re.findall(r"^\|[-:| ]+\|$", section, flags=re.MULTILINE))
        assert tables == len(re.findall(r"^```bash\n", section, flags=re.MULTILINE)) > 0
