"""What a callback of a pipeline's call did: a call that it steers cannot be made again without it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Any

import torch

CALLBACKS = ("callback_on_step_end", "callback")


class WatchedCallback:
    """Calls ``callback``, and notes whether it changed anything: a tensor that it was given, what it handed back, an
    attribute of the pipeline, or what ``changes`` tells of its denoisers."""

    def __init__(self, callback: Callable[..., Any], changes: Callable[[], Hashable]) -> None:
        self._callback = callback
        self._changes = changes
        self.steered = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        before = self._state(args)
        returned = self._callback(*args, **kwargs)
        given = {id(tensor) for tensor in _tensors(args)}
        handed_back = all(id(tensor) in given for tensor in _tensors((returned,)))
        self.steered |= not handed_back or before != self._state(args)
        return returned

    def _state(self, args: tuple[Any, ...]) -> Hashable:
        versions = [(id(tensor), tensor._version) for tensor in _tensors(args) if not tensor.is_inference()]
        held = [(name, _comparable(value)) for name, value in getattr(args[0], "__dict__", {}).items()] if args else []
        return tuple(versions), tuple(held), self._changes()


def watched(kwargs: Mapping[str, Any], changes: Callable[[], Hashable]) -> tuple[dict[str, Any], list[WatchedCallback]]:
    """``kwargs`` of a call with its callbacks watched, and these; those made to steer (diffusers' ``PipelineCallback``)
    are left as they are, and count as such."""
    found: dict[str, WatchedCallback] = {}
    for name in CALLBACKS:
        callback = kwargs.get(name)
        if callback is not None:
            found[name] = WatchedCallback(callback, changes)
            found[name].steered = hasattr(callback, "tensor_inputs")
    replaced = {name: each for name, each in found.items() if not each.steered}
    return {**kwargs, **replaced}, list(found.values())


def length_of(pipeline: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int | None:
    """The steps that a call of ``pipeline`` asks for, by its own defaults; ``None`` where nothing says it."""
    signature = inspect.signature(type(pipeline).__call__)
    try:
        given = signature.bind(pipeline, *args, **kwargs)
    except TypeError:
        return None
    given.apply_defaults()
    for name in ("sigmas", "timesteps"):
        if given.arguments.get(name) is not None:
            return len(given.arguments[name])
    return given.arguments.get("num_inference_steps")


def _tensors(values: Any) -> Iterator[torch.Tensor]:
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, dict):
            yield from _tensors(value.values())


def _comparable(value: Any) -> Hashable:
    return value if isinstance(value, bool | int | float | str | type(None)) else id(value)
