"""Choice of kernels: Triton on a GPU, PyTorch elsewhere; the original's if requested."""

from __future__ import annotations

import os
from importlib.util import find_spec

import torch
from torch import Tensor

from hicache_compile.errors import HiCacheError


def takes_triton(provider: str, like: Tensor) -> bool:
    """Whether the Triton kernels are used for ``like``: on a GPU, in 16 or 32 bits, unless another provider is
    requested.

    Raises:
        HiCacheError: they are requested but cannot run on ``like``.
    """
    fits = like.is_cuda and like.dtype in (torch.float16, torch.bfloat16, torch.float32)
    if provider in ("auto", "chipmunk"):
        return fits and find_spec("triton") is not None
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if provider == "triton" and not (fits or interpreted):
        raise HiCacheError(
            f"Chipmunk.provider = 'triton': must be for float16, bfloat16 or float32 on a GPU, this is "
            f"{str(like.dtype).removeprefix('torch.')} on {like.device.type}; 'auto' takes what there is"
        )
    return provider == "triton"
