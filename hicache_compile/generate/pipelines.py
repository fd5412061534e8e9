"""Pipelines from a folder that ``save_pretrained`` wrote."""

from __future__ import annotations

from os.path import isfile
from pathlib import Path
from typing import Any

import torch

from hicache_compile.errors import HiCacheError

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
