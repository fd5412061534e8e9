"""A pipeline of one's own for each request: its call keeps state on itself and on its scheduler."""

from __future__ import annotations

import copy
import functools
import threading
from collections.abc import Callable
from typing import Any

import torch

from hicache_compile.frontend.denoiser import CompiledDenoiser
from hicache_compile.frontend.pipeline import is_pipeline
from hicache_compile.runtime.following.pipeline_calls import is_scheduler

# What pipelines call of text encoders, autoencoders and the like.
_CALLED = (
    "forward",
    "encode",
    "decode",
    "generate",
    "encode_image",
    "get_text_features",
    "get_image_features",
)


def denoisers_of(pipeline: Any) -> list[CompiledDenoiser]:
    """The compiled denoisers of ``pipeline``, and of those it holds."""
    found: dict[int, CompiledDenoiser] = {}
    for held in dict(vars(pipeline)).values():
        if isinstance(held, CompiledDenoiser):
            found[id(held)] = held
        elif is_pipeline(held):
            found |= {id(each): each for each in denoisers_of(held)}
    return list(found.values())


def copy_of(pipeline: Any, lock: threading.RLock) -> Any:
    """``pipeline`` with schedulers of its own. Denoisers are shared; other modules are called by one thread at a time,
    which holds ``lock``."""
    made = copy.copy(pipeline)
    made.set_progress_bar_config(disable=True)
    for name, held in dict(vars(pipeline)).items():  # others may call it meanwhile
        if is_scheduler(held):
            vars(made)[name] = copy.deepcopy(held)
        elif is_pipeline(held):
            vars(made)[name] = copy_of(held, lock)
        elif isinstance(held, torch.nn.Module) and not isinstance(held, CompiledDenoiser):
            vars(made)[name] = _one_at_a_time(held, lock)
    for denoiser in denoisers_of(made):
        denoiser._session.shared.watch(made)
    return made


def _one_at_a_time(module: torch.nn.Module, lock: threading.RLock) -> torch.nn.Module:
    made = copy.copy(module)  # the same weights
    for name in _CALLED:
        method = getattr(made, name, None)
        if callable(method):
            object.__setattr__(made, name, _locked(method, lock))
    return made


def _locked(method: Callable[..., Any], lock: threading.RLock) -> Callable[..., Any]:
    @functools.wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        with lock:
            return method(*args, **kwargs)

    return call
