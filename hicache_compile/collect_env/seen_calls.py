"""What a compiled denoiser was called with: read off an error's frames, else what a run keeps of its first call."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
from torch import nn

from hicache_compile.collect_env.arguments import described, form
from hicache_compile.frontend.denoiser import CompiledDenoiser
from hicache_compile.frontend.handle import Handle
from hicache_compile.policy.run import DEFAULT_CONTEXT
from hicache_compile.runtime.session import Session

_CALL = CompiledDenoiser._call_compiled.__code__
_STEP = Session._run_step.__code__


@dataclass(frozen=True, slots=True)
class SeenCall:
    """One call: ``inputs`` as data, the guidance branch and the step it was made in; ``num_steps`` of the run, if
    known. ``model``: which was called, where that was seen."""

    inputs: dict[str, Any]
    context: str = DEFAULT_CONTEXT
    step: int | None = None
    num_steps: int | None = None
    model: CompiledDenoiser | None = None


def call_data(args: Any, kwargs: Any) -> dict[str, Any]:
    """The arguments of a call as data for JSON."""
    return {"args": [described(one) for one in args], "kwargs": {name: described(one) for name, one in kwargs.items()}}


def of_error(error: BaseException, model: nn.Module | Handle | None = None) -> SeenCall | None:
    """The call of ``model``, by default of any compiled denoiser, that ended in ``error``; ``None`` where there is none
    in its traceback."""
    found: SeenCall | None = None
    for frame in _frames(error):
        held = frame.f_locals
        if frame.f_code is _CALL and (model is None or held["self"] is model):
            found = SeenCall(call_data(held["args"], held["kwargs"]), model=held["self"])
        elif frame.f_code is _STEP and found is not None and found.step is None and "current" in held:
            step = held["current"]
            found = SeenCall(found.inputs, step.context.name, step.index, step.num_steps, found.model)
    return found


def _frames(error: BaseException) -> Iterator[FrameType]:
    traceback = error.__traceback__
    while traceback is not None:
        yield traceback.tb_frame
        traceback = traceback.tb_next


def of_newest_run(model: Handle) -> dict[str, SeenCall]:
    """By context, the first call of the newest run in this thread; none of contexts that do not know it.

    What was in its tensors is not kept anywhere.
    """
    calls = {name: model._session.contexts[name].first_call for name in newest_contexts(model)}
    return {name: _first(name, call) for name, call in calls.items() if call is not None}


def newest_contexts(model: Handle) -> list[str]:
    """The contexts of the newest run in this thread."""
    contexts = model._session.contexts
    newest = max((context.trajectory for context in contexts.values()), default=-1)
    return [name for name, context in contexts.items() if context.trajectory == newest]


def _first(context: str, signature: Any) -> SeenCall:
    args, kwargs = _described(signature[2], [])["tuple"]  # after the training flag and the inference mode
    return SeenCall({"args": args["tuple"], "kwargs": dict(kwargs["dict"])}, context)


def _described(signature: Any, tensors: list[Any]) -> Any:
    """What ``call_signature.signature_of`` made, as ``arguments.described`` describes the value it was made of."""
    if isinstance(signature, int):
        return tensors[signature]
    kind = signature[0]
    if isinstance(kind, torch.Size) and len(signature) > 2:
        tensors.append({"tensor": form(*signature[:5])})
        return tensors[-1]
    if kind is tuple or kind is list:
        items = [_described(item, tensors) for item in signature[1]]
        return items if kind is list else {"tuple": items}
    if kind is dict:
        return {"dict": [[key, _described(item, tensors)] for _, key, item in signature[1]]}
    return described(signature[1])
