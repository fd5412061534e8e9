"""Pipelines from a folder that ``save_pretrained`` wrote."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from os.path import isfile
from pathlib import Path
from typing import Any

import torch

from hicache_compile.errors import HiCacheError

FLOW = 1.001  # the most noise of flow matching, and rounding
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def usual_dtype(device: str) -> str:
    """The dtype of a pipeline on ``device`` for which none is given."""
    return "float32" if device == "cpu" else "bfloat16"


def folder_of_pipeline(folder: Path, owner: str, other: str = "") -> Path:
    """``folder``, once it holds a pipeline.

    Args:
        owner: the command whose option it is, for the message.
        other: what the option may be besides, for the message.

    Raises:
        HiCacheError: it holds none.
    """
    if not isfile(folder / "model_index.json"):
        allowed = f"{other} or a folder" if other else "a folder"
        raise HiCacheError(
            f"{owner}.model = {str(folder)!r}: must be {allowed} that save_pretrained wrote, with a model_index.json "
            "in it"
        )
    return folder


def load_pipeline(folder: Path, dtype: str, device: str) -> Any:
    """The diffusers pipeline in ``folder``, in one of ``DTYPES``.

    Raises:
        HiCacheError: what is in the folder is none, or not whole.
    """
    from diffusers import DiffusionPipeline

    try:
        pipeline = DiffusionPipeline.from_pretrained(folder, dtype=DTYPES[dtype])
    except (MemoryError, RuntimeError):  # another process may have room
        raise
    except Exception as error:
        raise HiCacheError(
            f"model {str(folder)!r}: must be a whole pipeline that save_pretrained wrote ({type(error).__name__}: "
            f"{error})"
        ) from error
    pipeline.to(device)
    return pipeline


def sampled_over(pipeline: Any, sigmas: Sequence[float] | None) -> dict[str, Any]:
    """The arguments by which ``pipeline`` samples over the noise levels ``sigmas``; none where they are ``None``.

    Raises:
        HiCacheError: its call takes no ``sigmas``.
    """
    if sigmas is None:
        return {}
    if "sigmas" not in inspect.signature(pipeline.__call__).parameters:
        raise HiCacheError(
            f"policy.sigmas: {type(pipeline).__name__} takes no sigmas: must be a policy that was planned without them"
        )
    known = getattr(pipeline.scheduler, "sigmas", None)
    if known is None or float(max(known)) > FLOW:
        raise HiCacheError(
            f"policy.sigmas: the noise levels of {type(pipeline.scheduler).__name__} are not from 0 to 1: must be a "
            "scheduler of flow matching, or a policy that was planned without them"
        )
    return {"sigmas": list(sigmas)}
