"""Lowering: a straight-line graph to something callable. Backends do not import one another."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import fx

from hicache_compile.errors import one_of


@dataclass(frozen=True, slots=True)
class Backend:
    """A way to lower programs: the module that does it, whether one program holds every branch in ``torch.cond``, and
    whether it takes a mode of ``torch.compile``."""

    module: str
    cond: bool = False
    takes_mode: bool = False


_BACKENDS = {
    "eager": Backend("eager"),
    "aot_eager": Backend("aot_eager"),
    "inductor": Backend("inductor", takes_mode=True),
    "cond": Backend("inductor", cond=True, takes_mode=True),
    "cond_aot_eager": Backend("aot_eager", cond=True),
    "cond_eager": Backend("eager", cond=True),
}
BACKENDS = tuple(_BACKENDS)
Lowered = Callable[..., Any]


def lower(program: fx.GraphModule, backend: str, mode: str | None = None) -> Lowered:
    """Compile ``program``; the result takes its placeholders in order and returns its outputs.

    Args:
        program: a straight-line graph whose placeholders carry fake example values.
        backend: one of ``BACKENDS``.
        mode: a mode of ``torch.compile`` (``"reduce-overhead"``, ``"max-autotune"``, ...); inductor only.
    """
    one_of("hicache_compile", "backend", backend, BACKENDS)
    module = importlib.import_module(f"hicache_compile.backends.{_BACKENDS[backend].module}")
    lowered: Lowered = module.lower(program, mode)
    return lowered


def keeps_both_branches(backend: str) -> bool:
    """Whether ``backend`` compiles both branches into one program."""
    return _BACKENDS[backend].cond


def takes_mode(backend: str) -> bool:
    """Whether ``backend`` takes a mode of ``torch.compile``."""
    return _BACKENDS[backend].takes_mode


def backend_module(backend: str) -> str:
    """The backend of ``torch.compile`` that ``backend`` lowers to."""
    return _BACKENDS[backend].module
