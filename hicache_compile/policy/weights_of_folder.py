"""What tells two checkpoints of one name apart."""

from __future__ import annotations

import hashlib
from pathlib import Path

_WEIGHTS = {".safetensors", ".bin", ".pt"}
_PIECES, _PIECE = 16, 1 << 16  # pieces of a file that are read, and their bytes


def weights_of_folder(folder: Path) -> str:
    """16 hex digits of the weights in the folders below ``folder``, a saved pipeline: of the names and sizes of their
    files, and of a few pieces of each, which training changes all over. Where the folder is does not count.
    """
    found = hashlib.sha256()
    for path in sorted(path for path in folder.glob("*/*") if path.suffix in _WEIGHTS and path.is_file()):
        size = path.stat().st_size
        found.update(f"{path.relative_to(folder).as_posix()} {size}\n".encode())
        with path.open("rb") as file:
            for piece in range(_PIECES):
                file.seek(size * piece // _PIECES)
                found.update(file.read(_PIECE))
    return found.hexdigest()[:16]
