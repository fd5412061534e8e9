"""A module that stands for the one it wraps: what looks for blocks, sets hooks, casts or quantises works on either."""

from __future__ import annotations

import functools
import inspect
import types
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from hicache_compile.internals import OptimizedModule

_HELD = ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set")
_DEEPEST = 8  # how many functions a hook may be within another


class CompiledForward:
    """The ``forward`` of a stand-in. Its signature is the wrapped module's: pipelines pass what they find there."""

    def __init__(self, stand_in: StandIn) -> None:
        self._stand_in = stand_in

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_exporting():  # of one call: as of what torch.compile makes, the wrapped module's graph
            return self._stand_in._orig_mod(*args, **kwargs)
        if torch.compiler.is_compiling():  # of a loop around it: a call between two of its graphs
            return _called_apart(self._stand_in, args, kwargs)
        return self._stand_in._call_compiled(*args, **kwargs)

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self._stand_in._orig_mod.forward)

    @property
    def __code__(self) -> types.CodeType:
        """The wrapped module's: ``torch.export`` looks for it."""
        return self._stand_in._orig_mod.forward.__code__


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _called_apart(stand_in: StandIn, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return stand_in._call_compiled(*args, **kwargs)


class StandIn(OptimizedModule):
    """A module whose calls are made by ``_call_compiled``; everything else is the wrapped module's own.

    Its weights and children are not copies: it holds the same dicts, so that what walks, names, replaces or moves them
    does it to the wrapped module.
    """

    def __init__(self, model: torch.nn.Module, context: Any) -> None:
        super().__init__(model, context)
        held = {name: getattr(model, name) for name in _HELD}
        vars(self).update(held, _orig_mod=model, _compiled_forward=CompiledForward(self))
        self.forward = self._compiled_forward

    @abstractmethod
    def _call_compiled(self, *args: Any, **kwargs: Any) -> Any:
        """One call of the module."""

    @property  # type: ignore[misc]  # of every object, and never assigned here
    def __class__(self) -> Any:
        """The wrapped module's: diffusers loads LoRAs and offloads by ``isinstance``."""
        return type(self._orig_mod)

    def __bool__(self) -> bool:
        """The wrapped module's: modular pipelines ask so whether a component is there. Without it, Python would ask the
        length, which few modules have."""
        return bool(self._orig_mod)

    def __getattr__(self, name: str) -> Any:
        """What the wrapped module has. A method that may call the module (``forward_with_cfg``) calls this one."""
        found = super().__getattr__(name)
        own = inspect.ismethod(found) and found.__self__ is self._orig_mod
        return types.MethodType(found.__func__, self) if own and self._beside_forward(name) else found

    def _beside_forward(self, name: str) -> bool:
        """Whether the method is of the class that defines ``forward``, or of one that extends it."""
        classes = type(self._orig_mod).__mro__
        defines = {
            attribute: next((one for one in classes if attribute in vars(one)), torch.nn.Module)
            for attribute in (name, "forward")
        }
        return issubclass(defines[name], defines["forward"])

    def __setattr__(self, name: str, value: Any) -> None:
        """A ``forward`` that goes around the compiled one (a hook of accelerate) is this module's; any other is what
        the wrapped module is to compute from now on."""
        if name != "forward" or "forward" not in vars(self) or _may_call(value, self._compiled_forward):
            super().__setattr__(name, value)
            return
        if inspect.ismethod(value) and value.__self__ is self:
            value = types.MethodType(value.__func__, self._orig_mod)
        super().__setattr__(name, self._compiled_forward)
        self._orig_mod.forward = value

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return self._orig_mod.state_dict(*args, **kwargs)

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        return self._orig_mod.load_state_dict(state_dict, *args, **kwargs)


def _may_call(function: Any, target: Any) -> bool:
    """Whether ``function`` holds ``target``: in its closure, as what it wraps, or in an object that it holds."""
    seen: set[int] = set()
    found = [function]
    for _ in range(_DEEPEST):
        if any(value is target for value in found):
            return True
        found = [part for value in found for part in _parts(value) if id(part) not in seen]
        seen |= set(map(id, found))
    return False


def _parts(value: Any) -> Iterator[Any]:
    """What a callable, or an object that holds callables, is made of."""
    if isinstance(value, torch.nn.Module | type | types.ModuleType):
        return
    if isinstance(value, functools.partial):
        yield from (value.func, *value.args)
    for cell in getattr(value, "__closure__", None) or ():
        if cell != types.CellType():  # not empty yet
            yield cell.cell_contents
    if inspect.ismethod(value):
        yield from (value.__self__, value.__func__)
    yield from (part for part in getattr(value, "__dict__", {}).values() if callable(part) or hasattr(part, "__dict__"))
