"""Calls of what ``torch.compile`` made: what is around each of them."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from hicache_compile.errors import HiCacheError
from hicache_compile.internals import ShortenTraceback
from hicache_compile.runtime.replay.dispatch_modes import set_aside
from hicache_compile.runtime.replay.frames import ENTRIES
from hicache_compile.runtime.structure import flatten


class CompileError(HiCacheError, ShortenTraceback):
    """A ``HiCacheError`` that Dynamo hands to the caller as it is."""

    def __init__(self, message: str) -> None:
        ValueError.__init__(self, message)
        self.first_useful_frame = None


def refuse_gradients(arguments: Mapping[Any, Any]) -> None:
    """Raise ``HiCacheError`` where gradients are asked for of ``arguments``, by name or place, or of what is in one."""
    if not torch.is_grad_enabled():
        return
    for name, value in arguments.items():
        if any(isinstance(leaf, torch.Tensor) and leaf.requires_grad for leaf in flatten(value)[0]):
            raise HiCacheError(
                f"argument {name!r} requires grad: must not, a cached denoiser samples without gradients; call the "
                "module it wraps, compiled._orig_mod, to differentiate"
            )


def on_its_own(output: Any) -> Any:
    """An output without tensors in the memory of a CUDA graph, which the next guidance branch writes over."""
    leaves, build = flatten(output)
    return build([leaf.clone() if isinstance(leaf, torch.Tensor) and leaf.is_cuda else leaf for leaf in leaves])


def prepare_calls(context: Any) -> None:
    """From its next call on, what ``context`` compiled is called as ``hicache_compile`` calls it: with dispatch modes
    set aside, in which Dynamo would skip the frame for good, and with room for as many sizes.

    Nothing of a backend runs before Dynamo looked at the first call: under a mode, that one is skipped as ever.
    """

    def enter() -> Callable[[], None]:
        stack = ExitStack()
        stack.enter_context(ENTRIES())
        stack.enter_context(set_aside())
        return stack.close

    hooks = getattr(context, "enter_exit_hooks", None)
    if hooks is not None and not any(getattr(hook, "__module__", None) == __name__ for hook in hooks):
        hooks.append(enter)


def context_of_call() -> Any:
    """That of the ``torch.compile`` whose call is being compiled."""
    frame = _frame_of_call()
    return frame.f_locals.get("self") if frame is not None else None


def check_it_is_the_denoiser(traced: Any) -> None:
    """Raise ``HiCacheError`` where Dynamo gave up the module whose call is being compiled, in whose loop the graph
    breaks, and traces a block of it by itself, ``traced``, which would count as a step."""
    compiled = _module_of_call()
    blocks = [] if compiled is None else [module for module in compiled.modules() if type(module) is type(traced)]
    if traced is not compiled and len(blocks) > 1:
        raise HiCacheError(
            f"{type(compiled).__name__}: the graph breaks in its loop over {len(blocks)} {type(traced).__name__}, and "
            "torch.compile takes each by itself: use hicache_compile(model, policy), which takes what breaks for an "
            "operator, or code that torch.compile(fullgraph=True) captures"
        )


def is_a_part(traced: Any) -> bool:
    """Whether ``traced`` is a module within the one whose call is being compiled."""
    compiled = _module_of_call()
    return compiled is not None and isinstance(traced, nn.Module) and traced is not compiled


def _module_of_call() -> nn.Module | None:
    """What was given to the ``torch.compile`` whose call is being compiled, where that is a module."""
    frame = _frame_of_call()
    while frame is not None and not isinstance(frame.f_locals.get("self"), nn.Module):
        frame = frame.f_back
    if frame is None:
        return None
    called: nn.Module = frame.f_locals["self"]
    return getattr(called, "_orig_mod", called)


def _frame_of_call() -> types.FrameType | None:
    frame: types.FrameType | None = sys._getframe()
    while frame is not None and frame.f_code.co_name != "compile_wrapper":
        frame = frame.f_back
    return frame
