"""The compiled denoiser: a module that behaves like the one it wraps and samples with a cache."""

from __future__ import annotations

import copy
import functools
import inspect
import logging
import re
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from typing import Any

import torch
from torch import fx
from torch._dynamo.eval_frame import OptimizedModule
from torch._dynamo.exc import BackendCompilerFailed, TorchDynamoException
from torch._inductor import list_mode_options
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode
from torch.utils import _pytree as pytree

from hicache_compile.errors import HiCacheError, whole_number
from hicache_compile.frontend.handle import Handle
from hicache_compile.frontend.layerwise_casting import cast_in_the_graph
from hicache_compile.passes.transforms.capture import capture
from hicache_compile.policy.policy import NOWHERE
from hicache_compile.policy.schedules.base import StepMask
from hicache_compile.runtime.call_arguments import DenoiserCall
from hicache_compile.runtime.compiled_graph import CapturedStep
from hicache_compile.runtime.replay.call_signature import UnknownLookError
from hicache_compile.runtime.replay.capture import DATA_DEPENDENT_OPS, as_call, own_frame
from hicache_compile.runtime.replay.dispatch_modes import set_aside
from hicache_compile.runtime.replay.replay import Replay, changes_python_state, look_of_call, unobserved
from hicache_compile.runtime.session import Session
from hicache_compile.runtime.settings import Settings
from hicache_compile.runtime.step import Step

log = logging.getLogger(__name__)

# Methods of diffusers' and peft's models that change what the weights compute.
_CHANGES_MODEL = re.compile("lora|adapter|fuse_|layerwise_casting")


