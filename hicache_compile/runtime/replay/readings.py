"""A denoiser whose own ``forward`` reads data on the host, traced as one graph.

Masks pick the tokens of a prompt, a switch tells whether there is a picture to start from: what the code reads is the
same in each step of a run. It is read while Dynamo traces, where it becomes a constant, and operators of the graph
check that it still holds.
"""

from __future__ import annotations

import enum
import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from traceback import FrameSummary
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode

from hicache_compile import internals
from hicache_compile.internals import TracingContext, has_free_unbacked_symbols, pytree
from hicache_compile.operators.random_numbers import random_numbers_kept
from hicache_compile.operators.readings import described, expect, of_size, tied
from hicache_compile.passes.graph import ops
from hicache_compile.runtime.replay.frames import with_own_code

JOINS = (torch.cat, torch.concat, torch.concatenate, torch.stack, torch.nn.functional.pad)
NUMBERS = (Tensor.item, Tensor.tolist, Tensor.__int__, Tensor.__float__, Tensor.__bool__, Tensor.__index__)
INDEXING = (Tensor.__getitem__, Tensor.__setitem__)
# Methods of tensors written in Python, which Dynamo knows as methods only.
IN_PYTHON = tuple(method for method in vars(Tensor).values() if isinstance(method, types.FunctionType))

_F = TypeVar("_F", bound=Callable[..., Any])


class Read(enum.IntEnum):
    """What is taken for constant, each with all above it."""

    NOTHING = 0
    JOINED = enum.auto()  # sizes of tokens that masks took apart, put together again: most often the same for all masks
    PICKED = enum.auto()  # sizes of what masks pick, and numbers
    SWITCHES = enum.auto()  # results of one truth value, on which code may branch


class _Tracing:
    """What ``comptime`` saw of Dynamo's tracing last, for the function that Dynamo calls next."""

    tensor: Any = None  # Dynamo's proxy
    is_own_code: Callable[[Sequence[FrameSummary]], bool] = bool  # whether a stack ends in the denoiser's own code


@contextmanager
def own_code(is_own_code: Callable[[Sequence[FrameSummary]], bool]) -> Iterator[None]:
    """Inside, only code whose stack is the denoiser's own is traced with constants."""
    _Tracing.is_own_code = is_own_code
    try:
        yield
    finally:
        _Tracing.is_own_code, _Tracing.tensor = bool, None


def _see(context: Any) -> None:
    _Tracing.tensor = context.get_local("tensor").as_proxy()


def _seen() -> Any:
    seen, _Tracing.tensor = _Tracing.tensor, None
    return seen


def _real(proxy: Any) -> Tensor:
    """The value of a tensor in this call. What it takes is computed, once and in order: what writes to a tensor does so
    before others read it."""
    cache = proxy.tracer.real_value_cache
    with torch.no_grad(), random_numbers_kept():
        for node in _needed(proxy.node):
            example = node.meta["grapharg"].example if node.op == "placeholder" else None
            if node not in cache and isinstance(example, Tensor) and not isinstance(example, nn.Parameter):
                cache[node] = example.detach().clone()  # it may be written to
            internals.get_real_value(node, proxy.tracer)
    return cast(Tensor, cache[proxy.node])


def _needed(node: fx.Node) -> list[fx.Node]:
    """``node``, what it is computed from, and what writes to any of that, in the order of the graph."""
    writers: dict[object, list[fx.Node]] = {}
    for each in node.graph.nodes:
        for target in ops.mutated(each):
            writers.setdefault(ops.storage(target), []).append(each)
    needed, waiting = set[fx.Node](), [node]
    while waiting:
        if (each := waiting.pop()) not in needed:
            needed.add(each)
            waiting += [*each.all_input_nodes, *writers.get(ops.storage(each), ())]
    return [each for each in node.graph.nodes if each in needed]


def constant(function: _F) -> _F:
    """``function``, which Dynamo calls as it traces, taking what it returns for constant."""
    if internals.READINGS:
        internals.assume_constant_result(function)  # which marks it
    return function


