"""Hashable signature of call arguments: everything Dynamo would guard on."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import torch

from hicache_compile import internals

_PLAIN = (type(None), bool, int, float, str, torch.dtype, torch.device, torch.Size)


class UnknownArgumentError(Exception):
    """An argument of a type that has no signature."""


def signature_of(value: Any, tensors: list[torch.Tensor]) -> Hashable:
    """A hashable that is equal for two values a compiled program cannot tell apart but for their tensors' numbers.

    Args:
        value: tensors and plain values in lists, tuples and dicts.
        tensors: its tensors are appended to these. One that came before is told by its place there.

    Raises:
        UnknownArgumentError: something in it is of another type.
    """
    if type(value) is torch.Tensor or type(value) is torch.nn.Parameter:
        for place, tensor in enumerate(tensors):
            if tensor is value:
                return place
        tensors.append(value)
        keys = internals.dispatch_keys(value)  # conjugated, negated, made in inference mode
        return value.shape, value.stride(), value.dtype, value.device, value.requires_grad, str(keys)
    if isinstance(value, _PLAIN):
        return type(value), value
    if type(value) in (list, tuple):
        return type(value), tuple([signature_of(item, tensors) for item in value])
    if type(value) is dict:
        return dict, tuple([(type(key), key, signature_of(item, tensors)) for key, item in value.items()])
    raise UnknownArgumentError(type(value).__name__)
