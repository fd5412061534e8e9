"""A denoiser as Dynamo traces it: in one graph wherever that can be had."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from traceback import FrameSummary
from typing import Any

import torch
from torch import nn
from torch._dynamo.eval_frame import remove_from_cache
from torch._dynamo.exc import BackendCompilerFailed, TorchDynamoException
from torch._dynamo.utils import graph_break_reasons
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

from hicache_compile.errors import HiCacheError
from hicache_compile.frontend.opaque_modules import BREAKS_SET, OpaqueModules
from hicache_compile.operators.opaque import OutputChangedError
from hicache_compile.runtime.replay.capture import DATA_DEPENDENT_OPS, ENTRIES, own_frame

log = logging.getLogger(__name__)

_ADVICE = logging.getLogger("torch._dynamo.variables.tensor")
UNTRACED = (TorchDynamoException, GuardOnDataDependentSymNode)


class _CapturedError(Exception):
    """The whole call is one graph."""


class Traced:
    """``model`` under Dynamo, which hands its graphs to the backend of ``context``.

    Ops whose output's shape depends on data are captured with the rest (a mask that picks tokens). Where Dynamo cannot
    trace the call as one graph, the smallest submodules that it cannot trace become one operator each. Only a denoiser
    whose own ``forward`` cannot be traced has several graphs.
    """

    def __init__(self, model: nn.Module, context: Any, dynamic: bool | None, opaque: OpaqueModules) -> None:
        self._frame = own_frame(model)
        self._dynamic = dynamic
        self._opaque = opaque
        self._compiled = context(self._frame)
        self._lock = threading.Lock()  # of what follows
        self._attempt = 0  # how often that changed
        self._breaks = False
        self._breaks_at_data = False
        self.code = opaque.code  # all that Dynamo compiled, this frame first
        self.code.append(self._frame.__code__)

    def __call__(self, args: tuple[Any, ...], kwargs: dict[str, Any], start_over: Callable[[], None]) -> Any:
        """Call the model; ``start_over`` is called before each further attempt."""
        while True:
            attempt = self._attempt
            try:
                return self._run(self._compiled, args, kwargs, self._breaks, self._breaks_at_data)
            except (OutputChangedError, *UNTRACED) as error:
                cause = getattr(error, "inner_exception", error)  # of what a backend raised
                if isinstance(cause, HiCacheError):
                    raise
                with self._lock:
                    if attempt == self._attempt:  # else another thread saw to it
                        if not self._loosen(cause, args, kwargs):
                            raise
                        self._attempt += 1
                        remove_from_cache(self._frame.__code__)
                        log.info("captured again: %s", str(cause).splitlines()[0])
            start_over()

    def _run(self, compiled: Callable[..., Any], args: Any, kwargs: Any, breaks: bool, breaks_at_data: bool) -> Any:
        """Call ``compiled``. The graph may break anywhere, or at ops that depend on data, or else an error says where
        it does."""
        with ExitStack() as stack:
            stack.enter_context(BREAKS_SET)
            stack.enter_context(ENTRIES())
            stack.enter_context(self._opaque.in_graph())
            stack.enter_context(torch._dynamo.error_on_graph_break(not breaks))
            if not breaks:
                stack.enter_context(_without_advice())
            if not breaks_at_data:
                stack.enter_context(DATA_DEPENDENT_OPS())
            return compiled(*args, **kwargs)

    def _loosen(self, cause: Exception, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Let one more thing break: submodules become operators; else the graph breaks at ops that depend on data; else
        wherever Dynamo wants it to. Returns whether anything was left."""
        if isinstance(cause, OutputChangedError):
            return self._opaque.record_again(args, kwargs)
        stack = self._first_break(args, kwargs)
        if stack and self._opaque.add([stack], args, kwargs):
            return True
        before = self._breaks, self._breaks_at_data
        if stack is not None and not self._breaks:
            self._opaque.add(self._all_breaks(args, kwargs), args, kwargs)
            self._breaks = True
        self._breaks_at_data = True
        return before != (self._breaks, self._breaks_at_data)

    def _first_break(self, args: Any, kwargs: Any) -> Sequence[FrameSummary] | None:
        """The code at which the graph breaks first, at ops that depend on data too: that is where a size comes from
        which nothing can be said about later. ``None``: nowhere."""

        def stop(*_: Any) -> Any:
            raise _CapturedError

        trace = torch._dynamo.optimize(stop, dynamic=self._dynamic)(self._frame)
        try:
            self._run(trace, args, kwargs, breaks=False, breaks_at_data=True)
        except BackendCompilerFailed as error:
            if not isinstance(error.inner_exception, _CapturedError):
                raise
        except UNTRACED as error:
            return getattr(error, "real_stack", None) or ()
        return None

    def _all_breaks(self, args: Any, kwargs: Any) -> list[Sequence[FrameSummary]]:
        """The code at every break of a call, which is made."""
        before = len(graph_break_reasons)
        run = torch._dynamo.optimize("eager", dynamic=self._dynamic)(self._frame)
        try:
            self._run(run, args, kwargs, breaks=True, breaks_at_data=True)
        except Exception as error:  # what it is the call itself will say
            log.info("not all breaks are known: %s", error)
        return [reason.user_stack for reason in graph_break_reasons[before:]]


@contextmanager
def _without_advice() -> Iterator[None]:
    """Inside, Dynamo does not tell the user to capture the numbers that are read on the host."""
    before, _ADVICE.disabled = _ADVICE.disabled, True
    try:
        yield
    finally:
        _ADVICE.disabled = before
