"""The arguments of one call of a denoiser as plain data: shapes, dtypes and strides, but not what is in them.

Of a tensor of at most four elements, as timesteps and guidance scales are, the values are kept: they say how a run is
followed. Of larger tensors of integers and booleans the least and the greatest are, so that indices stay within tables.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from hicache_compile.errors import HiCacheError

FEW = 4  # elements of a tensor whose values are kept
_PLAIN = (type(None), bool, int, float, str)


def described(value: Any) -> Any:
    """``value``, an argument or what is in one, as data for JSON."""
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, torch.Tensor | torch.dtype):
        return {"tensor": _tensor(value)} if isinstance(value, torch.Tensor) else {"dtype": _name(value)}
    if isinstance(value, Mapping):
        return {"dict": [[described(key), described(item)] for key, item in value.items()]}
    if isinstance(value, tuple):
        return {"tuple": [described(item) for item in value]}
    if isinstance(value, list):
        return [described(item) for item in value]
    return {"other": f"{type(value).__module__}.{type(value).__qualname__}"}


def _tensor(value: torch.Tensor) -> dict[str, Any]:
    found = form(value.shape, value.stride(), value.dtype, value.device, value.requires_grad)
    whole = not value.is_floating_point() and not value.is_complex()
    if value.is_meta or not value.numel() or type(value) not in (torch.Tensor, torch.nn.Parameter):
        return found
    data = value.detach()
    if value.numel() <= FEW and not value.is_complex():
        return {**found, "values": data.flatten().tolist()}
    return {**found, "low": int(data.min()), "high": int(data.max())} if whole else found


def form(
    shape: Sequence[int], strides: Sequence[int], dtype: torch.dtype, device: torch.device, requires_grad: bool
) -> dict[str, Any]:
    """What a tensor looks like from outside, as data for JSON."""
    return {
        "shape": list(shape),
        "strides": list(strides),
        "dtype": _name(dtype),
        "device": str(device),
        "requires_grad": requires_grad,
    }


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def remade(data: Any, device: torch.device, place: str = "inputs") -> Any:
    """A value like the one that ``described`` was given, with random numbers in its tensors, on ``device``.

    Raises:
        HiCacheError: it held an object of a class that is none of tensors, numbers, texts, lists, tuples and dicts.
    """
    if isinstance(data, list):
        return [remade(item, device, place) for item in data]
    if not isinstance(data, dict):
        return data
    ((kind, held),) = data.items()
    if kind == "tensor":
        return _tensor_like(held, device)
    if kind == "dtype":
        return getattr(torch, held)
    if kind == "tuple":
        return tuple(remade(item, device, place) for item in held)
    if kind == "dict":
        return {remade(key, device, place): remade(item, device, f"{place}.{key}") for key, item in held}
    raise HiCacheError(f"{place} is a {held}: must be of tensors and plain values to be made again")


def _tensor_like(data: Mapping[str, Any], device: torch.device) -> torch.Tensor:
    shape, strides, dtype = data["shape"], data["strides"], getattr(torch, data["dtype"])
    spanned = 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True)) if all(shape) else 0
    if "values" in data:
        made = torch.zeros(spanned, dtype=dtype).as_strided(shape, strides)
        for index, value in zip(_indices(shape), data["values"], strict=True):
            made[index] = value
    else:
        made = _random(spanned, dtype, data).as_strided(shape, strides)
    return made.to(device).requires_grad_(data["requires_grad"])


def _indices(shape: Sequence[int]) -> list[tuple[int, ...]]:
    return [tuple(map(int, index)) for index in torch.ones(tuple(shape)).nonzero()]


def _random(count: int, dtype: torch.dtype, data: Mapping[str, Any]) -> torch.Tensor:
    """``[count]`` numbers: normal ones, or integers from ``low`` to ``high``."""
    if dtype.is_floating_point or dtype.is_complex:
        return torch.randn(count, dtype=dtype if dtype.is_complex else torch.float32).to(dtype)
    return torch.randint(data.get("low", 0), data.get("high", 1) + 1, (count,)).to(dtype)
