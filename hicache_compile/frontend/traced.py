"""A denoiser as Dynamo traces it: in one graph wherever that can be had."""

from __future__ import annotations

import logging
import threading
import types
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from traceback import FrameSummary
from typing import Any

from torch import fx, nn

from hicache_compile import internals
from hicache_compile.errors import HiCacheError
from hicache_compile.frontend.captured_again import CapturedAgain
from hicache_compile.frontend.opaque_modules import OpaqueModules
from hicache_compile.internals import BackendCompilerFailed, GuardOnDataDependentSymNode, UserError, optimize
from hicache_compile.internals import error_on_graph_break as breaks_are_errors
from hicache_compile.operators.opaque import OutputChangedError
from hicache_compile.operators.readings import ReadingChangedError
from hicache_compile.passes.graph.shapes import share_at_data
from hicache_compile.runtime.replay.frames import (
    BREAKS_SET,
    DATA_DEPENDENT_OPS,
    UNTRACED,
    drop_compiled,
    own_frame,
    without_advice,
)
from hicache_compile.runtime.replay.readings import Read, own_code, reading_frame
from hicache_compile.runtime.step import Step

log = logging.getLogger(__name__)
CHANGED = "data that forward reads changed (%s), so a step is computed: use torch.where, or branch inside a block"

MOST_READINGS = 8  # of which the graphs are kept: kinds of masks, with a picture and without
LARGEST_SHARE_AT_DATA = 0.5  # a refiner of tokens that a mask picks may stay as it is
MOST_WITHIN_RUNS = 3  # times that a run went on with others: it is not the prompt that is read


class SizesDependOnDataError(Exception):
    """Most of a graph computes on tensors whose sizes depend on data: no site can be forecast there."""


class _CapturedError(Exception):
    """The whole call is one graph."""


@dataclass(eq=False)
class Capture:
    """A frame of its own that Dynamo traces and compiles: one graph, for each of the readings one."""

    frame: types.FunctionType
    compiled: Callable[..., Any]


