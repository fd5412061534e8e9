"""What is done: files put in place whole, and one JSON line for each, so that a kill loses nothing but one item."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

RESULTS = "results.jsonl"


def json_lines(rows: Iterable[Mapping[str, Any]]) -> str:
    """A line of JSON for each of ``rows``."""
    return "".join(json.dumps(row) + "\n" for row in rows)


def put(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` make a file beside ``path`` and move it there once it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{os.getpid()}.{path.name}")
    write(unfinished)
    os.replace(unfinished, path)


class Record:
    """The JSON lines of one process. Lines of earlier runs and of other processes are read, never changed.

    Args:
        folder: the output folder.
        rank: of this process; each writes a file of its own, which ``merge`` joins.
    """

    def __init__(self, folder: Path, rank: int = 0) -> None:
        self.folder = folder
        self.path = folder / f".results.rank{rank}.jsonl"
        folder.mkdir(parents=True, exist_ok=True)
        whole = _lines(self.path)
        put(self.path, lambda path: _write(path, whole))  # a kill may have torn the last line

    def done(self) -> dict[str, dict[str, Any]]:
        """The line of every file that is in place, by its name."""
        found = {}
        for path in sorted([*self.folder.glob(".results.rank*.jsonl"), self.folder / RESULTS]):
            found.update({line["file"]: line for line in _lines(path) if (self.folder / line["file"]).exists()})
        return found

    def add(self, line: dict[str, Any]) -> None:
        """Write down that ``line["file"]`` is in place."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json_lines([line]))
            file.flush()
            os.fsync(file.fileno())

    def merge(self) -> list[dict[str, Any]]:
        """Join all lines into ``results.jsonl``, ordered by prompt and sample, and remove the rest."""
        lines = sorted(self.done().values(), key=lambda line: (line["index"], line["sample"]))
        put(self.folder / RESULTS, lambda path: _write(path, lines))
        for path in [*self.folder.glob(".results.rank*.jsonl"), *self.folder.glob("**/.[0-9]*.*")]:
            path.unlink()
        return lines


def _lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of ``path``."""
    found = []
    if path.exists():
        for text in path.read_text(encoding="utf-8").splitlines():
            try:
                line = json.loads(text)
            except json.JSONDecodeError:
                continue
            if isinstance(line, dict) and {"file", "index", "sample"} <= line.keys():
                found.append(line)
    return found


def _write(path: Path, lines: Iterable[dict[str, Any]]) -> None:
    path.write_text(json_lines(lines), encoding="utf-8")
