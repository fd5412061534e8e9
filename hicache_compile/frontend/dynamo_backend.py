"""``torch.compile(model, backend="hicache", options={"policy": ...})``, and ``inspect``, which gives its handle.

Installed as an entry point of the group ``torch_dynamo_backends``, so a program need not import this package. There is
no wrapper around the denoiser here: Dynamo's compiled code calls the graphs, and the graph that was captured first in
a call is where a step begins.
"""

from __future__ import annotations

import functools
import inspect as introspection
import logging
import types
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import fx

from hicache_compile import internals
from hicache_compile.errors import HiCacheError
from hicache_compile.frontend.calls import (
    CompileError,
    check_it_is_the_denoiser,
    context_of_call,
    is_a_part,
    prepare_calls,
    refuse_gradients,
)
from hicache_compile.frontend.graph_inputs import GraphCallInputs, GraphInputs
from hicache_compile.frontend.handle import Handle
from hicache_compile.internals import BACKEND, InstructionTranslator, lookup_backend
from hicache_compile.passes import Choice
from hicache_compile.passes.analysis.batch import NotByRowError
from hicache_compile.passes.graph.arguments import Signature
from hicache_compile.passes.transforms.capture import capture
from hicache_compile.passes.work import Rewrite
from hicache_compile.runtime.compiled_graph import CompiledGraph
from hicache_compile.runtime.nothing_cached import why_nothing
from hicache_compile.runtime.options import CompileOptions
from hicache_compile.runtime.program_set import ProgramSet
from hicache_compile.runtime.replay.dispatch_modes import aside, brought_back
from hicache_compile.runtime.rows.row import Row
from hicache_compile.runtime.rows.samples import Samples
from hicache_compile.runtime.rows.together import together
from hicache_compile.runtime.runs import sessions
from hicache_compile.runtime.step import Step

log = logging.getLogger(__name__)


class CompiledFunction(Handle):
    """The handle of one ``torch.compile(backend="hicache")`` with ``options``."""

    def __init__(self, options: CompileOptions) -> None:
        self._sessions = sessions(options)
        self._graphs = []
        self._plain: list[Rewrite] = []  # graphs that cache nothing, until the last one is known
        self._dumped = [0, 0]
        self._samples = Samples()
        self._first_code: types.CodeType | None = None
        self._compiled: Callable[[], Any] = lambda: None  # weak: Dynamo keeps this handle with its code
        self._module: Callable[[], Any] = lambda: None

    def receive(self, dynamo_graph: fx.GraphModule, example_inputs: list[Any]) -> Callable[..., Any]:
        """What Dynamo calls for each graph it captures."""
        frame = InstructionTranslator.current_tx().output.root_tx
        signature = Signature.of(frame.f_code, frame.f_locals)
        module = signature.module(frame.f_locals)
        if self._first_code is None:
            check_it_is_the_denoiser(module)
            self._session.fit_to(module)
        captured = CompiledGraph(capture(dynamo_graph), self._sessions)
        programs = captured.programs(captured.layout(self.policy)[0])
        if programs.stateless:
            self._say_why_nothing(programs.rewrite, module)
            if not captured.has_blocks:
                return self._plainly(dynamo_graph, example_inputs, programs)
        if self._first_code is None:
            self._first_code = frame.f_code
        begins = frame.f_code is self._first_code
        inputs = GraphInputs(captured.captured, signature, getattr(module, "forward", None))
        self._graphs.append(captured)
        return functools.partial(self._run, captured, inputs, begins)

    def _say_why_nothing(self, made: Rewrite, module: Any) -> None:
        """Warn once where no graph of the denoiser caches anything: known when the last of them was captured, which is
        no graph of a part, ``module``."""
        self._plain.append(made)
        ended = InstructionTranslator.current_tx().output.compile_subgraph_reason
        if not self._graphs and not (ended is not None and ended.graph_break) and not is_a_part(module):
            why = why_nothing(self._plain, self._model)
            if why:
                self._session.shared.warn_once("nothing is cached: %s", why)

    def _plainly(self, graph: fx.GraphModule, example_inputs: list[Any], programs: ProgramSet) -> Callable[..., Any]:
        options = self._session.options
        patches: dict[str, Any] = {"mode": options.mode} if options.mode else {}
        if options.program_passes:
            compiled = programs.program(Choice.PLAIN, options.backend, options.mode).on_inputs
        else:
            compiled = lookup_backend(options.backend)(graph, example_inputs, **patches)

        def run(*values: Any) -> Any:
            modes = aside()
            if not modes:
                return compiled(*values)
            with brought_back(modes):
                return compiled(*values)

        return run

    def _run(self, graph: CompiledGraph, inputs: GraphInputs, begins: bool, *values: Any) -> Any:
        session = self._session
        refuse_gradients(dict(enumerate(inputs.of_call(values))))
        step = None if begins else session.latest
        if step is None and not begins:
            raise HiCacheError("a part of the denoiser ran outside of its call: must be called as it was compiled")
        given = GraphCallInputs(inputs, values)
        outputs = session.run_step(given, lambda made: self._made(graph, given, begins, made), step)
        self._dump_where_asked()
        return outputs

    def _made(self, graph: CompiledGraph, given: GraphCallInputs, begins: bool, step: Step) -> Any:
        session = self._session

        def by_row(rows: Sequence[Row]) -> Any:
            if session.most_graphs > 1:
                raise NotByRowError("the denoiser is several graphs")
            return together(self._sessions, rows, lambda _: graph(*given.values), in_one_call=True)

        if not begins:
            return graph(*given.values)
        return self._samples.make(
            session, step, functools.partial(given.samples, graph), by_row, lambda: graph(*given.values)
        )

    def _call(self, *args: Any, **kwargs: Any) -> Any:
        compiled = self._compiled()
        if compiled is None:
            raise HiCacheError("the compiled denoiser was deleted: must be kept for as long as its handle is used")
        return compiled(*args, **kwargs)

    @property
    def _model(self) -> torch.nn.Module | None:  # type: ignore[override]  # known once it is inspected
        found: torch.nn.Module | None = self._module()
        return found

    def stands_for(self, compiled: Any, module: torch.nn.Module | None) -> None:
        """This is the handle of ``compiled``, which compiled ``module``."""
        self._compiled = weakref.ref(compiled)
        self._module = weakref.ref(module) if module is not None else lambda: None

    def _frames(self) -> list[types.CodeType]:
        return [self._first_code] if self._first_code else []

    def __deepcopy__(self, memo: dict[int, Any]) -> CompiledFunction:
        copied = CompiledFunction(self._copied_options())
        hicache._handles.add(copied)
        return copied

    def forget(self) -> None:
        """``torch.compiler.reset()``: the code that called the graphs is gone."""
        self._graphs.clear()
        self._first_code = None
        self.reset()


