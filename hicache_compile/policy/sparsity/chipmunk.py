"""Sparsity settings of a denoiser: ``hicache_compile(model, policy, sparsity=Chipmunk(...))``."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hicache_compile.errors import HiCacheError, one_of, real_number, true_or_false, whole_number
from hicache_compile.policy.files import file_path
from hicache_compile.policy.plain_data import plain_data
from hicache_compile.policy.sparsity.chipmunk_yaml import read

PACKAGES = {"triton": "triton", "chipmunk": "chipmunk"}
PROVIDERS = ("auto", "portable", *PACKAGES)
DENOMINATORS = ("own", "shared")
ANCHORS = ("all", "dense", "bridged")
ORDERS = {"patches": 2, "voxels": 3}  # number of grid dimensions


@plain_data
class Chipmunk:
    """Column-sparse deltas (Chipmunk, arXiv 2506.03275) for attention and MLPs.

    A dense step stores the contribution of the unselected keys (hidden units); the following sparse steps compute only
    the selected ones and add it. Keys and hidden units are selected per group of neighbouring tokens: the keys with the
    most attention at the last selection, the hidden units whose inputs changed most.

    Args:
        top_keys: fraction of the keys read by sparse attention, in (0, 1]; ``None``: attention stays dense.
        mlp_keys: fraction of the hidden units computed by a sparse MLP, in (0, 1]; ``None``: MLPs stay dense.
        full_every: a computed step is dense if this many computed steps have passed since the last dense one.
        max_age: or if this many denoising steps have passed, computed or not; by default ``full_every``.
        full_steps: replaces both: denoising steps; the first computed step at or after each is dense.
        first_dense: number of blocks at the start that are always dense.
        group: number of queries that share a set of keys.
        mlp_block: number of tokens that share a set of hidden units.
        reselect: select keys at every dense step; otherwise once, at the second.
        mlp_select_every: select hidden units at every n-th sparse step.
        coverage: replaces ``top_keys``: select the fewest keys with this fraction of the attention, in (0, 1].
        multiple, mlp_multiple: the number of keys (hidden units) is a multiple of this.
        random_keys, mlp_random: fraction of the other keys (hidden units) that is added at random.
        denominator: ``"shared"``: all keys share the denominator of the softmax, as in dense attention;
            ``"own"``: the softmax is normalised over the selected keys, as published.
        anchors: which anchors forecasts may difference: ``"all"``; ``"bridged"``: no differences across a sparse to
            dense transition; ``"dense"``: dense steps only.
        order: ``"patches"`` or ``"voxels"``: reorder tokens inside the denoiser so that spatial neighbours are
            adjacent.
        grid: the image or video in tokens, ``(H, W)`` or ``(T, H, W)``, if the graph does not show it.
        window: every group also reads all keys within this many patches (voxels).
        band: every group also reads the keys within this fraction of the tokens around it.
        provider: the kernels: ``"auto"``, ``"portable"`` (PyTorch), ``"triton"``, ``"chipmunk"`` (the original's).

    Raises:
        HiCacheError: a field has an invalid value; the message names the field and the allowed values.
    """

    top_keys: float | None = 0.165
    mlp_keys: float | None = 0.3
    full_every: int = 10
    max_age: int | None = None
    full_steps: tuple[int, ...] | None = None
    first_dense: int = 2
    group: int = 192
    mlp_block: int = 128
    reselect: bool = False
    mlp_select_every: int = 1
    coverage: float | None = None
    multiple: int = 1
    mlp_multiple: int = 1
    random_keys: float = 0.0
    mlp_random: float = 0.0
    denominator: str = "shared"
    anchors: str = "all"
    order: str | None = None
    grid: tuple[int, ...] | None = None
    window: int = 0
    band: float = 0.0
    provider: str = "auto"

    def __post_init__(self) -> None:
        for name in ("top_keys", "mlp_keys", "coverage"):
            if getattr(self, name) is not None:
                real_number("Chipmunk", name, getattr(self, name), 0, 1)
        for name in ("random_keys", "mlp_random", "band"):
            if getattr(self, name) != 0:
                real_number("Chipmunk", name, getattr(self, name), 0, 1)
        for name in ("full_every", "group", "mlp_block", "mlp_select_every", "multiple", "mlp_multiple"):
            whole_number("Chipmunk", name, getattr(self, name), 1)
        for name in ("first_dense", "window"):
            whole_number("Chipmunk", name, getattr(self, name), 0)
        if self.max_age is not None:
            whole_number("Chipmunk", "max_age", self.max_age, 1)
        if self.full_steps is not None:
            object.__setattr__(self, "full_steps", _whole_numbers("full_steps", self.full_steps, 0))
        true_or_false("Chipmunk", "reselect", self.reselect)
        one_of("Chipmunk", "denominator", self.denominator, DENOMINATORS)
        one_of("Chipmunk", "anchors", self.anchors, ANCHORS)
        _check_provider(self.provider)
        if self.top_keys is None and self.mlp_keys is None:
            raise HiCacheError("Chipmunk.top_keys, mlp_keys: must not both be None, nothing would be sparse")
        if self.provider == "chipmunk" and (self.denominator, self.multiple % 112, self.group) != ("own", 0, 192):
            raise HiCacheError(
                "Chipmunk.provider = 'chipmunk': requires denominator='own', group=192 and a multiple of 112 as "
                "multiple"
            )
        self._check_order()

    def _check_order(self) -> None:
        if self.order is not None:
            one_of("Chipmunk", "order", self.order, tuple(ORDERS))
        if self.grid is not None:
            object.__setattr__(self, "grid", _whole_numbers("grid", self.grid, 1))
            wanted = ORDERS.get(self.order or "")
            if len(self.grid) not in (2, 3) or (wanted is not None and len(self.grid) != wanted):
                sizes = "(T, H, W)" if wanted == ORDERS["voxels"] else "(H, W)" if wanted else "(H, W) or (T, H, W)"
                raise HiCacheError(f"Chipmunk.grid = {self.grid!r}: must be {sizes} in tokens")

    @property
    def oldest(self) -> int:
        """The number of denoising steps after which a computed step is dense."""
        return self.full_every if self.max_age is None else self.max_age

    @classmethod
    def from_yaml(cls, path: str | Path, **others: Any) -> Chipmunk:
        """The settings of a configuration file of the original implementation.

        ``others``: further fields to set, e.g. the ``grid`` of an image.

        Raises:
            HiCacheError: a key is unknown or its value is not supported.
        """
        return cls(**{**read(file_path("Chipmunk.from_yaml", path)), **others})

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Chipmunk:
        """The settings in plain data, as written by ``to_dict``.

        Raises:
            HiCacheError: an unknown field, or a value that is not allowed.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        for name in data:
            if name not in known:
                raise HiCacheError(f"Chipmunk.{name}: must be one of {', '.join(known)}")
        return cls(**data)

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain data."""
        return {
            key: list(value) if isinstance(value, tuple) else value for key, value in dataclasses.asdict(self).items()
        }


def as_sparsity(value: Any) -> Chipmunk | None:
    """Convert ``value`` to settings; ``None`` stays ``None``.

    ``value`` may be settings, a dict or JSON of their fields, ``"Chipmunk"`` for the defaults, or a path to a YAML file
    of the original.

    Raises:
        HiCacheError: ``value`` is none of these.
    """
    if value is None or isinstance(value, Chipmunk):
        return value
    if isinstance(value, Mapping):
        return Chipmunk.from_dict(value)
    if value == "Chipmunk":
        return Chipmunk()
    if isinstance(value, str) and value.lstrip().startswith("{"):
        return Chipmunk.from_dict(_parsed(value))
    if isinstance(value, str | Path):
        return Chipmunk.from_yaml(value)
    raise HiCacheError(
        f"hicache_compile.sparsity = {value!r}: must be None, a Chipmunk, a dict or JSON of its fields, or a path to "
        "a YAML file"
    )


def _parsed(text: str) -> dict[str, Any]:
    try:
        return dict(json.loads(text))
    except (json.JSONDecodeError, TypeError, ValueError) as error:
        raise HiCacheError(f"hicache_compile.sparsity = {text[:60]!r}: must be JSON of its fields ({error})") from None


def _whole_numbers(name: str, values: Any, least: int) -> tuple[int, ...]:
    if not isinstance(values, list | tuple | set | frozenset) or not values:
        raise HiCacheError(f"Chipmunk.{name} = {values!r}: must be a tuple of whole numbers")
    for value in values:
        whole_number("Chipmunk", name, value, least)
    return tuple(values) if isinstance(values, list | tuple) else tuple(sorted(values))


def _check_provider(provider: str) -> None:
    """Raise unless ``provider`` is a valid name and its package is installed."""
    one_of("Chipmunk", "provider", provider, PROVIDERS)
    package = PACKAGES.get(provider)
    if package is not None and find_spec(package) is None:
        raise HiCacheError(f"Chipmunk.provider = {provider!r}: must be one that is installed; {package} is not")
