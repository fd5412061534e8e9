"""The one call: ``hicache_compile(model, policy)``."""

from __future__ import annotations

from typing import Any

import torch

from hicache_compile.denoiser import CompiledDenoiser
from hicache_compile.errors import HiCacheError
from hicache_compile.serialize import as_policy


def hicache_compile(
    model: torch.nn.Module,
    policy: Any,
    *,
    backend: str = "inductor",
    sparsity: None = None,
    dynamic: bool | None = None,
    mode: str | None = None,
) -> CompiledDenoiser:
    """Compile ``model`` to sample with the cache ``policy`` describes.

    Nothing is compiled yet: Dynamo captures the denoiser at its first call, like ``torch.compile``.

    Args:
        model: the denoiser, any module Dynamo can capture. It is not changed and shares its weights.
        policy: a ``Policy`` (or a preset, which returns one), a preset's name, a dict, or a path to JSON.
        backend: what a program is lowered to: ``"inductor"``, ``"aot_eager"`` or ``"eager"``.
        sparsity: ``None``: attention and MLPs stay dense.
        dynamic: as in ``torch.compile``.
        mode: as in ``torch.compile``, for Inductor: ``"reduce-overhead"``, ``"max-autotune"``, ...

    Returns:
        A module used like ``model``, with ``trajectory``, ``reset``, ``disabled``, ``report``, ``graphs``
        and ``policy``.

    Raises:
        HiCacheError: an argument is not what is allowed; the message says what is.
    """
    if not isinstance(model, torch.nn.Module):
        raise HiCacheError(f"hicache_compile.model = {type(model).__name__}: must be a torch.nn.Module")
    if isinstance(model, CompiledDenoiser):
        raise HiCacheError("hicache_compile.model is compiled already: set its policy instead")
    if sparsity is not None:
        raise HiCacheError(f"hicache_compile.sparsity = {sparsity!r}: must be None")
    if dynamic not in (None, True, False):
        raise HiCacheError(f"hicache_compile.dynamic = {dynamic!r}: must be None, True or False")
    return CompiledDenoiser(model, as_policy(policy), backend, dynamic, mode)
