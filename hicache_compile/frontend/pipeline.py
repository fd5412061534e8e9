"""Pipelines: every denoiser of one compiled in place, those of the pipelines it holds too; nothing else is changed."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch

from hicache_compile.errors import HiCacheError
from hicache_compile.frontend.denoiser import CompiledDenoiser
from hicache_compile.internals import OptimizedModule
from hicache_compile.policy.packs import Signature
from hicache_compile.runtime.call_arguments import TIME_NAMES, time_names
from hicache_compile.runtime.following.pipeline_calls import schedulers

# Called with a timestep like a denoiser, but what they return steers one.
_HELPERS = ("controlnet", "adapter", "ip_adapter")
# Denoisers by the name of the component, where none takes a timestep: those that fill in masked tokens.
_USUAL = ("transformer", "unet")


def is_pipeline(value: Any) -> bool:
    """Whether ``value`` is a pipeline of diffusers, modular ones too. Who has one has diffusers imported."""
    diffusers = sys.modules.get("diffusers")
    return diffusers is not None and isinstance(value, diffusers.DiffusionPipeline | diffusers.ModularPipeline)


def compile_pipeline(pipeline: Any, wrap: Callable[[torch.nn.Module], CompiledDenoiser]) -> Any:
    """Replace each denoiser of ``pipeline`` by what ``wrap`` makes of it, and follow the pipeline's runs.

    Raises:
        HiCacheError: the pipeline has no denoiser; it is left as it was.
    """
    parts = list(_with_inner(pipeline))
    found = {id(module): module for part in parts for module in denoisers(part).values()}
    if not found:
        raise _without_denoiser(pipeline)
    compiled = {id(module): wrap(module) for module in found.values()}
    for denoiser in compiled.values():
        if denoiser.contract is not None:
            denoiser.contract.pack.signature.check(Signature.of(scheduler=next(schedulers(pipeline), None)))
    for part in parts:
        for name, module in denoisers(part).items():
            setattr(part, name, compiled[id(module)])
    for module in compiled.values():
        for part in parts:
            module._session.shared.watch(part)
    return pipeline


def denoisers_of(pipeline: Any) -> list[CompiledDenoiser]:
    """The compiled denoisers of ``pipeline``, and of those it holds."""
    found: dict[int, CompiledDenoiser] = {}
    for held in dict(vars(pipeline)).values():
        if isinstance(held, CompiledDenoiser):
            found[id(held)] = held
        elif is_pipeline(held):
            found |= {id(each): each for each in denoisers_of(held)}
    return list(found.values())


def _with_inner(pipeline: Any) -> Iterator[Any]:
    """``pipeline`` and the pipelines it holds, which may hold others."""
    yield pipeline
    for held in vars(pipeline).values():
        if is_pipeline(held):
            yield from _with_inner(held)


def _components(pipeline: Any) -> dict[str, Any]:
    """Modules by name: registered components, and those that are optional arguments with a default."""
    held = {name: value for name, value in vars(pipeline).items() if isinstance(value, torch.nn.Module)}
    return {**pipeline.components, **held}


def denoisers(pipeline: Any) -> dict[str, torch.nn.Module]:
    """The components that are modules called with a timestep, by name; or that are called like denoisers."""
    modules = {
        name: component
        for name, component in _components(pipeline).items()
        if isinstance(component, torch.nn.Module) and not name.startswith(_HELPERS)
    }
    timed = {name: module for name, module in modules.items() if _takes_time(module)}
    return timed or {name: modules[name] for name in _USUAL if name in modules and _is_plain(modules[name])}


def _takes_time(module: torch.nn.Module) -> bool:
    if isinstance(module, CompiledDenoiser):
        return True
    return bool(time_names(tuple(inspect.signature(module.forward).parameters)))


def _is_plain(module: torch.nn.Module) -> bool:
    """Whether it is compiled by nobody yet."""
    return not isinstance(module, OptimizedModule)


def _without_denoiser(pipeline: Any) -> HiCacheError:
    """Why none was found: it is hidden by ``torch.compile``, or there is none."""
    owner = f"hicache_compile.model = {type(pipeline).__name__}"
    for name, component in _components(pipeline).items():
        if isinstance(component, OptimizedModule):
            return HiCacheError(
                f"{owner}: its {name} is compiled by torch.compile already: must be given as it was before "
                f"(pipe.{name} = pipe.{name}._orig_mod); hicache_compile compiles it itself"
            )
    names = ", ".join(_components(pipeline))
    return HiCacheError(
        f"{owner}: none of its components ({names}) is called with a timestep (an argument named "
        f"{', '.join(TIME_NAMES)}): must have a denoiser"
    )
