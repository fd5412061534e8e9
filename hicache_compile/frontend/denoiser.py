"""The compiled denoiser: a module that behaves like the one it wraps and samples with a cache."""

from __future__ import annotations

import copy
import functools
import inspect
import logging
import re
import types
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from hicache_compile.errors import HiCacheError
from hicache_compile.frontend.batches import Batches
from hicache_compile.frontend.calls import on_its_own, refuse_gradients
from hicache_compile.frontend.handle import Handle
from hicache_compile.frontend.layerwise_casting import cast_in_the_graph
from hicache_compile.frontend.opaque_modules import OpaqueModules
from hicache_compile.frontend.sharded_weights import gather_in_the_graph
from hicache_compile.frontend.stand_in import StandIn
from hicache_compile.frontend.traced import Traced
from hicache_compile.internals import BackendCompilerFailed, list_mode_options, optimize
from hicache_compile.operators.opaque import OutputChangedError
from hicache_compile.passes.transforms.capture import capture
from hicache_compile.runtime.call_arguments import DenoiserCall
from hicache_compile.runtime.compiled_graph import CompiledGraph
from hicache_compile.runtime.nothing_cached import why_nothing
from hicache_compile.runtime.options import CompileOptions, Shared
from hicache_compile.runtime.replay.call_signature import UnknownArgumentError
from hicache_compile.runtime.replay.frames import MOST_ENTRIES, drop_compiled
from hicache_compile.runtime.replay.replay import Replay, signature_of_call
from hicache_compile.runtime.replay.side_effects import changes_python_state, compiled_within, is_whole_call
from hicache_compile.runtime.rows.row import Row
from hicache_compile.runtime.rows.step import RowsStep
from hicache_compile.runtime.rows.together import together
from hicache_compile.runtime.runs import Sessions, sessions
from hicache_compile.runtime.step import Step

log = logging.getLogger(__name__)

_CHANGES_MODEL = re.compile("lora|adapter|fuse_|layerwise_casting")  # methods that change what weights compute


@dataclass(slots=True)
class _Inner:
    """What a compiled denoiser calls: ``denoise``."""

    signature: inspect.Signature
    denoise: Traced
    batches: Batches
    graphed: bool  # its programs are CUDA graphs


