"""What a caller may ask for besides the policy, checked in one place for every way in."""

from __future__ import annotations

from typing import Any

from torch._inductor import list_mode_options

from hicache_compile.backends import BACKENDS
from hicache_compile.errors import HiCacheError, one_of
from hicache_compile.memory import parse_bytes
from hicache_compile.serialize import as_policy
from hicache_compile.trajectory import Settings


def check_options(
    policy: Any,
    backend: str = "inductor",
    sparsity: None = None,
    mode: str | None = None,
    memory_budget: str | int | None = None,
    offload: bool = False,
) -> Settings:
    """The settings they come to.

    Raises:
        HiCacheError: one of them is not what is allowed; the message says what is.
    """
    wanted = as_policy(policy)
    one_of("hicache_compile", "backend", backend, BACKENDS)
    if sparsity is not None:
        raise HiCacheError(f"hicache_compile.sparsity = {sparsity!r}: must be None")
    if mode is not None and backend != "inductor":
        raise HiCacheError(f"hicache_compile.mode = {mode!r}: must be None with backend {backend!r}")
    if mode is not None:
        one_of("hicache_compile", "mode", mode, list_mode_options())
    if not isinstance(offload, bool):
        raise HiCacheError(f"hicache_compile.offload = {offload!r}: must be true or false")
    return Settings(wanted, parse_bytes(memory_budget), offload)