@constant
def _sizes_that_depend_on_data() -> tuple[int, ...]:
    """The sizes of the tensor that was seen, where they are no sizes of the denoiser's inputs; else nothing."""
    proxy = _seen()
    depends = has_free_unbacked_symbols(proxy.node.meta["example_value"])
    if not depends or not _Tracing.is_own_code(TracingContext.extract_stack()):
        return ()
    return tuple(_real(proxy).shape)


@constant
def _value() -> Any:
    return _as_tuples(_real(_seen()).tolist())


@constant
def _description() -> str:
    return described(_real(_seen()))


@constant
def _in_own_code() -> bool:
    return _Tracing.is_own_code(TracingContext.extract_stack())


def _as_tuples(value: Any) -> Any:
    return tuple(map(_as_tuples, value)) if isinstance(value, list) else value


def _as_lists(value: Any) -> Any:
    return [_as_lists(item) for item in value] if isinstance(value, tuple) else value


def _fixed(tensor: Any) -> Any:
    """``tensor``; where its sizes depend on data, they are those of this call."""
    if not isinstance(tensor, Tensor):
        return tensor
    internals.comptime(_see)
    sizes = _sizes_that_depend_on_data()
    return of_size(tensor, list(sizes)) if sizes else tensor


def _call(func: Any, args: Any, kwargs: Any) -> Any:
    if func in IN_PYTHON:
        return getattr(args[0], func.__name__)(*args[1:], **kwargs)
    return func(*args, **kwargs)


class Readings(TorchFunctionMode):
    """Inside, what the denoiser's own code reads of data is traced as constants.

    Args:
        kind: what of it, a ``Read``.
        expected: to which what checks the constants is added.
    """

    def __init__(self, kind: int, expected: list[Tensor]) -> None:
        super().__init__()
        self.kind = kind
        self.expected = expected

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.kind == Read.JOINED:
            return _fixed(_call(func, args, kwargs)) if func in JOINS else _call(func, args, kwargs)
        if func in NUMBERS and _in_own_code():
            return self._number(func, args[0])
        indexed = (args[0], self._index(args[1]), *args[2:]) if func in INDEXING else args
        return self._made(_call(func, indexed, kwargs))

    # A tensor that goes through here gets no name of ours: Dynamo names it after the variable it is stored in first.

    def _made(self, result: Any) -> Any:
        if type(result) in (tuple, list):
            return type(result)(map(_fixed, result))
        return self._switch(_fixed(result)) if self.kind == Read.SWITCHES else _fixed(result)

    def _switch(self, result: Any) -> Any:
        is_switch = isinstance(result, Tensor) and result.dtype == torch.bool and result.dim() == 0
        return self._number(Tensor.item, result) if is_switch and _in_own_code() else result

    def _number(self, func: Any, tensor: Tensor) -> Any:
        internals.comptime(_see)
        values = _description()
        self.expected.append(expect(tensor, values))
        internals.comptime(_see)
        value = _as_lists(_value())
        if func is Tensor.__int__:
            return int(value)
        if func is Tensor.__float__:
            return float(value)
        return bool(value) if func is Tensor.__bool__ else value

    def _index(self, index: Any) -> Any:
        if isinstance(index, tuple):
            return tuple([self._index(each) for each in index])
        if isinstance(index, slice):
            return slice(self._bound(index.start), self._bound(index.stop), self._bound(index.step))
        return index

    def _bound(self, bound: Any) -> Any:
        return self._number(Tensor.item, bound) if isinstance(bound, Tensor) else bound


def reading_frame(model: nn.Module, kind: Read) -> types.FunctionType:
    """A function that calls ``model``, with a code object of its own, for Dynamo to trace."""
    number = int(kind)

    def denoise(*args: Any, **kwargs: Any) -> Any:
        expected: list[Tensor] = []
        with Readings(number, expected):
            output = model(*args, **kwargs)
        if not expected:
            return output
        leaves, spec = pytree.tree_flatten(output)
        checked = [tied(leaf, expected) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        return pytree.tree_unflatten(checked, spec)

    return with_own_code(denoise)
