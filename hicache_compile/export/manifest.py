"""What comes with an exported graph: its inputs and outputs by name, its policy, and the plan of a run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from hicache_compile.errors import HiCacheError
from hicache_compile.export.sizes import Size, size_of
from hicache_compile.policy.policy import Policy
from hicache_compile.runtime.deciders.scheduled import Plan

FORMAT = 1


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

    One step is ``(*outputs, *next_state) = graph(*arguments, computing, position, weights, *state)`` with
    ``computing``, ``position`` ``[1]`` and ``weights`` ``[depth]`` of that step from ``plan``, and the state of the
    step before; every run begins with a state of zeros.
    """

    policy: dict[str, Any]
    arguments: tuple[Port, ...]
    state: tuple[Port, ...]
    outputs: tuple[str, ...]
    depth: int
    weights_dtype: str = "float32"
    plan: dict[str, list[Any]] = field(default_factory=dict)
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
        if not isinstance(data, Mapping) or data.get("format") != FORMAT:
            raise HiCacheError(
                f"manifest.format = {data.get('format') if isinstance(data, Mapping) else None!r}: must be {FORMAT}"
            )
        ports = {
            name: tuple(Port(p["name"], tuple(p["shape"]), p["dtype"]) for p in data[name])
            for name in ("arguments", "state")
        }
        return cls(**{**data, **ports, "outputs": tuple(data["outputs"])})


def plan_of(policy: Policy, num_steps: int, depth: int) -> dict[str, list[Any]]:
    """The plan of a run as plain lists: ``computing``, ``position`` and ``weights`` of each step."""
    plan = Plan(policy, num_steps, depth)
    plan.computes(num_steps - 1)
    return {"computing": plan.full, "position": plan.positions, "weights": plan.rows}