class Backend:
    """The backend ``torch.compile`` knows as ``"hicache"``."""

    __name__ = "hicache"

    def __init__(self) -> None:
        self._handles: weakref.WeakSet[CompiledFunction] = weakref.WeakSet()

    def __call__(
        self,
        graph: fx.GraphModule,
        example_inputs: list[Any],
        *,
        mode: str | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> Callable[..., Any]:
        try:
            compiler: Any = InstructionTranslator.current_tx().output.compiler_fn
            BACKEND.require()
            wrapper = internals.innermost_backend(compiler)
            prepare_calls(context_of_call())
            return self.handle(wrapper).receive(graph, example_inputs)
        except HiCacheError as error:
            raise CompileError(str(error)) from None

    def handle(self, wrapper: Any) -> CompiledFunction:
        """The handle of the ``torch.compile`` that ``wrapper`` stands for, made when it is first asked for."""
        kept: CompiledFunction | None = getattr(wrapper, "_hicache_handle", None)
        if kept is None:
            asked = getattr(wrapper, "kwargs", {})
            kept = CompiledFunction(CompileOptions.from_mapping(asked.get("options", {}), asked.get("mode")))
            wrapper._hicache_handle = kept
            self._handles.add(kept)
        return kept

    def reset(self) -> None:
        """Called by ``torch.compiler.reset``."""
        for handle in self._handles:
            handle.forget()

    def __eq__(self, other: object) -> bool:
        """Never: two ``torch.compile`` of models of one class, with equal policies, would be taken for one another
        by Dynamo, which compares backends, and would share their anchors."""
        return False

    __hash__ = object.__hash__

    def __deepcopy__(self, memo: dict[int, Any]) -> Backend:
        return self


hicache = Backend()


def inspect(compiled: Any) -> Handle:
    """The handle of a denoiser compiled in any way: by ``hicache_compile``, ``torch.compile`` or ``model.compile``.

    Raises:
        HiCacheError: it was not compiled with this package.
    """
    if isinstance(compiled, Handle):
        return compiled
    within = getattr(compiled, "_compiled_call_impl", None) or compiled
    context = getattr(within, "dynamo_ctx", None)
    callback = getattr(context, "callback", None)
    if callback is None and hasattr(within, "_torchdynamo_orig_callable"):
        found = introspection.getclosurevars(within).nonlocals
        context, callback = found.get("self"), found.get("callback")
    BACKEND.require()
    wrapper = internals.innermost_backend(callback) if callback is not None else None
    if getattr(wrapper, "compiler_fn", None) is not hicache:
        raise HiCacheError(
            f"inspect: a {type(compiled).__name__} must be compiled by hicache_compile or with "
            'torch.compile(backend="hicache")'
        )
    prepare_calls(context)
    handle = hicache.handle(wrapper)
    module = getattr(compiled, "_orig_mod", compiled)
    handle.stands_for(compiled, module if isinstance(module, torch.nn.Module) else None)
    return handle
