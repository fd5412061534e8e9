"""The arguments of one call of the denoiser, as following a run asks for them."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import cache, cached_property
from typing import Any, Protocol

import torch

TIME_NAMES = ("timestep", "timesteps", "t", "sigma", "sigmas", "time", "r")
TIME_WORDS = {"timestep", "time", "sigma"}  # of other names, like timestep_ratio
NO_TIMES = {"ids", "cond", "emb", "embeds", "proj"}  # of names like added_time_ids, which are not a time
SAMPLE_NAMES = ("hidden_states", "sample", "x", "latents", "z")


class Call(Protocol):
    """One call of the denoiser; nothing of it is read from a device here."""

    def arguments(self) -> Mapping[str, Any]:
        """Its arguments by name."""
        ...


class DenoiserCall:
    """A call of a denoiser whose ``forward`` has ``signature``."""

    def __init__(self, signature: inspect.Signature, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._signature, self._args, self._kwargs = signature, args, kwargs

    @property
    def given(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments in order, and by name."""
        return self._args, self._kwargs

    @cached_property
    def _bound(self) -> Mapping[str, Any]:
        return by_name(self._signature, self._args, self._kwargs)

    def arguments(self) -> Mapping[str, Any]:
        return self._bound


def by_name(signature: inspect.Signature, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call by name, those that ``**kwargs`` takes among them; of a ``forward`` that was replaced by
    one with other parameters, those that were given by name."""
    try:
        arguments = dict(signature.bind_partial(*args, **kwargs).arguments)
    except TypeError:
        return dict(kwargs)
    for name, parameter in signature.parameters.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            arguments |= arguments.pop(name, {})
    return arguments


@cache  # asked in every step
def time_names(names: tuple[str, ...]) -> tuple[str, ...]:
    """Those of ``names`` that may be of a timestep: the usual ones first, then those with a word of time in them."""
    words = {name: set(name.split("_")) for name in names}
    others = [name for name in names if words[name] & TIME_WORDS and not words[name] & NO_TIMES]
    return tuple(dict.fromkeys([*(name for name in TIME_NAMES if name in words), *others]))


def time_argument(arguments: Mapping[str, Any]) -> tuple[str, Any]:
    """The name of the timestep and the timestep as it was given; ``("", None)`` where there is none."""
    found = (name for name in time_names(tuple(arguments)) if arguments[name] is not None)
    return next(((name, arguments[name]) for name in found), ("", None))


def as_number(moment: Any) -> tuple[float, bool]:
    """A timestep as a number, the mean where each frame or sample has its own; and whether a device was waited for."""
    if isinstance(moment, torch.Tensor):
        return float(moment.double().mean()), moment.device.type != "cpu"
    return float(moment), False
