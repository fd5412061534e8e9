"""Find the submodules that break a denoiser's graph, and let Dynamo take each for one operator."""

from __future__ import annotations

import functools
import inspect
import logging
import threading
import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from traceback import FrameSummary
from typing import Any

import torch
from torch import nn

from hicache_compile.backends import backend_module
from hicache_compile.internals import error_on_graph_break, pytree
from hicache_compile.operators.opaque import NotOpaqueError, OpaqueModule, opaque
from hicache_compile.runtime.options import CompileOptions
from hicache_compile.runtime.replay.frames import BREAKS_SET, ENTRIES, own_frame
from hicache_compile.runtime.replay.state_kept import state_kept

log = logging.getLogger(__name__)

LARGEST = 0.5  # of the denoiser's weights: what holds more is the denoiser in a wrapper, or its stack of blocks


class OpaqueModules:
    """The submodules of ``model`` that Dynamo cannot trace; each is compiled by itself, as far as that goes."""

    def __init__(self, model: nn.Module, options: CompileOptions) -> None:
        self._model = model
        self._options = options
        self._made: dict[nn.Module, OpaqueModule] = {}  # what was recorded of submodules
        self._found: dict[nn.Module, Callable[..., Any]] = {}  # of those that are operators, what Dynamo traces
        self._unfit: set[type[nn.Module]] = set()
        self._why: dict[type[nn.Module], str] = {}  # the code that Dynamo cannot trace, by class
        self._compiled: dict[type[nn.Module], Callable[..., Any]] = {}
        self.code: list[types.CodeType] = []  # that Dynamo compiled for them
        self._idle = threading.Condition()  # no call is under way
        self._users = 0

    @contextmanager
    def in_graph(self) -> Iterator[None]:
        """Inside, Dynamo takes each for one operator. Called otherwise, also by others, it is what it ever was."""
        with self._idle:
            self._users += 1
            for module, forward in self._found.items():
                vars(module).setdefault("forward", forward)
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
            classes: set[type[nn.Module]] = set()
            for stack in stacks:
                found = self._smallest(stack)
                classes |= found
                self._why |= dict.fromkeys(found - self._why.keys(), _code(stack[-1])) if stack else {}
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
        classes = set(map(type, self._found))
        self._found = {}
        self._unfit -= classes
        self._record(classes, args, kwargs)
        return self._known_calls() != before

    def _known_calls(self) -> list[tuple[str, int]]:
        return [(self._made[module].name, len(self._made[module].calls)) for module in self._found]

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
                with BREAKS_SET, ENTRIES(), error_on_graph_break(False):
                    return compiled(*args, **kwargs)

            self._compiled[kind] = run
        return self._compiled[kind]

    def _smallest(self, stack: Sequence[FrameSummary]) -> set[type[nn.Module]]:
        """The class, or classes, of the submodule whose ``forward`` is the innermost one in ``stack``."""
        fit = {type(module) for module in self._model.modules()} - self._unfit - {type(self._model)}
        for frame in reversed(stack):
            found = {kind for kind in fit if _is_of(frame, inspect.unwrap(kind.forward))}
            if found:
                return found
        return set()

    def is_none_of_them(self, stack: Sequence[FrameSummary]) -> bool:
        """Whether the innermost code of ``stack`` is the denoiser's own, of no submodule that could be an operator."""
        return not self._smallest(stack)

    def warm_up(self, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        """Call the model once, which may fill in what the code that Dynamo cannot trace makes in a first call only."""
        with self.called_by_us(args, kwargs):
            self._model(*args, **kwargs)

    @contextmanager
    def called_by_us(self, args: Sequence[Any], kwargs: dict[str, Any]) -> Iterator[None]:
        """Inside, the model is called once more than its caller knows."""
        with self._idle:
            self._idle.wait_for(lambda: not self._users)
            with state_kept(self._model, lambda: self._model(*args, **kwargs)):
                yield

    def _record(self, classes: set[type[nn.Module]], args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        """Call the model, and keep those of ``classes`` that can be operators."""
        most = LARGEST * _weights(self._model)
        modules = {module: path for path, module in self._model.named_modules() if type(module) in classes}
        self._unfit |= {type(module) for module in modules if _weights(module) > most or "forward" in vars(module)}
        tried = [module for module in modules if type(module) not in self._unfit]
        for module in tried:
            self._made.setdefault(
                module, OpaqueModule(modules[module], module, self._why.get(type(module), ""))
            ).compute = _own_forward(module)

        def recorded(module: nn.Module) -> Callable[..., Any]:
            def forward(*args: Any, **kwargs: Any) -> Any:
                try:
                    return self._made[module].record(args, kwargs)
                except NotOpaqueError as error:
                    log.info("%s cannot be one operator: %s", modules[module], error)
                    self._unfit.add(type(module))
                    return _own_forward(module)(*args, **kwargs)

            return forward

        with self.called_by_us(args, kwargs):
            for module in tried:
                vars(module)["forward"] = recorded(module)
            try:
                self._model(*args, **kwargs)
            finally:
                for module in tried:
                    vars(module).pop("forward", None)
        for module in tried:
            known = self._made[module]
            if type(module) not in self._unfit and known.calls:
                known.compute = functools.partial(self._by_itself(type(module)), module)
                self._found[module] = _forward(known, _own_forward(module))
        self._unfit |= classes
        if self._found:
            log.info(
                "submodules that are one operator: %s", ", ".join(self._made[module].path for module in self._found)
            )


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


def _code(frame: FrameSummary) -> str:
    """Where the code of ``frame`` is, and what it says."""
    line = f" `{frame.line.strip()}`" if frame.line else ""
    return f"{Path(frame.filename).name}:{frame.lineno}{line}"


def _own_forward(module: nn.Module) -> Callable[..., Any]:
    """``forward`` of the module's class."""
    return types.MethodType(type(module).forward, module)


def _is_of(frame: FrameSummary, function: Any) -> bool:
    """Whether ``frame`` ran ``function``."""
    code = getattr(function, "__code__", None)
    if code is None or (frame.filename, frame.name) != (code.co_filename, code.co_name):
        return False
    lines = [line for *_, line in code.co_lines() if line is not None]
    return frame.lineno is not None and min(lines) <= frame.lineno <= max(lines)


def _weights(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
