"""Lowering: a straight-line graph to something callable. Backends do not import one another."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from torch import fx

from hicache_compile.errors import one_of

# By name: what lowers a program; "cond" ones get one program with both branches in `torch.cond`.
_LOWERINGS = {
    "eager": "eager",
    "aot_eager": "aot_eager",
    "inductor": "inductor",
    "cond": "inductor",
    "cond_aot_eager": "aot_eager",
    "cond_eager": "eager",
}
BACKENDS = tuple(_LOWERINGS)
Lowered = Callable[..., Any]


def lower(program: fx.GraphModule, backend: str, mode: str | None = None) -> Lowered:
    """Compile ``program``; the result takes its placeholders in order and returns its outputs.

    Args:
        program: a straight-line graph whose placeholders carry fake example values.
        backend: one of ``BACKENDS``.
        mode: a mode of ``torch.compile`` (``"reduce-overhead"``, ``"max-autotune"``, ...); inductor only.
    """
    one_of("hicache_compile", "backend", backend, BACKENDS)
    module = importlib.import_module(f"hicache_compile.backends.{_LOWERINGS[backend]}")
    lowered: Lowered = module.lower(program, mode)
    return lowered


def keeps_both_branches(backend: str) -> bool:
    """Whether ``backend`` compiles both branches into one program."""
    return backend.startswith("cond")
