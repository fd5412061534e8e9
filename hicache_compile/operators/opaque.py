"""A submodule as one operator: in a graph, the call of a submodule that Dynamo cannot trace.

``opaque(name, args, kwargs)`` runs the submodule ``name`` with its own code. What its outputs look like is known from
calls that were recorded: a size that was one of the inputs' sizes then is that one now, every other size is fixed.
Where it returns anything else, ``OutputChangedError`` is raised before a value leaves the operator.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, register_flop_formula

from hicache_compile.internals import pytree
from hicache_compile.operators.random_numbers import drawn_from
from hicache_compile.operators.recorded_call import Output, RecordedCall, Sizes

PLAIN = (type(None), bool, int, float, str, torch.dtype, torch.device)

_numbers = itertools.count()
_MODULES: weakref.WeakValueDictionary[str, OpaqueModule] = weakref.WeakValueDictionary()
_FORMS: weakref.WeakValueDictionary[str, CallForm] = weakref.WeakValueDictionary()


class NotOpaqueError(Exception):
    """A submodule cannot be one operator; the message says why."""


class OutputChangedError(Exception):
    """A submodule returned tensors of other sizes than the calls that were recorded of it say."""


class OpaqueModule:
    """A submodule of a denoiser that is one operator of its graph.

    Args:
        path: of the submodule.
        module: the submodule.
        why: the code that Dynamo cannot trace.

    ``compute`` is its own ``forward``, which may be compiled by itself.
    """

    def __init__(self, path: str, module: nn.Module, why: str = "") -> None:
        self.path = path
        self.why = why
        self.name = f"{path}@{next(_numbers)}"
        self.module = module
        self.compute: Callable[..., Any] = module.forward
        self.calls: list[RecordedCall] = []
        self.output: pytree.TreeSpec | None = None
        self.constants: tuple[Any, ...] = ()  # the leaves of its output that are no tensors
        self.written: set[str] = set()  # parameters and buffers that it writes to itself
        self.random = False  # it drew random numbers
        self.forms: dict[Any, CallForm] = {}
        self._expected: dict[tuple[torch.Size, ...], list[Output]] = {}
        _MODULES[self.name] = self

    def record(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Call the submodule and remember what it returned.

        Raises:
            NotOpaqueError: one operator cannot do what this call does.
        """
        leaves = pytree.tree_leaves((args, kwargs))
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        if not tensors or not _plain(leaves):
            raise NotOpaqueError("it takes more than tensors and plain values")
        before = [tensor._version for tensor in tensors if not tensor.is_inference()]
        held, drawn = self._versions(), drawn_from()
        with FlopCounterMode(display=False) as counter:
            result = self.compute(*args, **kwargs)
        self.random |= drawn_from() != drawn
        self.written |= {name for name, _ in self._versions() - held}
        if before != [tensor._version for tensor in tensors if not tensor.is_inference()]:
            raise NotOpaqueError("it writes to its arguments")
        returned, spec = pytree.tree_flatten(result)
        if not _plain(returned):
            raise NotOpaqueError("it returns more than tensors and plain values")
        constants = tuple(None if isinstance(leaf, Tensor) else (leaf,) for leaf in returned)
        if self.calls and (spec, constants) != (self.output, self.constants):
            raise NotOpaqueError("what it returns differs between its calls")
        made = [leaf for leaf in returned if isinstance(leaf, Tensor)]
        given = tuple(tuple(tensor.shape) for tensor in tensors)
        forms = tuple((tuple(tensor.shape), tensor.dtype, tensor.device) for tensor in made)
        if any(call.given == given and call.returned != forms for call in self.calls):
            raise NotOpaqueError("the sizes of what it returns depend on data")
        if all(call.given != given for call in self.calls):
            self.calls.append(RecordedCall(given, forms, int(counter.get_total_flops())))
            self._expected.clear()
        self.output, self.constants = spec, constants
        return result

    def weights(self) -> list[Tensor]:
        """The parameters and buffers that only others write to."""
        return [tensor for name, tensor in self._state() if name not in self.written]

    def _state(self) -> Iterator[tuple[str, Tensor]]:
        yield from self.module.named_parameters()
        yield from self.module.named_buffers()

    def _versions(self) -> set[tuple[str, tuple[int, int]]]:
        return {(name, (id(t), 0 if t.is_inference() else t._version)) for name, t in self._state()}

    def like(self, given: Sequence[Sizes]) -> RecordedCall:
        """The recorded call nearest to one with inputs of the sizes ``given``."""

        def distance(call: RecordedCall) -> tuple[bool, int]:
            pairs = [
                (a, b) for one, two in zip(call.given, given, strict=False) for a, b in zip(one, two, strict=False)
            ]
            return list(map(len, call.given)) != list(map(len, given)), sum(_hint(b) != a for a, b in pairs)

        return min(self.calls, key=distance)

    def expected(self, given: tuple[torch.Size, ...]) -> list[Output]:
        """What a call with inputs of the sizes ``given`` returns, looked up where a step asks again."""
        if given not in self._expected:
            self._expected[given] = self.like(given).outputs(given)
        return self._expected[given]

    def form(self, leaves: Sequence[Any], spec: pytree.TreeSpec) -> CallForm:
        """How a call with these arguments is made again from its tensors and sizes."""
        kinds = tuple(_kind(leaf) for leaf in leaves)
        key = (spec, kinds)
        if key not in self.forms:
            self.forms[key] = CallForm(self, spec, kinds, len(self.forms))
        return self.forms[key]


