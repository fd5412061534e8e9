"""Pipelines whose call changes the denoiser for its time (perturbed attention, skipped layers): a request at a time."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from hicache_compile.frontend.denoiser import CompiledDenoiser

_CHANGES = re.compile("set_attn_processor|register_.*hook|_apply_.*hook")

Hooks = set[tuple[torch.nn.Module, str]]


def changes_denoiser(pipeline: Any) -> bool:
    """Whether the code of the pipeline's call, or of a guider it holds, sets attention processors or hooks."""
    called = [
        type(pipeline).__call__,
        *(getattr(type(held), "prepare_models", None) for held in vars(pipeline).values()),
    ]
    code = [getattr(inspect.unwrap(function), "__code__", None) for function in called if function is not None]
    return any(_CHANGES.search(name) for each in code if each is not None for name in each.co_names)


@contextmanager
def put_back(denoisers: Sequence[CompiledDenoiser]) -> Iterator[None]:
    """Afterwards ``denoisers`` have the attention processors and hooks they had, also where the call was stopped."""
    before = [(denoiser, getattr(denoiser, "attn_processors", None), _hooks(denoiser)) for denoiser in denoisers]
    try:
        yield
    finally:
        for denoiser, processors, hooks in before:
            if processors is not None and denoiser.attn_processors != processors:
                denoiser.set_attn_processor(processors)
            for module, name in _hooks(denoiser) - hooks:
                registry: Any = module._diffusers_hook
                registry.remove_hook(name, recurse=False)


def _hooks(denoiser: CompiledDenoiser) -> Hooks:
    """The hooks of diffusers, by module and name."""
    hooked = ((module, getattr(module, "_diffusers_hook", None)) for module in denoiser.modules())
    return {(module, name) for module, registry in hooked if registry is not None for name in registry.hooks}
