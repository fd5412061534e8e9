"""Archives that torch's zip writer fills: whole or not at all, on a disk that is full too."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hicache_compile.policy.files import write_whole


class _Kept(io.BufferedWriter):
    """A file whose errors wait: torch's writer ends the process where one is raised while it closes its archive."""

    error: OSError | None = None

    def write(self, data: Any, /) -> int:
        if self.error is None:
            try:
                return super().write(data)
            except OSError as error:
                self.error = error
        return memoryview(data).nbytes


def write_archive(path: Path, save: Callable[[Any], object]) -> None:
    """Have ``save`` write an archive to a file object, which becomes ``path`` once it is on disk.

    Raises:
        HiCacheError: it cannot be written; ``path`` is what it was.
    """

    def fill(unfinished: Path) -> None:
        with io.FileIO(unfinished, "wb") as file:
            kept = _Kept(file)
            save(kept)
            if kept.error is not None:
                raise kept.error
            kept.flush()

    write_whole(path, fill)