class CallForm:
    """The calls of ``module`` that differ in no more than tensors and integers."""

    def __init__(self, module: OpaqueModule, spec: pytree.TreeSpec, kinds: Sequence[Any], number: int) -> None:
        self._module = weakref.ref(module)  # which keeps this one
        self.name = f"{module.name}:{number}"
        self._spec = spec
        self._kinds = kinds
        _FORMS[self.name] = self

    @property
    def module(self) -> OpaqueModule:
        """The submodule that is called."""
        found = self._module()
        assert found is not None  # its graph runs
        return found

    def run(self, tensors: Sequence[Tensor], sizes: Sequence[int]) -> list[Tensor]:
        """The tensors the submodule returns, none of which is a view of another or of an argument.

        Raises:
            OutputChangedError: they are not what the recorded calls say.
        """
        waiting = {Tensor: iter(tensors), int: iter(sizes)}
        leaves = [next(waiting[kind]) if kind in waiting else kind[0] for kind in self._kinds]
        args, kwargs = pytree.tree_unflatten(leaves, self._spec)
        found = [leaf for leaf in pytree.tree_leaves(self.module.compute(*args, **kwargs)) if isinstance(leaf, Tensor)]
        if [(list(made.shape), made.dtype, made.device) for made in found] != self.module.expected(
            tuple(t.shape for t in tensors)
        ):
            raise OutputChangedError(f"{self.module.path} returned tensors of other sizes than before")
        taken = {_storage(tensor) for tensor in tensors}
        owned = []
        for made in found:
            own = made.clone(memory_format=torch.contiguous_format) if _storage(made) in taken else made.contiguous()
            taken.add(_storage(own))
            owned.append(own)
        return owned

    def fake(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Tensors without data like those that ``run`` returns."""
        given = [tensor.shape for tensor in tensors]
        outputs = self.module.like(given).outputs(given)
        return [torch.empty(sizes, dtype=dtype, device=device) for sizes, dtype, device in outputs]


def opaque(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, ...]:
    """The tensors among what the submodule ``name`` returns. A node of the graph."""
    leaves, spec = pytree.tree_flatten((args, kwargs))
    form = _MODULES[name].form(leaves, spec)
    tensors = [leaf for leaf in leaves if _kind(leaf) is Tensor]
    sizes = [leaf for leaf in leaves if _kind(leaf) is int]
    return tuple(torch.ops.hicache.opaque(tensors, sizes, form.name))


torch.compiler.allow_in_graph(opaque)


def opaque_modules(names: Sequence[str]) -> list[tuple[str, str]]:
    """The path of each submodule that is called under one of ``names``, once, and the code that Dynamo cannot trace."""
    found = [_MODULES[name] for name in names if name in _MODULES]
    return list(dict.fromkeys((module.path, module.why) for module in found))


def module_of(name: str) -> OpaqueModule:
    """The submodule that ``opaque(name, ...)`` calls."""
    return _MODULES[name]


@torch.library.custom_op(
    "hicache::opaque",
    mutates_args=(),
    schema="(Tensor[] tensors, SymInt[] sizes, str form) -> Tensor[]",
    tags=(torch.Tag.cudagraph_unsafe,),
)
def _opaque(tensors: list[Tensor], sizes: list[int], form: str) -> list[Tensor]:
    return _FORMS[form].run(tensors, sizes)


@_opaque.register_fake
def _(tensors: list[Tensor], sizes: list[int], form: str) -> list[Tensor]:
    return _FORMS[form].fake(tensors)


@register_flop_formula(torch.ops.hicache.opaque)
def _flops(tensors: Sequence[Sizes], sizes: Sequence[int], form: str, *_: Any, **__: Any) -> int:
    call = _FORMS[form].module.like(tensors)
    numbers = [sum(torch.Size(sizes).numel() for sizes in given) for given in (tensors, call.given)]
    return call.flops * numbers[0] // max(1, numbers[1])


def _plain(leaves: Sequence[Any]) -> bool:
    return all(isinstance(leaf, Tensor) or type(leaf) in PLAIN for leaf in leaves)


def _kind(leaf: Any) -> Any:
    """``Tensor``, ``int`` for a number that may vary, or the constant in a tuple."""
    if isinstance(leaf, Tensor):
        return Tensor
    return int if isinstance(leaf, torch.SymInt) or type(leaf) is int else (leaf,)


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _hint(size: Any) -> Any:
    """A size as a number, also where it varies in the graph."""
    return size.node.hint if isinstance(size, torch.SymInt) else size