class CompiledDenoiser(Handle, OptimizedModule):
    """What ``hicache_compile`` returns. Everything it does not define is the wrapped module's own.

    It samples: it runs without gradients, one step of a trajectory a call.
    """

    # `OptimizedModule` hands assignments to the wrapped module unless the class has the attribute.
    _options: tuple[Settings, str, bool | None, str | None]
    _signature: inspect.Signature
    _denoise: Callable[..., Any]
    _code: types.CodeType
    _breaks_at_data: bool = False
    _graphed: bool = False

    def __init__(
        self, model: torch.nn.Module, settings: Settings, backend: str, dynamic: bool | None, mode: str | None
    ) -> None:
        cast_in_the_graph(model)
        session = Session(settings)
        steps: list[CapturedStep] = []

        def receive(dynamo_graph: fx.GraphModule, example_inputs: list[Any]) -> CapturedStep:
            step = CapturedStep(capture(dynamo_graph), session, backend, mode)
            step.replayable = not changes_python_state()
            step.lower_now()  # may ask Dynamo to start over
            steps.append(step)
            return step

        context = torch._dynamo.optimize(receive, dynamic=dynamic)
        super().__init__(model, context)  # type: ignore[arg-type]  # optimize is typed as a union
        object.__setattr__(self, "_options", (settings, backend, dynamic, mode))
        object.__setattr__(self, "_graphed", bool(mode and list_mode_options(mode).get("triton.cudagraphs")))
        object.__setattr__(self, "_session", session)
        object.__setattr__(self, "_model", model)
        object.__setattr__(self, "_dumped", [0, 0])
        object.__setattr__(self, "_steps", steps)
        object.__setattr__(self, "_signature", inspect.signature(model.forward))
        frame = own_frame(model)
        object.__setattr__(self, "_code", frame.__code__)
        object.__setattr__(self, "_denoise", context(frame))
        self.forward = self._sample

    def _sample(self, *args: Any, **kwargs: Any) -> Any:
        """One step: count it, run the compiled graphs, which read the count."""
        self._refuse_gradients(args, kwargs)
        session = self._session
        if session.step is not None:
            raise HiCacheError("the compiled denoiser was called from inside its own call")
        call = DenoiserCall(session, self._signature, args, kwargs)
        step = session.next_step(call)
        if self._graphed:
            torch.compiler.cudagraph_mark_step_begin()  # a replayed step does not enter Dynamo, which would say so
        session.step = step
        try:
            with torch.no_grad(), set_aside() as step.modes:
                if session.observer is None:
                    output = self._replay_or_run(step, args, kwargs)
                else:
                    output = session.observer(step, call, lambda: self._replay_or_run(step, args, kwargs))
        except BaseException as error:
            step.context.invalidate()
            if isinstance(error, BackendCompilerFailed) and isinstance(error.inner_exception, HiCacheError):
                raise error.inner_exception from None
            raise
        finally:
            session.step = None
        self._check_compiled(step)
        session.finish(step)
        self._dump_where_asked()
        return pytree.tree_map_only(torch.Tensor, _own, output) if self._graphed else output

    def _replay_or_run(self, step: Step, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Make an earlier call of this run again, or go through Dynamo and remember how."""
        look, tensors = look_of_call(args, kwargs, self._orig_mod.training)
        settings = self._session.settings
        replay = step.context.replays.find(look, settings.changes())
        if replay is not None:
            return replay(tensors)
        with unobserved():
            output = self._run(step, args, kwargs)
        if look is not None and len(step.calls) == len(step.graphs) == 1:
            with suppress(UnknownLookError):
                step.context.replays.keep(look, Replay(step.calls[0], tensors, output, settings.changes()))
        return output

    def _run(self, step: Step, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run the compiled graphs. Ops whose output's shape or value depends on data are captured with the rest
        (a mask that picks tokens, a router of experts); where Dynamo cannot, the graph breaks there instead."""
        if self._breaks_at_data:
            return self._denoise(*args, **kwargs)
        try:
            with DATA_DEPENDENT_OPS():
                return self._denoise(*args, **kwargs)
        except (TorchDynamoException, GuardOnDataDependentSymNode) as error:
            if isinstance(getattr(error, "inner_exception", None), HiCacheError):
                raise
            log.info("capturing again with graph breaks at ops that depend on data: %s", error)
            object.__setattr__(self, "_breaks_at_data", True)
            step.graphs.clear()
            step.context.invalidate()
            return self._denoise(*args, **kwargs)

    def warmup(self, example_inputs: Mapping[str, Any] | Sequence[Any], num_steps: int = 50) -> None:
        """Capture the denoiser and compile every program of the policy now, for inputs that look like these.

        The denoiser is called, a full step and where the step alone decides a forecast one; no anchors and no history
        stay.

        Args:
            example_inputs: the arguments of one call, by name or in order, as they will be given.
            num_steps: how long the runs will be, which matters where the policy forecasts kinds of sites apart.

        Raises:
            HiCacheError: it is neither, or a trajectory is open, or the policy cannot serve ``num_steps``.
        """
        args, kwargs = as_call(example_inputs, "warmup")
        whole_number("warmup", "num_steps", num_steps, 1)
        policy = self.policy
        cut = policy.cut
        decided = not (cut.probes or cut.groups or cut.split or cut.scope == NOWHERE)
        rehearsed, calls = (replace(policy, schedule=StepMask("10")), 2) if decided else (policy, 1)
        with torch.no_grad(), self._session.rehearse(rehearsed, 2 if decided else num_steps):
            for _ in range(calls):
                self(*args, **kwargs)
            for step in self._newest():
                step.lower_all(policy, num_steps)

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

    def _frames(self) -> list[types.CodeType]:
        return [self._code]

    def _refuse_gradients(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not torch.is_grad_enabled():
            return
        for name, value in [*enumerate(args), *kwargs.items()]:
            if isinstance(value, torch.Tensor) and value.requires_grad:
                raise HiCacheError(
                    f"argument {name!r} requires grad: must not, a cached denoiser samples without gradients; "
                    "call the module it wraps, compiled._orig_mod, to differentiate"
                )

    def _check_compiled(self, step: Step) -> None:
        if not step.graphs and not self._session.warned_eager:
            self._session.warned_eager = True
            log.warning("Dynamo ran the denoiser without compiling it, so nothing is cached: see TORCH_LOGS=recompiles")

    @property  # type: ignore[misc]  # of every object, and never assigned here
    def __class__(self) -> Any:
        """The wrapped module's: diffusers loads LoRAs and offloads by ``isinstance``."""
        return type(self._orig_mod)

    def __getattr__(self, name: str) -> Any:
        found = super().__getattr__(name)
        if not inspect.ismethod(found):
            return found
        self._session.settings.touched += 1  # whatever the method does, the next step looks at the whole module
        return self._noticed(found) if _CHANGES_MODEL.search(name) else found

    def _noticed(self, method: Callable[..., Any]) -> Callable[..., Any]:
        """``method`` of the wrapped module, after which the anchors start over.

        Hot-swapping a LoRA writes to the data of its parameters behind autograd's back: no version changes.
        """

        @functools.wraps(method)
        def call(*args: Any, **kwargs: Any) -> Any:
            try:
                return method(*args, **kwargs)
            finally:
                self._session.settings.weights_epoch += 1
                cast_in_the_graph(self._orig_mod)

        return call

    def _reset_stateful_cache(self, recurse: bool = True) -> None:
        """diffusers calls this when a pipeline is done: the run it announced is over."""
        self._session.end_run()
        theirs = getattr(self._orig_mod, "_reset_stateful_cache", None)
        if theirs is not None:
            theirs(recurse=recurse)

    def __deepcopy__(self, memo: dict[int, Any]) -> CompiledDenoiser:
        settings, backend, dynamic, mode = self._options
        return CompiledDenoiser(copy.deepcopy(self._orig_mod, memo), replace(settings), backend, dynamic, mode)

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise HiCacheError(
            "a compiled denoiser cannot be pickled: must be saved as the module it wraps (save_pretrained, state_dict, "
            "or compiled._orig_mod) with its policy as JSON, and compiled again where it is loaded"
        )

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return self._orig_mod.state_dict(*args, **kwargs)

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        return self._orig_mod.load_state_dict(state_dict, *args, **kwargs)


def _own(output: torch.Tensor) -> torch.Tensor:
    """A copy of an output that lives in the memory of a CUDA graph, which the next guidance branch writes over."""
    return output.clone() if output.is_cuda else output
