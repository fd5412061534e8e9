"""What a call writes to in place, and whether it draws random numbers: by its schema, or seen by running it.

An operator has a schema. A Python function (``F.leaky_relu(x, 0.1, True)``, ``F.gumbel_softmax``, ``F.batch_norm``) has
none, so it is run once on the fake values that Dynamo recorded, and the operators that it calls are read.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any
from weakref import WeakKeyDictionary

import torch

from hicache_compile import internals
from hicache_compile.internals import FakeTensor, OpOverload, OpOverloadPacket, TorchDispatchMode, pytree

# The schemas of these do not say that training updates their running statistics.
_NORMS = frozenset({"native_batch_norm", "cudnn_batch_norm", "miopen_batch_norm"})
_RUNNING = ("running_mean", "running_var")


@dataclass(frozen=True, slots=True)
class Effects:
    """``written``: places, among the tensors of a call in their order, of those that it writes to."""

    written: tuple[int, ...] = ()
    random: bool = False


@cache
def overloads(target: Any, name: str) -> tuple[OpOverload, ...]:
    """The operators that ``target``, called ``name``, may be: its own, or those of ATen with this name."""
    if isinstance(target, OpOverload):
        return (target,)
    packet = target if isinstance(target, OpOverloadPacket) else getattr(torch.ops.aten, name, None)
    return tuple(getattr(packet, overload) for overload in packet.overloads()) if packet is not None else ()


def has_schema(target: Any) -> bool:
    """Whether ``target`` is an operator itself, not a function of this name."""
    return isinstance(target, OpOverload | OpOverloadPacket)


def written_arguments(overload: OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Iterator[Any]:
    """The arguments that a call writes to in place."""
    named = dict(_bound(overload, args, kwargs))
    for argument in overload._schema.arguments:
        if argument.alias_info is not None and argument.alias_info.is_write:
            yield named.get(argument.name)
    if overload._schema.name.partition("::")[2] in _NORMS and named.get("training"):
        yield from (named.get(name) for name in _RUNNING)


def draws(overload: OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether a call draws random numbers: dropout of nothing and a layer outside training do not."""
    if torch.Tag.nondeterministic_seeded not in overload.tags:
        return False
    named = dict(_bound(overload, args, kwargs))
    return all(bool(named[name]) for name in ("dropout_p", "training", "train") if named.get(name) is not None)


def _bound(overload: OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for place, argument in enumerate(overload._schema.arguments):
        default = argument.default_value if argument.has_default_value() else None
        yield argument.name, args[place] if place < len(args) else kwargs.get(argument.name, default)


def written_by_triton(call: Mapping[str, Any]) -> list[str]:
    """The arguments that a user's Triton kernel writes to, ``call`` being those of Dynamo's node; all of them, where
    that cannot be read off its code."""
    if not internals.TRITON:
        return list(call["kwargs"])
    descriptors = call.get("tma_descriptor_metadata", {})
    return internals.get_mutated_tensors(call["kernel_idx"], call["constant_args_idx"], call["kwargs"], descriptors)


_seen: WeakKeyDictionary[Callable[..., Any], dict[Hashable, Effects]] = WeakKeyDictionary()


def seen(function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Effects | None:
    """The effects of a Python function that was called with fake values; ``None``: it could not be run on them.

    Calls that differ in the sizes of tensors alone have the same effects.
    """
    leaves, spec = pytree.tree_flatten((tuple(args), dict(kwargs)))
    tensors = [value for value in leaves if isinstance(value, FakeTensor)]
    if not tensors:
        return None
    known, key = _seen.setdefault(function, {}), (spec, *map(_key, leaves))
    if key not in known:
        found = _run(function, args, kwargs, tensors)
        if found is None:
            return None
        known[key] = found
    return known[key]


def _key(value: Any) -> Hashable:
    if isinstance(value, torch.Tensor):
        return torch.Tensor, value.dtype, value.dim()
    constant = isinstance(value, bool | int | float | str | None)
    return (type(value), value if constant else None)


def _run(
    function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], tensors: Sequence[FakeTensor]
) -> Effects | None:
    recorder, fake = _Recorder(tensors), tensors[0].fake_mode
    try:
        with torch.no_grad(), fake, recorder, fake.shape_env.suppress_guards() if fake.shape_env else nullcontext():
            function(*args, **kwargs)
    except Exception:  # whatever a function raises that is run outside of the graph it was traced in
        return None
    return Effects(tuple(sorted(recorder.written)), recorder.random)


class _Recorder(TorchDispatchMode):
    """Records what operators do to ``tensors``."""

    def __init__(self, tensors: Sequence[torch.Tensor]) -> None:
        super().__init__()
        self._places: dict[int, list[int]] = {}
        for place, tensor in enumerate(tensors):
            self._places.setdefault(tensor.untyped_storage()._cdata, []).append(place)
        self.written: set[int] = set()
        self.random = False

    def __torch_dispatch__(
        self, func: OpOverload, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        named = kwargs or {}
        self.random |= draws(func, args, named)
        for value in pytree.tree_leaves(list(written_arguments(func, args, named))):
            if isinstance(value, torch.Tensor):
                self.written.update(self._places.get(value.untyped_storage()._cdata, ()))
        return func(*args, **named)
