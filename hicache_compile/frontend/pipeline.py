"""Pipelines: every denoiser of one compiled in place, its scheduler wired to say where a run begins and ends."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable
from functools import cache
from typing import Any

import torch

from hicache_compile.errors import HiCacheError
from hicache_compile.frontend.denoiser import CompiledDenoiser
from hicache_compile.frontend.scheduler_hooks import can_announce, connect
from hicache_compile.runtime.call_arguments import TIME_NAMES

# Called with a timestep like a denoiser, but what they return steers one.
_HELPERS = ("controlnet", "adapter", "ip_adapter")


def is_pipeline(value: Any) -> bool:
    """Whether ``value`` is a diffusers pipeline. Who has one has diffusers imported."""
    diffusers = sys.modules.get("diffusers")
    return diffusers is not None and isinstance(value, diffusers.DiffusionPipeline)


def compile_pipeline(pipeline: Any, wrap: Callable[[torch.nn.Module], CompiledDenoiser]) -> Any:
    """Replace each denoiser of ``pipeline`` by what ``wrap`` makes of it, and wire its scheduler.

    Raises:
        HiCacheError: the pipeline has no denoiser; it is left as it was.
    """
    found = denoisers(pipeline)
    if not found:
        names = ", ".join(pipeline.components)
        raise HiCacheError(
            f"hicache_compile.model = {type(pipeline).__name__}: none of its components ({names}) is called with a "
            f"timestep (an argument named {', '.join(TIME_NAMES)}): must have a denoiser"
        )
    compiled = {name: wrap(module) for name, module in found.items()}
    for name, module in compiled.items():
        setattr(pipeline, name, module)
    if getattr(type(pipeline), "_announces_runs", False):
        return pipeline
    pipeline.__class__ = _announcing(type(pipeline))  # type: ignore[arg-type]  # classes are hashable
    _wire(pipeline)
    return pipeline


def denoisers(pipeline: Any) -> dict[str, torch.nn.Module]:
    """The components that are modules called with a timestep, by name."""
    return {
        name: component
        for name, component in pipeline.components.items()
        if isinstance(component, torch.nn.Module) and not name.startswith(_HELPERS) and _takes_time(component)
    }


def _takes_time(module: torch.nn.Module) -> bool:
    if isinstance(module, CompiledDenoiser):
        return True
    return any(name in TIME_NAMES for name in inspect.signature(module.forward).parameters)


def _wire(pipeline: Any) -> list[CompiledDenoiser]:
    """Let the pipeline's schedulers announce to its denoisers, which are returned."""
    compiled = [module for module in pipeline.components.values() if isinstance(module, CompiledDenoiser)]
    for component in pipeline.components.values():
        if can_announce(component):
            connect(component, [module._session for module in compiled])
    return compiled


@cache
def _announcing(cls: Any) -> type:
    """A subclass of the pipeline class ``cls``, of the same name, that wires the scheduler it has at each call."""

    @functools.wraps(cls.__call__)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        compiled = _wire(self)  # the scheduler may have been replaced
        try:
            return cls.__call__(self, *args, **kwargs)
        finally:
            for denoiser in compiled:
                denoiser._session.end_run()

    body = {"__call__": call, "_announces_runs": True, "__doc__": cls.__doc__}
    return type(cls.__name__, (cls,), {**body, "__module__": cls.__module__, "__qualname__": cls.__qualname__})
