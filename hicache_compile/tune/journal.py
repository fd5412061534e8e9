"""What a search has measured so far, one JSON line for each picture, so that it can be killed and taken up again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hicache_compile.errors import HiCacheError
from hicache_compile.generate.record import json_lines
from hicache_compile.policy.files import add_line, read_text, write_whole
from hicache_compile.policy.sealed import sealed, unsealed

Line = dict[str, Any]


class Journal:
    """The lines in ``path``, by candidate and run; each has a checksum and says ``of`` how many lines its run is.

    Args:
        settings: what the numbers depend on besides the candidate: model, steps, seeds, ...; kept in the first line.

    Raises:
        HiCacheError: the file was written under other settings, is damaged, or is none of this kind.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.path = path
        self._lines: dict[tuple[str, int], list[Line]] = {}
        wanted = json.loads(json.dumps(settings))
        head = json_lines([{"settings": wanted}])
        text = read_text("tune.out", path) if path.exists() else ""
        if head.startswith(text):
            write_whole(path, head)
            return
        whole = text[: text.rfind("\n") + 1]  # a line that was being written when the search was killed
        self._read(whole.splitlines(), wanted)
        torn = [key for key, lines in self._lines.items() if len(lines) != lines[0].get("of", len(lines))]
        for key in torn:  # a run of which not every line was written
            del self._lines[key]
        if torn or whole != text:
            kept = [sealed(line) for lines in self._lines.values() for line in lines]
            write_whole(path, whole[: whole.index("\n") + 1] + json_lines(kept))

    def _read(self, lines: list[str], wanted: Mapping[str, Any]) -> None:
        read = 0
        try:
            found = dict(json.loads(lines[0])["settings"])
            for read, text in enumerate(lines[1:], 1):  # noqa: B007  # for the message
                data = json.loads(text)
                line = unsealed("line", data, optional="of" not in data)  # lines of earlier releases have neither
                self._lines.setdefault((str(line["candidate"]), int(line["run"])), []).append(line)
        except (HiCacheError, LookupError, ValueError, TypeError, AttributeError, RecursionError) as error:
            damaged = isinstance(error, HiCacheError)
            raise HiCacheError(
                f"tune.out: line {read + 1} of {str(self.path)!r} is "
                f"{'damaged' if damaged else 'none of the results of an earlier search'}: must be as it was written, "
                "or be removed"
            ) from None
        for key in sorted(wanted):
            if found.get(key) != wanted[key]:
                raise HiCacheError(
                    f"tune.out: {str(self.path)!r} was measured with {key} = {found.get(key)!r}, must be "
                    f"{wanted[key]!r}; choose another folder"
                )

    def has(self, candidate: str, run: int) -> bool:
        return (candidate, run) in self._lines

    def add(self, candidate: str, run: int, lines: list[Line]) -> None:
        """A run of ``candidate`` was measured."""
        kept = [{"candidate": candidate, "run": run, "of": len(lines), **line} for line in lines]
        add_line(self.path, json_lines(map(sealed, kept)))
        self._lines[candidate, run] = kept

    def of(self, candidate: str) -> list[Line]:
        """All lines of ``candidate``."""
        return [line for (name, _), lines in self._lines.items() if name == candidate for line in lines]
