"""What a denoiser takes and returns, taken down to leaves and built again, whatever it is built of."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice
from typing import Any

import torch

from hicache_compile.internals import pytree

Build = Callable[[Sequence[Any]], Any]  # of as many leaves


def flatten(value: Any, whole: Callable[[Any], bool] | None = None) -> tuple[list[Any], Build]:
    """The leaves of ``value``, and what builds a value like it of others.

    Beside what pytree knows, dataclasses and objects with tensors among their attributes are opened.

    Args:
        whole: says of a part that it is a leaf.
    """
    found, spec = pytree.tree_flatten(value, is_leaf=whole)
    parts = [_opened(leaf, whole) for leaf in found]
    if all(part is None for part in parts):
        return found, lambda leaves: pytree.tree_unflatten(leaves, spec)
    flat = [([leaf], _only) if part is None else part for leaf, part in zip(found, parts, strict=True)]
    makers = [(len(held), make) for held, make in flat]  # which keep no leaf

    def build(leaves: Sequence[Any]) -> Any:
        following = iter(leaves)
        return pytree.tree_unflatten([make(list(islice(following, count))) for count, make in makers], spec)

    return [leaf for held, _ in flat for leaf in held], build


def _only(leaves: Sequence[Any]) -> Any:
    return leaves[0]


def _opened(leaf: Any, whole: Callable[[Any], bool] | None) -> tuple[list[Any], Build] | None:
    """A leaf of pytree's as leaves; ``None``: it is one."""
    if isinstance(leaf, torch.Tensor | torch.nn.Module | type) or (whole is not None and whole(leaf)):
        return None
    if dataclasses.is_dataclass(leaf):
        names = [field.name for field in dataclasses.fields(leaf) if field.init]
        held, build = flatten([getattr(leaf, name) for name in names], whole)
        return held, partial(_dataclass, type(leaf), names, build)
    attributes = getattr(leaf, "__dict__", {})
    if not any(isinstance(one, torch.Tensor) for one in attributes.values()):
        return None
    held, build = flatten(dict(attributes), whole)
    return held, partial(_object, type(leaf), build)


def _dataclass(kind: type, names: Sequence[str], build: Build, leaves: Sequence[Any]) -> Any:
    return kind(**dict(zip(names, build(leaves), strict=True)))


def _object(kind: Any, build: Build, leaves: Sequence[Any]) -> Any:
    made = kind.__new__(kind)
    made.__dict__.update(build(leaves))
    return made
