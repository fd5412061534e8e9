"""Pictures that matplotlib draws, in files: checked before long work, written whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hicache_compile.errors import HiCacheError
from hicache_compile.policy.files import check_writable, write_whole


def check_picture(name: str, path: Path) -> None:
    """Raise ``HiCacheError`` unless a picture can be written to ``path``. ``name``: of the option."""
    if path.suffix not in (".png", ".pdf", ".svg"):
        raise HiCacheError(f"{name} = {str(path)!r}: must end in .png, .pdf or .svg")
    check_writable(path)


def save_figure(figure: Any, path: Path, **options: Any) -> None:
    """Write ``figure`` of matplotlib to ``path``."""
    write_whole(path, lambda unfinished: figure.savefig(unfinished, **options))
