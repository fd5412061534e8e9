"""Files of a run that several ranks sample: each writes and reads its own, beside the path that all are given."""

from __future__ import annotations

import os
import re
from pathlib import Path

import torch

from hicache_compile.errors import HiCacheError
from hicache_compile.policy.files import file_path


def own_path(path: str | Path) -> Path:
    """``run.safetensors`` as ``run-rank1of2.safetensors`` for rank 1 of 2."""
    path = file_path("suspend.path", path)
    rank, size = _place()
    return path.with_name(f"{path.stem}-rank{rank}of{size}{path.suffix}")


def path_to_resume(path: str | Path) -> Path:
    """This rank's file beside ``path`` where there is one, else ``path``.

    Raises:
        HiCacheError: files of other ranks are there, of another number of ranks.
    """
    path = file_path("resume.path", path)
    rank, size = _place()
    if size > 1 and os.path.exists(own_path(path)):
        return own_path(path)
    if os.path.exists(path):
        return path
    form = re.compile(rf"{re.escape(path.stem)}-rank\d+of(\d+){re.escape(path.suffix)}")
    found = [match for other in path.parent.glob("*-rank*of*") if (match := form.fullmatch(other.name))]
    if not found:
        return path
    sizes = sorted({int(match[1]) for match in found})
    if size not in sizes:
        raise HiCacheError(
            f"resume.path = {str(path)!r}: {' or '.join(map(str, sizes))} ranks suspended it, this is rank {rank} of "
            f"{size}: must be continued by as many, because each has a part of the anchors"
        )
    return own_path(path)


def _place() -> tuple[int, int]:
    dist = torch.distributed
    ready = dist.is_available() and dist.is_initialized()
    return (dist.get_rank(), dist.get_world_size()) if ready else (0, 1)
