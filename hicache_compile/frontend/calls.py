"""Calls of what ``torch.compile`` made: what is around each of them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from hicache_compile.runtime.replay.dispatch_modes import set_aside
from hicache_compile.runtime.replay.frames import ENTRIES


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
    frame = sys._getframe()
    while frame is not None and frame.f_code.co_name != "compile_wrapper":
        frame = frame.f_back  # type: ignore[assignment]  # none at the end
    return frame.f_locals.get("self") if frame is not None else None
