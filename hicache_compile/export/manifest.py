"""What comes with an exported graph: its inputs and outputs by name, its policy, and the plan of a run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from hicache_compile.errors import HiCacheError, whole_number
from hicache_compile.export.sizes import Size, size_of

FORMAT = 2


@dataclass(frozen=True, slots=True)
class Port:
    """A named tensor: sizes (see ``sizes`` for those that vary), and dtype as torch names it."""

    name: str
    shape: tuple[Size, ...]
    dtype: str

    def refuse(self, owner: str, shape: tuple[int, ...], dtype: str, known: dict[str, int]) -> None:
        """Raise unless a value of ``shape`` and ``dtype`` fits; symbols seen for the first time become ``known``."""
        fits = len(shape) == len(self.shape)
        for want, got in zip(self.shape, shape, strict=False):
            if isinstance(want, str) and want.isidentifier():
                known.setdefault(want, got)
            fits = fits and size_of(want, known) == got
        if not fits:
            sizes = [size if isinstance(size, int) else f"{size}={known.get(size, '?')}" for size in self.shape]
            raise HiCacheError(f"{owner} {self.name!r} has shape {list(shape)}: must be [{', '.join(map(str, sizes))}]")
        if dtype != self.dtype:
            raise HiCacheError(f"{owner} {self.name!r} is {dtype}: must be {self.dtype}")


@dataclass(frozen=True, slots=True)
class Manifest:
    """How to drive an exported graph.

    One step is ``(*outputs, *next_state) = graph(*arguments, *controls, *state)``; every run begins with a state of
    zeros, but for what is in ``first``.

    Args:
        policy: as plain data; empty where it has a part of your own.
        arguments: of the denoiser, in order.
        controls: what decides and weighs: ``computing`` ``[]`` (whether the branch that computes is taken; with kinds
            that are decided each by itself, or phases of sparse steps, one for each), ``position`` ``[groups]``,
            ``weights`` ``[depth]`` or ``[rows, depth]``; where guards decide in the graph ``computing`` (whether the
            step is forced), ``step``, ``table`` and ``parameters_N`` of each guard.
        state: rings and whatever else lasts from step to step.
        outputs: what the denoiser returns.
        depth: anchors a ring holds.
        plan: by control its value at each step of a run.
        constants: controls that are the same at every step.
        first: the state at the start of a run that is not zero, by name.
        groups, group_of, per_slot, parts: which rows of positions and weights a ring reads, see ``RowSpec``.
        sparsity: of computed steps, as plain data.
        unread: arguments of the denoiser that no step reads.
    """

    policy: dict[str, Any]
    arguments: tuple[Port, ...]
    controls: tuple[Port, ...]
    state: tuple[Port, ...]
    outputs: tuple[str, ...]
    depth: int
    weights_dtype: str = "float32"
    plan: dict[str, list[Any]] = field(default_factory=dict)
    constants: dict[str, Any] = field(default_factory=dict)
    first: dict[str, list[float]] = field(default_factory=dict)
    groups: tuple[str, ...] = ("",)
    group_of: tuple[int, ...] = ()
    per_slot: bool = False
    parts: int = 1
    sparsity: dict[str, Any] | None = None
    unread: tuple[str, ...] = ()
    format: int = FORMAT

    @property
    def next_state(self) -> tuple[str, ...]:
        """The names of the outputs that are the state of the next step."""
        return tuple(f"next_{port.name}" for port in self.state)

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """Read what ``to_json`` wrote.

        Raises:
            HiCacheError: it is no manifest, or one of another format.
        """
        try:
            data = json.loads(text)
        except ValueError as error:
            raise HiCacheError(f"manifest: must be JSON; {error}") from None
        if isinstance(data, Mapping) and data.get("format") == 1:
            data = _upgraded(data)
        if not isinstance(data, Mapping) or data.get("format") != FORMAT:
            raise HiCacheError(
                f"manifest.format = {data.get('format') if isinstance(data, Mapping) else None!r}: must be {FORMAT}"
            )
        try:
            ports = {
                name: tuple(Port(str(p["name"]), tuple(p["shape"]), str(p["dtype"])) for p in data[name])
                for name in ("arguments", "controls", "state")
            }
            tuples = {name: tuple(data[name]) for name in ("outputs", "groups", "group_of")}
            tuples["unread"] = tuple(map(str, data.get("unread", ())))
            made = cls(**{**data, **ports, **tuples})
            whole_number("manifest", "depth", made.depth, 1)
        except (KeyError, TypeError, AttributeError) as error:
            raise HiCacheError(f"manifest: must be as it was exported; {type(error).__name__}: {error}") from None
        return made


def _upgraded(data: Mapping[str, Any]) -> dict[str, Any]:
    """Format 1 as format 2: there the three controls were understood."""
    depth, dtype = data["depth"], data.get("weights_dtype", "float32")
    controls = [("computing", [], "bool"), ("position", [1], "int64"), ("weights", [depth], dtype)]
    named = [{"name": name, "shape": shape, "dtype": kind} for name, shape, kind in controls]
    group_of = [0] * len(data["state"])
    return {**data, "controls": named, "groups": [""], "group_of": group_of, "format": FORMAT}
