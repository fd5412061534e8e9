"""Whose kernels run: Triton's on a GPU, what PyTorch has everywhere else."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from types import ModuleType

from torch import Tensor

from hicache_compile.errors import HiCacheError, one_of

PROVIDERS = ("auto", "portable", "triton")
HEAD_DIMS = (64, 128)


def check_provider(provider: str) -> None:
    """Raise unless ``provider`` is one and is installed."""
    one_of("Chipmunk", "provider", provider, PROVIDERS)
    if provider == "triton" and find_spec("triton") is None:
        raise HiCacheError("Chipmunk.provider = 'triton': must be installed; `auto` takes it where it is")


def kernels(provider: str, query: Tensor) -> ModuleType | None:
    """The Triton kernels, where ``provider`` says so and they fit ``query`` ``[B, H, N, D]``; else ``None``."""
    if provider == "portable":
        return None
    if provider == "auto" and not (query.is_cuda and query.dtype.itemsize == 2 and query.shape[-1] in HEAD_DIMS):
        return None
    return _triton()


@cache
def _triton() -> ModuleType | None:
    if find_spec("triton") is None:
        return None
    from hicache_compile.chipmunk import attention_triton

    return attention_triton
