"""What is done: files put in place whole, and one JSON line for each, so that a kill loses nothing but one item."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any

from hicache_compile.policy.files import UNFINISHED, add_line, lines_of, read_text, write_whole

RESULTS = "results.jsonl"
_SCHEMA = {  # of a line
    "file": (str,),
    "index": (int,),
    "sample": (int,),
    "seconds": (float, int),
    "decisions": (dict,),
}


def json_lines(rows: Iterable[Mapping[str, Any]]) -> str:
    """A line of JSON for each of ``rows``."""
    return "".join(json.dumps(row) + "\n" for row in rows)


class Record:
    """The JSON lines of a folder.

    Args:
        folder: the output folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / RESULTS
        if os.path.exists(self.path):
            write_whole(self.path, json_lines(_lines(self.path)))  # a kill may have torn the last line

    def done(self) -> dict[str, dict[str, Any]]:
        """The line of every file that is in place, by its name."""
        return {line["file"]: line for line in _lines(self.path) if os.path.exists(self.folder / line["file"])}

    def add(self, line: dict[str, Any]) -> None:
        """Write down that ``line["file"]`` is in place."""
        add_line(self.path, json_lines([line]))

    def sort(self) -> list[dict[str, Any]]:
        """Order the lines by prompt and sample, and remove what processes that were killed left behind."""
        lines = sorted(self.done().values(), key=lambda line: (line["index"], line["sample"]))
        write_whole(self.path, json_lines(lines))
        for path in self._unfinished():
            path.unlink(missing_ok=True)
        return lines

    def _unfinished(self) -> Iterator[Path]:
        for path in self.folder.glob(f"**/.*{UNFINISHED}*"):
            process = path.name[1:].partition(UNFINISHED)[0]
            if process.isdigit() and not _is_alive(int(process)):
                yield path


def _lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of ``path``."""
    found = []
    if os.path.exists(path):
        for text in lines_of(read_text("generate.out", path)):
            try:
                line = json.loads(text)
            except (ValueError, RecursionError):
                continue
            if _is_whole(line):
                found.append(line)
    return found


def _is_whole(line: Any) -> bool:
    if not isinstance(line, dict) or not all(type(line.get(key)) in kinds for key, kinds in _SCHEMA.items()):
        return False
    file = PurePath(line["file"])  # below the folder: another name would be of a file that nobody made
    return bool(file.name) and not file.is_absolute() and ".." not in file.parts


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # of another user
        return True
    return process != os.getpid()
