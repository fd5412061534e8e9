"""Steps without Dynamo: what its guards let through once in a run is called again directly.

Dynamo's guards and its gathering of inputs walk the whole module tree, which on FLUX takes longer than launching a
forecast step. They run at the first step of every run and of every signature of a call; the steps after it check

- the arguments: types, shapes, strides, dtypes, devices, which of them are one tensor, and every plain value;
- torch's global state: autocast, default dtype, determinism, modes; the denoiser's training flag;
- the weights: the version of each (in ``dispatch``), where the first and the last live, and what the denoiser's
  methods and the registration of any module, parameter or buffer changed since;
- the attributes of its modules (see ``attributes``).

Anything else that changes in the middle of a run (a forward hook, one parameter's ``.data``) is noticed at the next
run. A call that changes Python state, or whose graph breaks, always goes through
Dynamo.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.modules import module as modules

from hicache_compile import internals
from hicache_compile.runtime.replay.call_signature import UnknownArgumentError, signature_of
from hicache_compile.runtime.replay.parameters import Parameters
from hicache_compile.runtime.structure import flatten

KEPT = 8  # signatures of a call that one run may have; beyond, the oldest is forgotten

_registered = itertools.count()
_registrations = next(_registered)


def _count_registration(*_: Any) -> None:
    global _registrations  # noqa: PLW0603  # one counter for the process: modules may be anywhere
    # A module made in a forward: Dynamo traces this, would guard on the count, and compile every call anew.
    if not torch.compiler.is_compiling():
        _registrations = next(_registered)


modules.register_module_module_registration_hook(_count_registration)
modules.register_module_parameter_registration_hook(_count_registration)
modules.register_module_buffer_registration_hook(_count_registration)


def registrations() -> int:
    """Different after any module anywhere was given a submodule, a parameter or a buffer."""
    return _registrations


@dataclass(frozen=True, slots=True)
class GraphCall:
    """What Dynamo handed to a captured graph in a step, and what the graph returned."""

    replay: Callable[[Sequence[Any], Parameters], Any]
    parameters: Parameters
    inputs: Sequence[Any]
    outputs: Sequence[Any]


class Replay:
    """One call, to be made again with other tensors.

    Args:
        call: the only graph that ran in it.
        tensors: the tensors among its arguments.
        output: what the denoiser returned.
        changes: of the denoiser so far.

    Raises:
        UnknownArgumentError: its outputs are not those of the graph.
    """

    def __init__(self, call: GraphCall, tensors: Sequence[torch.Tensor], output: Any, changes: Hashable) -> None:
        place = {id(tensor): index for index, tensor in enumerate(tensors)}
        self._call, self._parameters = call.replay, call.parameters
        self._inputs = [None if id(given) in place else given for given in call.inputs]
        self._given = [(index, place[id(given)]) for index, given in enumerate(call.inputs) if id(given) in place]
        made = {id(value): index for index, value in enumerate(call.outputs) if isinstance(value, torch.Tensor)}
        returned, self._build = flatten(output)
        self._returned = [_origin(value, made, place) for value in returned]
        self._changes = changes
        self._global_state = internals.GlobalStateGuard()
        ends = (*call.parameters.tensors[:1], *call.parameters.tensors[-1:])
        self._ends = [(parameter, _address(parameter)) for parameter in ends]

    def is_valid(self, changes: Hashable) -> bool:
        """Whether nothing changed that the call's signature does not show."""
        return (
            self._changes == changes
            and self._global_state.check()
            and all(_address(weight) == address for weight, address in self._ends)
        )

    def __call__(self, tensors: Sequence[torch.Tensor]) -> Any:
        inputs = self._inputs.copy()
        for index, place in self._given:
            inputs[index] = tensors[place]
        outputs = self._call(inputs, self._parameters)
        values = [outputs[at] if made else tensors[at] if made is False else at for made, at in self._returned]
        return self._build(values)


class Replays:
    """The calls of one run in one context that can be made again, by signature."""

    def __init__(self) -> None:
        self._known: dict[Hashable, Replay] = {}

    def find(self, signature: Hashable, changes: Hashable) -> Replay | None:
        replay = self._known.get(signature)
        if replay is None or replay.is_valid(changes):
            return replay
        del self._known[signature]
        return None

    def keep(self, signature: Hashable, replay: Replay) -> None:
        while len(self._known) >= KEPT:
            del self._known[next(iter(self._known))]
        self._known[signature] = replay

    def clear(self) -> None:
        self._known.clear()


def signature_of_call(
    args: Sequence[Any], kwargs: Mapping[str, Any], training: bool
) -> tuple[Hashable, list[torch.Tensor]]:
    """The signature of a call and the tensors in it; ``None`` for a call that cannot be made again."""
    tensors: list[torch.Tensor] = []
    if not internals.REPLAY or internals.len_torch_function_stack() or internals.is_torch_function_mode_enabled():
        return None, tensors
    try:
        return (training, torch.is_inference_mode_enabled(), signature_of((args, dict(kwargs)), tensors)), tensors
    except UnknownArgumentError:
        return None, tensors


def _address(weight: torch.Tensor) -> Hashable:
    return weight.data_ptr(), weight.dtype


def _origin(value: Any, made: Mapping[int, int], given: Mapping[int, int]) -> tuple[bool | None, Any]:
    """Where a returned value comes from: the graph (True), the arguments (False), or it is always the same (None)."""
    if isinstance(value, torch.Tensor):
        if id(value) in made:
            return True, made[id(value)]
        if id(value) in given:
            return False, given[id(value)]
    elif isinstance(value, type(None) | bool | int | float | str):
        return None, value
    raise UnknownArgumentError(type(value).__name__)
