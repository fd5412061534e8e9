"""What is installed: every folder of Python files is named as a package."""

from __future__ import annotations

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_every_package_is_installed() -> None:
    named = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    inside = {path.parent.relative_to(ROOT) for path in (ROOT / "hicache_compile").rglob("*.py")}
    folders = {".".join(path.parts) for path in inside if "__pycache__" not in path.parts}
    folders -= {name for name in folders if (ROOT / Path(*name.split("."))).is_symlink()}
    assert folders | {f"hicache_compile.{name}" for name in ("passes", "backends", "benchmarks")} == named
