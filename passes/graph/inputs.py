"""Inputs that a rewritten graph has besides the denoiser's own, and the one place that makes them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from torch import fx

from hicache_compile.policy.str_enum import StrEnum


class Role(StrEnum):
    """What an input is for."""

    COMPUTING = "computing"  # [] bool: whether the branch that computes is taken
    POSITION = "position"  # [groups] int64: the ring row that a computed step writes
    WEIGHTS = "weights"  # [K] or [rows, K]: of the anchors in a forecast
    MEMORY = "memory"  # what probes and sparse steps keep from step to step
    ROWS = "rows"  # [B] int64: the pages of a batch whose rows are of several runs
    DRAW = "draw"  # [1] int64: what is random in a token-wise step follows from it
    ANCHORS = "anchors"  # [K, *S]: the ring of a slot
    VALUE = "value"  # what a probe hands over to the program after it
    PLAN = "plan"  # [attentions, groups] int64: what happens to each group of keys
    STEP = "step"  # [1] float64: the step index, where the graph decides
    TABLE = "table"  # weights by the gaps between computed steps, where the graph decides
    RUN = "run"  # [4 + K] float64: how the run stands, where the graph decides
    PARAMETERS = "parameters"  # float64: the numbers of a guard's rule
    REMEMBERED = "remembered"  # float64: what a guard's rule remembers


KEPT = (Role.MEMORY, Role.ANCHORS)  # inputs that last from step to step, at fixed addresses


@dataclass(frozen=True, slots=True)
class StateInput:
    """An input by its role; ``name`` tells apart several of one role, ``slot`` rings."""

    role: Role
    name: str = ""
    slot: int = -1

    def __str__(self) -> str:
        number = "" if self.slot < 0 else str(self.slot)
        return ":".join(part for part in (str(self.role), self.name, number) if part)

    @property
    def place(self) -> tuple[bool, int, str]:
        """Orders what is kept: memory by name, then rings by slot."""
        return self.role is Role.ANCHORS, self.slot, self.name

    @property
    def by_anchor(self) -> bool:
        """Whether its first dimension is the anchors of a ring."""
        return self.role is Role.ANCHORS or self.name.startswith(f"{SCALE}_")


MEASURED = "measured"  # memory in which a probe leaves what the host reads
SCALE = "scale"  # memory of the scales of a quantised ring


def memory(name: str, number: int) -> StateInput:
    """The memory ``name`` of guard, attention, MLP or slot ``number``."""
    return StateInput(Role.MEMORY, f"{name}_{number}")


def state_of(node: fx.Node) -> StateInput | None:
    """What the input ``node`` is for; ``None``: it is one of the denoiser's own, or no input."""
    found: StateInput | None = node.meta.get("state")
    return found


def role_of(node: fx.Node) -> Role | None:
    """The role of the input ``node``, where it is not one of the denoiser's own."""
    state = state_of(node)
    return None if state is None else state.role


def is_ring(node: fx.Node) -> bool:
    """Whether ``node`` is the ring of a slot."""
    return role_of(node) is Role.ANCHORS


def add_input(graph: fx.Graph, state: StateInput, example: Any, name: str = "") -> fx.Node:
    """A new input of ``graph`` with the example value ``example``; rings come last, all others before them.

    ``name``: of the node; by default what ``state`` is called.
    """
    known = graph.find_nodes(op="placeholder")
    rings = [node for node in known if is_ring(node)]
    text = name or re.sub(r"\W", "_", state.name if state.role is Role.MEMORY else str(state))
    if not known:
        node = graph.placeholder(text)
    else:
        before = bool(rings) and state.role is not Role.ANCHORS
        with graph.inserting_before(rings[0]) if before else graph.inserting_after(known[-1]):
            node = graph.placeholder(text)
    node.meta = {"path": "", "calls": (), "example_value": example, "state": state}
    if state.role is Role.ANCHORS:
        node.meta["slot"] = state.slot
    if state.role in KEPT:
        node.meta["tensor_dict"] = {"_dynamo_static_input_type": "unguarded"}
    node._dynamo_source = None  # see Note [Dynamo marks] in graphs
    return node
