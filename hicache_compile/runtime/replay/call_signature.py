"""What a call looks like: everything Dynamo would guard on in its arguments, as one hashable value."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import torch

_PLAIN = (type(None), bool, int, float, str, torch.dtype, torch.device, torch.Size)


class UnknownLookError(Exception):
    """An argument of a kind whose look this module cannot tell."""


def look_of(value: Any, leaves: list[torch.Tensor]) -> Hashable:
    """A hashable that is equal for two values a compiled program cannot tell apart but for their tensors' numbers.

    Args:
        value: tensors and plain values in lists, tuples and dicts.
        leaves: its tensors are appended to these. One that came before is told by its place there.

    Raises:
        UnknownLookError: something in it is of another type.
    """
    if type(value) is torch.Tensor or type(value) is torch.nn.Parameter:
        for place, leaf in enumerate(leaves):
            if leaf is value:
                return place
        leaves.append(value)
        keys = torch._C._dispatch_keys(value)  # conjugated, negated, made in inference mode
        return value.shape, value.stride(), value.dtype, value.device, value.requires_grad, str(keys)
    if isinstance(value, _PLAIN):
        return type(value), value
    if type(value) in (list, tuple):
        return type(value), tuple([look_of(item, leaves) for item in value])
    if type(value) is dict:
        return dict, tuple([(type(key), key, look_of(item, leaves)) for key, item in value.items()])
    raise UnknownLookError(type(value).__name__)
