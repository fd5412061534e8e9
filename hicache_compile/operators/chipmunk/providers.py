"""Whose kernels run: Triton's on a GPU, PyTorch's everywhere else; the original's where they are asked for."""

from __future__ import annotations

import os
from importlib.util import find_spec

import torch
from torch import Tensor

from hicache_compile.errors import HiCacheError


def takes_triton(provider: str, like: Tensor) -> bool:
    """Whether Triton's kernels compute on ``like``: on a GPU, in 16 or 32 bits, unless another provider is asked for.

    Raises:
        HiCacheError: they are asked for where they cannot run.
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