class CompiledDenoiser(Handle, StandIn):
    """What ``hicache_compile`` returns. Everything it does not define is the wrapped module's own.

    It samples: it runs without gradients, one step of a trajectory a call.
    """

    _inner: _Inner  # `OptimizedModule` hands assignments to the wrapped module unless the class has the attribute

    def __init__(self, model: torch.nn.Module, options: CompileOptions) -> None:
        per_thread = sessions(options)
        shared = per_thread.mine().shared
        shared.model = weakref.ref(model)
        per_thread.mine().fit_to(model)
        owner = weakref.ref(self)  # Dynamo keeps every backend it was ever given

        def receive(dynamo_graph: fx.GraphModule, example_inputs: list[Any]) -> CompiledGraph:
            denoiser = owner()
            assert denoiser is not None  # it is being called
            return denoiser._receive(dynamo_graph)

        context = optimize(receive, dynamic=options.dynamic)
        super().__init__(model, context)
        traced = Traced(model, context, options.dynamic, OpaqueModules(model, options))
        batches = Batches(per_thread, lambda: Traced(model, optimize(receive), None, OpaqueModules(model, options)))
        graphed = bool(options.mode and list_mode_options(options.mode).get("triton.cudagraphs"))
        inner = _Inner(inspect.signature(model.forward), traced, batches, graphed)
        graphs = list[CompiledGraph]()
        own = {"_sessions": per_thread, "_model": model, "_graphs": graphs, "_inner": inner, "_dumped": [0, 0]}
        for name, value in own.items():
            object.__setattr__(self, name, value)
        weakref.finalize(self, _release, traced.code, per_thread, shared, graphs).atexit = False

    def _receive(self, dynamo_graph: fx.GraphModule) -> CompiledGraph:
        """What Dynamo calls for each graph it captures."""
        captured = capture(dynamo_graph, compiled_within(self._orig_mod))
        self._inner.denoise.check(captured)
        self._inner.denoise.again.count(captured, self._session.step)
        graph = CompiledGraph(captured, self._sessions)
        graph.replayable = is_whole_call() and not changes_python_state()
        graph.lower_now()  # may ask Dynamo to start over
        self._graphs.append(graph)
        return graph

    def _call_compiled(self, *args: Any, **kwargs: Any) -> Any:
        """One step: count it, run the compiled graphs, which read the count."""
        refuse_gradients({**dict(enumerate(args)), **kwargs})
        if self._inner.graphed:
            torch.compiler.cudagraph_mark_step_begin()  # a replayed step does not enter Dynamo, which would say so
        call = DenoiserCall(self._inner.signature, args, kwargs)
        try:
            output = self._session.run_step(call, lambda step: self._make(step, args, kwargs))
        except BackendCompilerFailed as error:
            if isinstance(error.inner_exception, HiCacheError):
                raise error.inner_exception from None
            raise
        self._check_compiled()
        self._dump_where_asked()
        return on_its_own(output) if self._inner.graphed else output

    def _make(self, step: Step, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not step.index:
            step.context.first_call = signature_of_call(args, kwargs, self._orig_mod.training)[0]
        return self._inner.batches.make(step, args, kwargs, self._replay_or_run, self.together)

    def _replay_or_run(self, step: Step, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Make an earlier call of this run again, or go through Dynamo and remember how."""
        signature, tensors = signature_of_call(args, kwargs, self._orig_mod.training)
        shared = self._session.shared
        replay = step.context.replays.find(signature, shared.changes())
        if replay is not None:
            with suppress(OutputChangedError):
                return replay(tensors)
            step.undo()
        output = self._run(step, args, kwargs)
        live = self._session.live
        if why := why_nothing([live[graph].programs.rewrite for graph in step.graphs if graph in live], self._orig_mod):
            shared.warn_once("nothing is cached: %s", why)
        if signature is not None and len(step.calls) == len(step.graphs) == 1:
            with suppress(UnknownArgumentError):
                step.context.replays.keep(signature, Replay(step.calls[0], tensors, output, shared.changes()))
        return output

    def together(self, rows: Sequence[Row], args: tuple[Any, ...], kwargs: dict[str, Any], **how: Any) -> Any:
        """Make ``rows``, steps that the sessions of their runs have begun and will count; ``how``: see ``together``."""
        with torch.no_grad():
            if len(rows) == 1:
                return self._inner.batches.one(rows[0], args, kwargs, self._replay_or_run)
            return together(self._sessions, rows, lambda step: self._replay_or_run(step, args, kwargs), **how)

    def _run(self, step: Step, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run the compiled graphs."""
        if not step.index:  # hooks are looked for once a run: it walks every module
            cast_in_the_graph(self._orig_mod)
            for why in gather_in_the_graph(self._orig_mod):
                self._session.shared.warn_once("its hooks break the graph, which costs most of the cache: %s", why)
        if isinstance(step, RowsStep):
            return self._inner.batches(step, args, kwargs, self._replay_or_run)
        return self._inner.denoise(args, kwargs, step, step.start_over)

    @contextmanager
    def cache_context(self, name: str, **hints: Any) -> Iterator[None]:
        """``with compiled.cache_context(name):`` calls inside belong to the guidance branch ``name``.

        ``hints`` are those of diffusers' own ``cache_context``, and are handed on to it.
        """
        with ExitStack() as stack:
            stack.enter_context(self._session.in_context(name))
            if hasattr(self._orig_mod, "cache_context"):
                theirs: Any = self._orig_mod.cache_context
                stack.enter_context(theirs(name, **hints))
            yield

    def _call(self, *args: Any, **kwargs: Any) -> Any:
        return self(*args, **kwargs)

    def _frames(self) -> list[types.CodeType]:
        return self._inner.denoise.code[:1]

    def _check_compiled(self) -> None:
        session = self._session
        if not (session.last_graphs or session.warned_eager or self._inner.denoise.again.too_often):
            session.warned_eager = True
            log.warning(
                "Dynamo ran the denoiser without compiling it, so nothing is cached. It does so beyond its limit of %d "
                "entries for one piece of code (with dynamic=False, of sizes: use dynamic=True), and for frames it "
                "skips: see TORCH_LOGS=recompiles,dynamo",
                MOST_ENTRIES,
            )

    def __getattr__(self, name: str) -> Any:
        found = super().__getattr__(name)
        if not inspect.ismethod(found):
            return found
        self._session.shared.touched += 1  # whatever the method does, the next step looks at the whole module
        return self._noticed(found) if _CHANGES_MODEL.search(name) else found

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Any:
        """Moves of the module: another dtype rounds its weights for good, and no version shows it."""
        before = [weight.dtype for weight in self._orig_mod.parameters()]
        moved = super()._apply(fn, recurse)
        if before != [weight.dtype for weight in self._orig_mod.parameters()]:
            self._session.shared.parameters_epoch += 1
        return moved

    def _noticed(self, method: Callable[..., Any]) -> Callable[..., Any]:
        """``method`` of the wrapped module, after which the anchors start over.

        Hot-swapping a LoRA writes to the data of its parameters behind autograd's back: no version changes.
        """

        @functools.wraps(method)
        def call(*args: Any, **kwargs: Any) -> Any:
            try:
                return method(*args, **kwargs)
            finally:
                self._session.shared.parameters_epoch += 1

        return call

    def _reset_stateful_cache(self, recurse: bool = True) -> None:
        """diffusers calls this when a pipeline is done: the run it announced is over."""
        self._session.end_run()
        theirs = getattr(self._orig_mod, "_reset_stateful_cache", None)
        if theirs is not None:
            theirs(recurse=recurse)

    def __deepcopy__(self, memo: dict[int, Any]) -> CompiledDenoiser:
        return CompiledDenoiser(copy.deepcopy(self._orig_mod, memo), self._copied_options())

    def __copy__(self) -> CompiledDenoiser:
        """Over the same weights, with anchors of its own."""
        return CompiledDenoiser(copy.copy(self._orig_mod), self._copied_options())

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise HiCacheError(
            "a compiled denoiser cannot be pickled: must be saved as the module it wraps (save_pretrained, state_dict, "
            "or compiled._orig_mod) with its policy as JSON, and compiled again where it is loaded"
        )


def _release(code: list[types.CodeType], per_thread: Sessions, shared: Shared, graphs: list[CompiledGraph]) -> None:
    """The denoiser is gone. Dynamo's map from compiled code to its origin would keep both, and all they read."""
    for compiled in code:
        drop_compiled(compiled)
    for graph in graphs:  # after a graph break they belong to frames of the class, which outlives its denoisers
        graph.program_sets.clear()
    per_thread.clear()
    shared.pools.clear()
    shared.attributes = None
