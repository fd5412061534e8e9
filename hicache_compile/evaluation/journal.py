"""What long work has measured so far, JSON lines, so that it can be killed and taken up again."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hicache_compile.errors import HiCacheError
from hicache_compile.generate.record import json_lines
from hicache_compile.policy.files import add_line, lines_of, only_one, read_text, write_whole
from hicache_compile.policy.sealed import sealed, unsealed

Line = dict[str, Any]


class Journal:
    """The lines in ``path``, by candidate and run; each has a checksum and says ``of`` how many lines its run is.

    Args:
        settings: what the numbers depend on besides the candidate: model, steps, seeds, ...; kept in the first line.
        name: of the option that ``path`` is of, for messages.

    Raises:
        HiCacheError: the file was written under other settings, is damaged, or is none of this kind.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], name: str = "tune.out") -> None:
        self.path = path
        self.name = name
        self._lines: dict[tuple[str, int], list[Line]] = {}
        wanted = json.loads(json.dumps(settings))
        head = json_lines([{"settings": wanted}])
        text = read_text(name, path) if os.path.exists(path) else ""
        if head.startswith(text):
            write_whole(path, head)
            return
        whole = text[: text.rfind("\n") + 1]  # a line that was being written when the search was killed
        self._read(lines_of(whole)[:-1], wanted)
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
                f"{self.name}: line {read + 1} of {str(self.path)!r} is "
                f"{'damaged' if damaged else 'none of the results of earlier work'}: must be as it was written, "
                "or be removed"
            ) from None
        for key in sorted({*wanted, *found}):
            if found.get(key) != wanted.get(key):
                raise HiCacheError(
                    f"{self.name}: {str(self.path)!r} was measured with {key} = {found.get(key)!r}, must be "
                    f"{wanted.get(key)!r}; choose another place, or remove it"
                )

    def has(self, candidate: str, run: int) -> bool:
        return (candidate, run) in self._lines

    def add(self, candidate: str, run: int, lines: list[Line]) -> None:
        """Keep the ``lines`` of a run of ``candidate``."""
        kept = [{"candidate": candidate, "run": run, "of": len(lines), **line} for line in lines]
        add_line(self.path, json_lines(map(sealed, kept)))
        self._lines[candidate, run] = kept

    def of(self, candidate: str) -> list[Line]:
        """All lines of ``candidate``."""
        return [line for (name, _), lines in self._lines.items() if name == candidate for line in lines]

    def at(self, candidate: str, run: int) -> list[Line]:
        """The lines of one run, as they were added."""
        own = ("candidate", "run", "of")
        return [{key: value for key, value in line.items() if key not in own} for line in self._lines[candidate, run]]


def unfinished(path: Path) -> Path:
    """Where the journal of work stands whose results go to ``path`` once it has ended."""
    return path.with_name(f"{path.name}.unfinished")


@contextmanager
def journal_of(out: Path | None, settings: Mapping[str, Any], name: str) -> Iterator[Journal | None]:
    """The journal of work whose results go to ``out``, which no other process does meanwhile; None where they go
    nowhere.

    Raises:
        HiCacheError: another process does it, or see ``Journal``.
    """
    if out is None:
        yield None
        return
    path = unfinished(out)
    with only_one(path.with_name(f".{path.name}.lock"), f"writes {str(out)!r}"):
        yield Journal(path, settings, name)


def once(journal: Journal | None, candidate: str, run: int, measure: Callable[[], list[Line]]) -> list[Line]:
    """The lines of a run: those in ``journal``, or what ``measure`` returns, which is kept there."""
    if journal is None:
        return measure()
    if not journal.has(candidate, run):
        journal.add(candidate, run, measure())
    return journal.at(candidate, run)
