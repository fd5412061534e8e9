"""What the documentation repeats from the code is what the code says.

``python -m tests.test_docs`` writes the generated parts again.
"""

from __future__ import annotations

import re
from pathlib import Path

from hicache_compile.policy.compatibility import CONFLICTS

ROOT = Path(__file__).parents[1]
ARCHITECTURE = ROOT / "docs" / "architecture.md"
TABLE = re.compile(r"(?<=<!-- conflicts -->\n).*?(?=<!-- end -->)", flags=re.DOTALL)


def conflicts() -> str:
    rows = [f"| {conflict.one} | {conflict.other} | {conflict.reason} |" for conflict in CONFLICTS]
    return "\n".join(["| one | other | reason, and what to do |", "|---|---|---|", *rows, ""])


def test_the_table_of_conflicts_is_that_of_the_code() -> None:
    found = TABLE.search(ARCHITECTURE.read_text(encoding="utf-8"))
    assert found is not None
    assert found[0] == conflicts()


def test_every_file_it_names_exists() -> None:
    """Names of files and folders in the walk."""
    named = re.findall(r"`((?:\w+/)+(?:\w+\.py)?)`", ARCHITECTURE.read_text(encoding="utf-8"))
    assert len(named) > 20
    for name in named:
        assert (ROOT / name).exists() or (ROOT / "hicache_compile" / name).exists(), name


if __name__ == "__main__":
    text = ARCHITECTURE.read_text(encoding="utf-8")
    ARCHITECTURE.write_text(TABLE.sub(lambda _: conflicts(), text), encoding="utf-8")
