"""What watches a call from outside: torch dispatch modes and global module hooks (a FLOP counter has both).

Dynamo refuses to look at a frame while such a mode is active, runs it eagerly and never looks again; and a
global hook breaks the graph. So both step aside while Dynamo decides, and the modes come back while a
program runs: they see the ops that are really executed.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from hicache_compile.internals import (
    TorchDispatchMode,
    _disable_current_modes,
    _get_current_dispatch_mode_stack,
    _pop_mode,
    _push_mode,
    global_forward_hooks,
    global_forward_pre_hooks,
)

GLOBAL_HOOKS = (global_forward_pre_hooks, global_forward_hooks)

_thread = threading.local()  # ``aside``: the modes that were taken off further out


@contextmanager
def set_aside() -> Iterator[list[TorchDispatchMode]]:
    """Take the active modes off the stack and the hooks off the modules; yields the modes, outermost first, those that
    were taken off further out too."""
    outside = aside()
    # Of this thread: torch's own flag is set by a mode of any, whose hooks are none of ours to take off.
    if all(mode.is_infra_mode() for mode in _get_current_dispatch_mode_stack()):
        yield outside
        return
    hooks = [dict(registered) for registered in GLOBAL_HOOKS]
    for registered in GLOBAL_HOOKS:
        registered.clear()
    try:
        with _disable_current_modes() as modes:
            _thread.aside = outside + [mode for mode in modes if isinstance(mode, TorchDispatchMode)]
            yield _thread.aside
    finally:
        _thread.aside = outside
        for registered, hook in zip(GLOBAL_HOOKS, hooks, strict=True):
            registered.update(hook)


def aside() -> list[TorchDispatchMode]:
    """The modes that are set aside now in this thread."""
    found: list[TorchDispatchMode] = getattr(_thread, "aside", [])
    return found


@contextmanager
def brought_back(modes: list[TorchDispatchMode]) -> Iterator[None]:
    """Put ``modes`` on the stack again."""
    outside, _thread.aside = aside(), []
    for mode in modes:
        _push_mode(mode)
    try:
        yield
    finally:
        _thread.aside = outside
        for _ in modes:
            _pop_mode()
