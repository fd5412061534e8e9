"""What is installed: every folder of Python files is named as a package."""

from __future__ import annotations

import sys
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]


def test_every_package_is_installed() -> None:
    named = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    found = set()
    for top, package in (
        ("hicache_compile", "hicache_compile"),
        *((name, f"hicache_compile.{name}") for name in ("passes", "backends", "benchmarks")),
    ):
        inside = {path.parent.relative_to(ROOT / top) for path in (ROOT / top).rglob("*.py")}
        found |= {".".join((package, *path.parts)) for path in inside if "__pycache__" not in path.parts}
    assert found == named