class Traced:
    """``model`` under Dynamo, which hands its graphs to the backend of ``context``.

    Ops whose output's shape depends on data are captured with the rest (a mask that picks tokens). Where Dynamo cannot
    trace the call as one graph, the smallest submodules that it cannot trace become one operator each. What the
    denoiser's own ``forward`` reads of data is constant in a graph: there is one for each of up to ``MOST_READINGS``
    readings. Beyond that, and where nothing of this helps, it has several graphs.
    """

    whole = False  # several graphs are refused

    def __init__(self, model: nn.Module, context: Any, dynamic: bool | None, opaque: OpaqueModules) -> None:
        self._model = model
        self._context = context
        self._dynamic = dynamic
        self._opaque = opaque
        self._lock = threading.Lock()  # of what follows
        self._attempt = 0  # how often that changed
        self._read = Read.NOTHING
        self._most_read = Read.SWITCHES if internals.READINGS else Read.NOTHING
        self._warm = False  # it was called once, eagerly
        self._breaks = self._breaks_at_data = self._warned = False
        self._within_runs = 0  # how often a step read what no step before it did
        self._captures, self.again = list[Capture](), CapturedAgain()
        self.code = opaque.code  # all that Dynamo compiled, the newest capture's first
        self._capture()

    def _capture(self) -> Capture:
        """One more frame, for data that read otherwise."""
        frame = reading_frame(self._model, self._read) if self._read else own_frame(self._model)
        self._captures.append(Capture(frame, self._context(frame)))
        self.code.insert(0, frame.__code__)
        return self._captures[-1]

    def __call__(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], step: Step, start_over: Callable[[], None]
    ) -> Any:
        """Call the model; ``start_over`` is called before each further attempt."""
        others = list[Capture]()  # of other readings
        while True:
            attempt = self._attempt
            capture = self._fitting(step, others)
            try:
                output = self._run(capture.compiled, args, kwargs, self._breaks, self._breaks_at_data)
            except ReadingChangedError as error:
                warn, self._warned = bool(step.index) and not self._warned, self._warned or bool(step.index)
                log.log(logging.WARNING if warn else logging.INFO, CHANGED, error)
                others.append(capture)
            except (OutputChangedError, *UNTRACED) as error:
                if self.again.stopped(error):
                    return self._model(*args, **kwargs)
                cause = getattr(error, "inner_exception", error)  # of what a backend raised
                if isinstance(cause, HiCacheError):
                    raise
                with self._lock:
                    if attempt == self._attempt:  # else another thread saw to it
                        if not self._loosen(cause, args, kwargs):
                            raise
                        self._trace_anew()
                        log.info("captured again: %s", (str(cause).splitlines() or [type(cause).__name__])[0])
            else:
                step.context.capture = capture
                return output
            start_over()

    def _fitting(self, step: Step, others: Sequence[Capture]) -> Capture:
        """The capture to try next: that of the context's last call, else any, else a new one."""
        last = step.context.capture
        with self._lock:
            left = [capture for capture in self._captures if capture not in others]
            if last in left:
                return last
            if left:
                return left[-1]
            self._within_runs += step.index > 0
            if len(self._captures) < MOST_READINGS and self._within_runs < MOST_WITHIN_RUNS:
                return self._capture()
            log.warning(
                "what the denoiser's own code reads of data differs between steps, or more than %d times between runs: "
                "from now on it has several graphs, which read it in each step, and less of it may be cached",
                MOST_READINGS,
            )
            self._read = self._most_read = Read.NOTHING
            self._trace_anew()
            return self._captures[-1]

    def _read_more(self) -> bool:
        """Take the next kind for constant; returns whether there was one."""
        if self._read == self._most_read:
            return False
        self._read = Read(self._read + 1)
        return True

    def _trace_anew(self) -> None:
        """Forget what was captured: something else breaks the graph now, or nothing does."""
        for capture in self._captures:
            drop_compiled(capture.frame.__code__)
            self.code.remove(capture.frame.__code__)
        self._captures = []
        self._attempt += 1
        self._capture()

    def check(self, captured: fx.GraphModule) -> None:
        """Refuse a graph that becomes one with sites once more of what is read is constant.

        Raises:
            SizesDependOnDataError: the graph is that one.
        """
        if self._read < self._most_read and (share := share_at_data(captured)) > LARGEST_SHARE_AT_DATA:
            raise SizesDependOnDataError(f"the sizes of {share:.0%} of the products and attentions depend on data")

    def _run(self, compiled: Callable[..., Any], args: Any, kwargs: Any, breaks: bool, breaks_at_data: bool) -> Any:
        """Call ``compiled``. The graph may break anywhere, or at ops that depend on data, or else an error says where
        it does."""
        with ExitStack() as stack:
            stack.enter_context(BREAKS_SET)
            stack.enter_context(self.again.entries())
            stack.enter_context(self._opaque.in_graph())
            stack.enter_context(breaks_are_errors(not breaks))
            if not breaks:
                stack.enter_context(without_advice())
            if not breaks_at_data:
                stack.enter_context(DATA_DEPENDENT_OPS())
            stack.enter_context(own_code(self._opaque.is_none_of_them))
            return compiled(*args, **kwargs)

    def _loosen(self, cause: Exception, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Let one more thing break: submodules become operators; else more of what the denoiser's own code reads is
        constant; else the graph breaks at ops that depend on data; else wherever Dynamo wants it to. Returns whether
        anything was left."""
        if isinstance(cause, OutputChangedError):
            return self._opaque.record_again(args, kwargs)
        # A size that depends on data is no fault of the code that cannot do with it, unless no more can be read.
        at_data = isinstance(cause, SizesDependOnDataError) or (
            isinstance(cause, GuardOnDataDependentSymNode | UserError) and self._read
        )
        if at_data and self._read_more():
            return True
        stack = getattr(cause, "real_stack", None) if self._read else self._first_break(args, kwargs)
        if stack and self._opaque.add([stack], args, kwargs):
            return True
        if stack is not None and self._read_more():
            return True
        if not self._warm:
            self._warm, self._read = True, Read.NOTHING
            self._opaque.warm_up(args, kwargs)
            return True
        self._read = self._most_read = Read.NOTHING
        before = self._breaks, self._breaks_at_data
        if stack is not None and not self._breaks and not self.whole:
            self._opaque.add(self._all_breaks(args, kwargs), args, kwargs)
            self._breaks = True
        self._breaks_at_data = True
        return before != (self._breaks, self._breaks_at_data)

    def _first_break(self, args: Any, kwargs: Any) -> Sequence[FrameSummary] | None:
        """The code at which the graph breaks first, at ops that depend on data too: that is where a size comes from
        which nothing can be said about later. ``None``: nowhere."""

        def stop(*_: Any) -> Any:
            raise _CapturedError

        try:
            self._look(stop, args, kwargs, breaks=False)
        except BackendCompilerFailed as error:
            if not isinstance(error.inner_exception, _CapturedError):
                raise
        except UNTRACED as error:
            return getattr(error, "real_stack", None) or ()
        return None

    def _all_breaks(self, args: Any, kwargs: Any) -> list[Sequence[FrameSummary]]:
        """The code at every break of a call, which is made."""
        if not internals.BREAKS:
            return []
        before = len(internals.graph_break_reasons)
        try:
            with self._opaque.called_by_us(args, kwargs):
                self._look("eager", args, kwargs, breaks=True)
        except Exception as error:  # what it is the call itself will say
            log.info("not all breaks are known: %s", error)
        return [reason.user_stack for reason in internals.graph_break_reasons[before:]]

    def _look(self, backend: Any, args: Any, kwargs: Any, breaks: bool) -> None:
        """A call of which nothing is kept."""
        frame = own_frame(self._model)
        try:
            run = optimize(backend, dynamic=self._dynamic)(frame)
            self._run(run, args, kwargs, breaks, breaks_at_data=True)
        finally:
            drop_compiled(frame.__code__)
