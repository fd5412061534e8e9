"""A short run of a denoiser on arguments of any form: an Euler sampler, which stops at the first exception."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from hicache_compile.frontend.compile import hicache_compile
from hicache_compile.frontend.denoiser import CompiledDenoiser
from hicache_compile.policy.run import DEFAULT_CONTEXT
from hicache_compile.runtime.call_arguments import SAMPLE_NAMES, time_argument
from hicache_compile.runtime.structure import flatten

Arguments = tuple[tuple[Any, ...], dict[str, Any]]
SEED = 0  # of what the denoiser itself draws
_LONGEST_TIME = 1000.0  # of denoisers whose time does not end at 1


@dataclass(frozen=True, slots=True)
class Attempt:
    """``compiled``: ``None`` where the policy was refused before. ``error``: what ended the run, if anything did."""

    compiled: CompiledDenoiser | None
    error: Exception | None


def attempt(
    model: nn.Module, policy: Any, options: Mapping[str, Any], calls: Mapping[str, Arguments], num_steps: int
) -> Attempt:
    """Compile ``model`` and sample ``num_steps`` with it; every step calls it once in each context of ``calls``.

    Args:
        calls: the arguments of the first step by context. The timestep falls evenly; the sample goes on by what is
            returned, where that has its shape.
    """
    compiled = None
    try:
        compiled = hicache_compile(model, policy, **options)
        _sample(compiled, calls, num_steps)
    except Exception as error:
        return Attempt(compiled, error)
    return Attempt(compiled, None)


def _sample(compiled: CompiledDenoiser, calls: Mapping[str, Arguments], num_steps: int) -> None:
    signature = inspect.signature(compiled._orig_mod.forward)
    bound = {context: _Bound(signature, *call) for context, call in calls.items()}
    leaves = flatten(list(calls.values()))[0]
    grad = any(isinstance(leaf, torch.Tensor) and leaf.requires_grad for leaf in leaves)  # refused, which is the case
    with torch.set_grad_enabled(grad), torch.random.fork_rng(), compiled.trajectory(num_steps, compiled.policy.times):
        torch.manual_seed(SEED)
        for step in range(num_steps):
            for context, call in bound.items():
                call.at(step / num_steps)
                with nullcontext() if context == DEFAULT_CONTEXT else compiled.cache_context(context):
                    call.follow(compiled(*call.args, **call.kwargs), num_steps)


class _Bound:
    """The arguments of the next call, given in order and by name as those of the first were."""

    def __init__(self, signature: inspect.Signature, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.args, self.kwargs = list(args), dict(kwargs)
        names = [p.name for p in signature.parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
        self._places: dict[str, int | str] = {
            **dict(zip(names, range(len(args)), strict=False)),
            **{n: n for n in kwargs},
        }
        self._time, moment = time_argument(self._all())
        self._longest = _longest(moment)

    def _all(self) -> dict[str, Any]:
        return {name: self._get(place) for name, place in self._places.items()}

    def _get(self, place: int | str) -> Any:
        return self.args[place] if isinstance(place, int) else self.kwargs[place]

    def _set(self, name: str, value: Any) -> None:
        place = self._places[name]
        if isinstance(place, int):
            self.args[place] = value
        else:
            self.kwargs[place] = value

    def at(self, done: float) -> None:
        """Set the timestep to where the share ``done`` of the run is over."""
        moment, now = self._all().get(self._time), self._longest * (1 - done)
        if isinstance(moment, torch.Tensor):
            self._set(self._time, torch.full_like(moment, now))
        elif isinstance(moment, int | float) and not isinstance(moment, bool):
            self._set(self._time, type(moment)(now))

    def follow(self, output: Any, num_steps: int) -> None:
        """Move the sample along ``output``."""
        velocity = next((leaf for leaf in flatten(output)[0] if isinstance(leaf, torch.Tensor)), None)
        given = self._all()
        for name in (*SAMPLE_NAMES, *given):
            sample = given.get(name)
            if isinstance(sample, torch.Tensor) and velocity is not None and sample.shape == velocity.shape:
                self._set(name, (sample - velocity / num_steps).to(sample.dtype))
                return


def _longest(moment: Any) -> float:
    """The time that runs begin at, of which ``moment`` is one."""
    values = moment if isinstance(moment, torch.Tensor) else torch.as_tensor(moment or 0)
    one = values.is_floating_point() and values.numel() > 0 and not values.is_meta and float(values.max()) <= 1
    return 1.0 if one else _LONGEST_TIME - 1
