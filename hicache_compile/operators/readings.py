"""What a denoiser's own code reads of data, as operators of a graph that takes it for constant.

``of_size(t, sizes)`` is ``t``, whose sizes depend on data and were ``sizes`` when the graph was captured.
``expect(t, values)`` says that ``t`` held ``values`` then; what it returns goes into ``tied(output, expected)``, which
is ``output``, so that no program of the graph leaves it out. Where the data are others, ``ReadingChangedError`` is
raised before any value leaves the graph.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from hicache_compile.operators.opaque import OutputChangedError

MOST_SHOWN = 8  # values of one tensor, spelt out in the graph; of more there is a digest
_TAGS = (torch.Tag.cudagraph_unsafe,)


class ReadingChangedError(OutputChangedError):
    """The data are not those that the graph was captured for."""


def described(tensor: Tensor) -> str:
    """The values of ``tensor``, or how many there are and a digest of them."""
    if tensor.numel() <= MOST_SHOWN:
        return str(tensor.tolist())
    data = tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
    return f"{tensor.numel()} values, {hashlib.blake2b(data, digest_size=8).hexdigest()}"


@torch.library.custom_op(
    "hicache::of_size", mutates_args=(), schema="(Tensor tensor, SymInt[] sizes) -> Tensor", tags=_TAGS
)
def of_size(tensor: Tensor, sizes: Sequence[int]) -> Tensor:
    if list(tensor.shape) != list(sizes):
        raise ReadingChangedError(f"a tensor of the sizes {list(sizes)} has {list(tensor.shape)} now")
    return tensor.clone()


@of_size.register_fake
def _(tensor: Tensor, sizes: Sequence[int]) -> Tensor:
    return tensor.new_empty(sizes)


@torch.library.custom_op("hicache::expect", mutates_args=(), schema="(Tensor tensor, str values) -> Tensor", tags=_TAGS)
def expect(tensor: Tensor, values: str) -> Tensor:
    if (found := described(tensor)) != values:
        raise ReadingChangedError(f"what was {values} is {found} now")
    return tensor.new_empty(0)


@expect.register_fake
def _(tensor: Tensor, values: str) -> Tensor:
    return tensor.new_empty(0)


@torch.library.custom_op("hicache::tied", mutates_args=(), schema="(Tensor output, Tensor[] expected) -> Tensor")
def tied(output: Tensor, expected: Sequence[Tensor]) -> Tensor:
    return output.clone()


@tied.register_fake
def _(output: Tensor, expected: Sequence[Tensor]) -> Tensor:
    return torch.empty_like(output)
