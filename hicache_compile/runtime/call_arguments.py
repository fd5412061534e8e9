"""The arguments of one call of the denoiser, as the step counter asks for them."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from hicache_compile.runtime.session import Session

TIME_NAMES = ("timestep", "timesteps", "t", "sigma", "sigmas", "time")


@dataclass(frozen=True, slots=True)
class DenoiserCall:
    """The arguments of one call, read only where the step counter needs them."""

    session: Session
    signature: inspect.Signature
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def arguments(self) -> Mapping[str, Any]:
        return self.signature.bind_partial(*self.args, **self.kwargs).arguments

    def time(self) -> float | None:
        return time_of(self.arguments(), self.session)


def time_of(arguments: Mapping[str, Any], session: Session) -> float | None:
    """The timestep, read back from the device: outside a known run it tells where one starts."""
    value = next((arguments[name] for name in TIME_NAMES if arguments.get(name) is not None), None)
    if isinstance(value, torch.Tensor):
        session.syncs += value.device.type != "cpu"
        return float(value.max())
    return None if value is None else float(value)
