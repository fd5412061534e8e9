"""A pipeline of one's own for each request: its call keeps state on itself and on its scheduler."""

from __future__ import annotations

import copy
import functools
import inspect
import re
import threading
import types
from collections.abc import Callable
from typing import Any

import torch

from hicache_compile.frontend.denoiser import CompiledDenoiser
from hicache_compile.frontend.pipeline import denoisers_of, is_pipeline
from hicache_compile.runtime.following.pipeline_calls import is_scheduler

_ENCODES = re.compile("_?encode_")


class OneAtATime:
    """Components whose methods one thread at a time calls: of text encoders and autoencoders, because of their memory;
    of tokenizers, because they keep the padding and truncation of the call under way on themselves."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._kinds: dict[type, type] = {}

    def of(self, component: Any) -> Any:
        """``component``, with the same state."""
        kind = type(component)
        with self._lock:
            if kind not in self._kinds:
                self._kinds[kind] = self._kind(kind)
        made: Any = object.__new__(self._kinds[kind])
        object.__setattr__(made, "__dict__", vars(component))
        return made

    def _kind(self, kind: type) -> type:
        found = {name: inspect.getattr_static(kind, name) for name in dir(kind)}
        methods = {
            name: self.one_at_a_time(method)
            for name, method in found.items()
            if inspect.isfunction(method) and not inspect.isgeneratorfunction(method)
            if name == "__call__" or not name.startswith("_")
        }
        # Libraries find a class by its name too: transformers what each records of its layers.
        names = {"__module__": kind.__module__, "__qualname__": kind.__qualname__}
        return types.new_class(kind.__name__, (kind,), {}, lambda space: space.update(methods, **names))

    def one_at_a_time(self, method: Callable[..., Any]) -> Callable[..., Any]:
        """``method``, while none of the others is called."""

        @functools.wraps(method)
        def call(*args: Any, **kwargs: Any) -> Any:
            with self._lock:
                return method(*args, **kwargs)

        return call


def copy_of(pipeline: Any, components: OneAtATime) -> Any:
    """``pipeline`` with schedulers and guiders of its own. Denoisers are shared; other components are called by one
    thread at a time, and so are the methods that encode, which scale adapters of a text encoder meanwhile."""
    made = copy.copy(pipeline)
    made.set_progress_bar_config(disable=True)
    for name in filter(_ENCODES.match, dir(type(pipeline))):
        vars(made)[name] = components.one_at_a_time(getattr(made, name))
    for name, held in dict(vars(pipeline)).items():  # others may call it meanwhile
        if is_scheduler(held) or _is_configured(held):
            vars(made)[name] = copy.deepcopy(held)
        elif is_pipeline(held):
            vars(made)[name] = copy_of(held, components)
        elif _is_component(held):
            vars(made)[name] = components.of(held)
    for denoiser in denoisers_of(made):
        denoiser._session.shared.watch(made)
    return made


def _is_configured(held: Any) -> bool:
    """Whether it is an object of diffusers that is made from a config and no model: it may keep state of a call."""
    return hasattr(held, "register_to_config") and not isinstance(held, torch.nn.Module) and not is_pipeline(held)


def _is_component(held: Any) -> bool:
    if isinstance(held, CompiledDenoiser):
        return False
    return isinstance(held, torch.nn.Module) or (callable(held) and hasattr(held, "save_pretrained"))
