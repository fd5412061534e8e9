"""Find the submodules that break a denoiser's graph, and let Dynamo take each for one operator."""

from __future__ import annotations

import functools
import inspect
import logging
import threading
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from traceback import FrameSummary
from types import MappingProxyType
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from hicache_compile.backends import backend_module
from hicache_compile.operators.opaque import NotOpaqueError, OpaqueModule, opaque
from hicache_compile.runtime.options import CompileOptions
from hicache_compile.runtime.replay.capture import ENTRIES, own_frame

log = logging.getLogger(__name__)

# Whether a break is an error is one setting of Dynamo for all threads.
BREAKS_SET = threading.RLock()
LARGEST = 0.5  # of the denoiser's weights: what holds more is the denoiser in a wrapper, or its stack of blocks


class OpaqueModules:
    """The submodules of ``model`` that Dynamo cannot trace; each is compiled by itself, as far as that goes."""

    def __init__(self, model: nn.Module, options: CompileOptions) -> None:
        self._model = model
        self._options = options
        self._found: dict[nn.Module, OpaqueModule] = {}
        self._unfit: set[type[nn.Module]] = set()
        self._compiled: dict[type[nn.Module], Callable[..., Any]] = {}
        self.code: list[types.CodeType] = []  # that Dynamo compiled for them
        self._idle = threading.Condition()  # no call is under way
        self._users = 0

    def __len__(self) -> int:
        return len(self._found)

    @contextmanager
    def in_graph(self) -> Iterator[None]:
        """Inside, Dynamo takes each for one operator. Called otherwise, also by others, it is what it ever was."""
        with self._idle:
            self._users += 1
            for module, known in self._found.items():
                vars(module).setdefault("forward", _forward(known, _own_forward(module)))
        try:
            yield
        finally:
            with self._idle:
                self._users -= 1
                if not self._users:
                    for module in self._found:
                        vars(module).pop("forward", None)
                    self._idle.notify_all()

    def add(self, stacks: Sequence[Sequence[FrameSummary]], args: Sequence[Any], kwargs: dict[str, Any]) -> int:
        """Take for operators the smallest submodules in which the graph broke, and all others of their classes.

        Args:
            stacks: of the code that was traced where it broke, outermost first.
            args, kwargs: of a call, which is made once more to see what the submodules return.

        Returns:
            how many there are now that were not before.
        """
        known = len(self._found)
        while len(self._found) == known:
            classes = {found for stack in stacks if (found := self._smallest(stack)) is not None}
            if not classes:
                break
            self._record(classes, args, kwargs)
        return len(self._found) - known

    def record_again(self, args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
        """Look once more at what the operators return; one of which that depends on data is no operator any more.

        Returns:
            whether anything is known now that was not before.
        """
        before = self._known_calls()
        known, self._found = self._found, {}
        classes = set(map(type, known))
        self._unfit -= classes
        self._record(classes, args, kwargs, known)
        return self._known_calls() != before

    def _known_calls(self) -> list[tuple[str, int]]:
        return [(known.name, len(known.calls)) for known in self._found.values()]

    def _by_itself(self, kind: type[nn.Module]) -> Callable[..., Any]:
        """``forward`` of the submodules of a class, compiled for all of them in as many graphs as it takes."""
        backend = backend_module(self._options.backend)
        if backend == "eager":
            return kind.forward
        if kind not in self._compiled:
            frame = own_frame(kind.forward)
            self.code.append(frame.__code__)
            options = self._options
            compiled = torch.compile(frame, backend=backend, mode=options.mode, dynamic=options.dynamic)

            def run(*args: Any, **kwargs: Any) -> Any:
                with BREAKS_SET, ENTRIES(), torch._dynamo.error_on_graph_break(False):
                    return compiled(*args, **kwargs)

            self._compiled[kind] = run
        return self._compiled[kind]

    def _smallest(self, stack: Sequence[FrameSummary]) -> type[nn.Module] | None:
        """The class of the submodule whose ``forward`` is the innermost one in ``stack``."""
        inside = {type(module) for module in self._model.modules() if module is not self._model}
        for frame in reversed(stack):
            for kind in inside - self._unfit - {type(self._model)}:
                code = getattr(inspect.unwrap(kind.forward), "__code__", None)
                if code is not None and _is_of(frame, code):
                    return kind
        return None

    def _record(
        self,
        classes: set[type[nn.Module]],
        args: Sequence[Any],
        kwargs: dict[str, Any],
        earlier: Mapping[nn.Module, OpaqueModule] = MappingProxyType({}),
    ) -> None:
        """Call the model, and keep those of ``classes`` that can be operators; ``earlier``: what is known of them."""
        total = _weights(self._model)
        tried: dict[nn.Module, OpaqueModule] = {}
        for path, module in self._model.named_modules():
            large = _weights(module) > LARGEST * total
            if type(module) in classes and (large or "forward" in vars(module)):
                self._unfit.add(type(module))
            elif type(module) in classes and module not in self._found:
                tried[module] = earlier.get(module) or OpaqueModule(path, module)
                tried[module].compute = _own_forward(module)

        def recorded(module: nn.Module, known: OpaqueModule) -> Callable[..., Any]:
            def forward(*args: Any, **kwargs: Any) -> Any:
                try:
                    return known.record(args, kwargs)
                except NotOpaqueError as error:
                    log.info("%s cannot be one operator: %s", known.path, error)
                    self._unfit.add(type(module))
                    return _own_forward(module)(*args, **kwargs)

            return forward

        buffers = [(buffer, buffer.clone()) for buffer in self._model.buffers()]
        with self._idle, torch.no_grad(), _random_numbers_kept():
            self._idle.wait_for(lambda: not self._users)
            for module, known in tried.items():
                vars(module)["forward"] = recorded(module, known)
            try:
                self._model(*args, **kwargs)
            finally:
                for module in tried:
                    vars(module).pop("forward", None)
        for buffer, before in buffers:  # what a denoiser counts it counts once a call
            if not torch.equal(buffer, before):
                buffer.copy_(before)
        for module, known in tried.items():
            if type(module) not in self._unfit and known.calls:
                known.compute = functools.partial(self._by_itself(type(module)), module)
                self._found[module] = known
        self._unfit |= classes
        if self._found:
            log.info("submodules that are one operator: %s", ", ".join(known.path for known in self._found.values()))


def _random_numbers_kept() -> AbstractContextManager[None]:
    """Inside, drawing random numbers changes nothing for what comes after."""
    accelerator = torch.accelerator.current_accelerator()
    if accelerator is None:
        return torch.random.fork_rng(devices=[])
    return torch.random.fork_rng(device_type=accelerator.type)


def _forward(known: OpaqueModule, own: Callable[..., Any]) -> Callable[..., Any]:
    assert known.output is not None  # it was recorded
    name, spec, constants = known.name, known.output, known.constants

    def forward(*args: Any, **kwargs: Any) -> Any:
        if not torch.compiler.is_compiling():
            return own(*args, **kwargs)
        made = iter(opaque(name, args, kwargs))
        leaves = [next(made) if constant is None else constant[0] for constant in constants]
        return pytree.tree_unflatten(leaves, spec)

    return forward


def _own_forward(module: nn.Module) -> Callable[..., Any]:
    """``forward`` of the module's class."""
    return types.MethodType(type(module).forward, module)


def _is_of(frame: FrameSummary, code: types.CodeType) -> bool:
    """Whether ``frame`` ran ``code``."""
    lines = [line for *_, line in code.co_lines() if line is not None]
    same = (frame.filename, frame.name) == (code.co_filename, code.co_name)
    return same and frame.lineno is not None and min(lines) <= frame.lineno <= max(lines)


def _weights(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
