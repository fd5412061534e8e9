"""Torch dispatch modes around a call (a FLOP counter, a logger) see the ops our programs run.

Dynamo refuses to look at a frame while such a mode is active, runs it eagerly, and never looks again. So
the modes step aside while Dynamo decides and come back while a program runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch.utils._python_dispatch import (
    TorchDispatchMode,
    _disable_current_modes,
    _pop_mode,
    _push_mode,
    is_in_torch_dispatch_mode,
)


@contextmanager
def set_aside() -> Iterator[list[TorchDispatchMode]]:
    """Take the active modes off the stack; yields them, outermost first."""
    if not is_in_torch_dispatch_mode(include_infra_modes=False):
        yield []
        return
    with _disable_current_modes() as modes:
        yield [mode for mode in modes if isinstance(mode, TorchDispatchMode)]


@contextmanager
def brought_back(modes: list[TorchDispatchMode]) -> Iterator[None]:
    """Put ``modes`` on the stack again."""
    for mode in modes:
        _push_mode(mode)
    try:
        yield
    finally:
        for _ in modes:
            _pop_mode()
