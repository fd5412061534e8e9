"""What a search has measured so far, one JSON line for each picture, so that it can be killed and taken up again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hicache_compile.errors import HiCacheError
from hicache_compile.generate.record import json_lines
from hicache_compile.policy.files import add_line, read_text, write_whole

Line = dict[str, Any]


class Journal:
    """The lines in ``path``, by candidate and run.

    Args:
        settings: what the numbers depend on besides the candidate: model, steps, seeds, ...; kept in the first line.

    Raises:
        HiCacheError: the file was written under other settings, or is none of this kind.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.path = path
        self._lines: dict[tuple[str, int], list[Line]] = {}
        wanted = json.loads(json.dumps(settings))
        text = read_text("tune.out", path) if path.exists() else ""
        whole, _, torn = text.rpartition("\n")  # a line that was being written when the search was killed
        if not whole:
            write_whole(path, json_lines([{"settings": wanted}]))
            return
        if torn:
            write_whole(path, whole + "\n")
        try:
            first, *lines = [json.loads(line) for line in whole.splitlines()]
            found = dict(first["settings"])
            for line in lines:
                self._lines.setdefault((str(line["candidate"]), int(line["run"])), []).append(line)
        except (ValueError, KeyError, TypeError, RecursionError):
            raise HiCacheError(
                f"tune.out: {str(path)!r} must be the results of an earlier search, or not there"
            ) from None
        for key in sorted(wanted):
            if found.get(key) != wanted[key]:
                raise HiCacheError(
                    f"tune.out: {str(path)!r} was measured with {key} = {found.get(key)!r}, must be {wanted[key]!r}; "
                    "choose another folder"
                )

    def has(self, candidate: str, run: int) -> bool:
        return (candidate, run) in self._lines

    def add(self, candidate: str, run: int, lines: list[Line]) -> None:
        """A run of ``candidate`` was measured."""
        kept = [{"candidate": candidate, "run": run, **line} for line in lines]
        self._write(kept)
        self._lines[candidate, run] = kept

    def of(self, candidate: str) -> list[Line]:
        """All lines of ``candidate``."""
        return [line for (name, _), lines in self._lines.items() if name == candidate for line in lines]

    def _write(self, lines: list[Line]) -> None:
        add_line(self.path, json_lines(lines))
