"""What a denoiser takes and returns, taken down to leaves and built again, whatever it is built of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice
from typing import Any

import torch

from hicache_compile.internals import pytree
from hicache_compile.runtime.replay.held import fields_of, leaves_with_path

Build = Callable[[Sequence[Any]], Any]  # of as many leaves


def flatten(value: Any, whole: Callable[[Any], bool] | None = None) -> tuple[list[Any], Build]:
    """The leaves of ``value``, and what builds a value like it of others.

    Beside what pytree knows, objects of a model or of its user are opened where they hold tensors.

    Args:
        whole: says of a part that it is a leaf.
    """
    return _flatten(value, whole, frozenset())


def _flatten(value: Any, whole: Callable[[Any], bool] | None, within: frozenset[int]) -> tuple[list[Any], Build]:
    found, spec = pytree.tree_flatten(value, is_leaf=whole)
    parts = [_opened(leaf, whole, within) for leaf in found]
    if all(part is None for part in parts):
        return found, partial(_unflatten, spec)
    flat = [([leaf], _only) if part is None else part for leaf, part in zip(found, parts, strict=True)]
    makers = [(len(held), make) for held, make in flat]  # which keep no leaf

    def build(leaves: Sequence[Any]) -> Any:
        following = iter(leaves)
        return _unflatten(spec, [make(list(islice(following, count))) for count, make in makers])

    return [leaf for held, _ in flat for leaf in held], build


def _unflatten(spec: Any, leaves: Sequence[Any]) -> Any:
    return pytree.tree_unflatten(leaves, spec)


def _only(leaves: Sequence[Any]) -> Any:
    return leaves[0]


def _opened(leaf: Any, whole: Callable[[Any], bool] | None, within: frozenset[int]) -> tuple[list[Any], Build] | None:
    """A leaf of pytree's as leaves; ``None``: it is one. ``within``: the objects it is in."""
    closed = isinstance(leaf, torch.Tensor | torch.nn.Module | type) or (whole is not None and whole(leaf))
    fields = None if closed or id(leaf) in within else fields_of(leaf)
    if fields is None or not any(isinstance(held, torch.Tensor) for _, held in leaves_with_path(fields)):
        return None
    held, build = _flatten(fields, whole, within | {id(leaf)})
    return held, partial(_object, type(leaf), build)


def _object(kind: Any, build: Build, leaves: Sequence[Any]) -> Any:
    made = kind.__new__(kind)
    for name, value in build(leaves).items():
        object.__setattr__(made, name, value)  # of frozen dataclasses too
    return made
