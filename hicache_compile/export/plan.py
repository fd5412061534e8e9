"""The plan of a run of an exported graph: what its control inputs are at each step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hicache_compile.errors import HiCacheError
from hicache_compile.operators import guard_state as rules
from hicache_compile.passes.graph.choices import Choice, Phases
from hicache_compile.policy.compatibility import Trait, check
from hicache_compile.policy.guards import Numbers
from hicache_compile.policy.layout import Layout
from hicache_compile.policy.policy import Policy
from hicache_compile.policy.sparsity.chipmunk import Chipmunk
from hicache_compile.runtime.deciders.device_rows import RowSpec
from hicache_compile.runtime.deciders.scheduled import ScheduledDecider

Plan = dict[str, list[Any]]


@dataclass(frozen=True, slots=True)
class Branches:
    """The branches of an exported graph; ``groups`` are decided each by itself, ``sparse``: there are phases,
    ``tokenwise``: the sites that can compute some of their tokens."""

    groups: Sequence[str]
    sparse: bool = False
    tokenwise: Sequence[str] = ()

    def choice(self, forecasts: Sequence[str], phases: Phases = ()) -> Choice:
        choice = Choice.forecasting(forecasts, self.groups)
        return choice.with_phases(phases) if phases and self.sparse else choice


def traits_when_exported(policy: Policy) -> frozenset[Trait]:
    """The traits of ``policy`` in an exported graph."""
    alone = bool(policy.guards) or Trait.READS_ANCHORS in policy.traits  # no host looks at the anchors
    return policy.traits | {Trait.EXPORTED, *((Trait.GRAPH_DECIDES,) if alone else ())}


def check_fits(policy: Policy, exported: Policy) -> None:
    """Raise unless ``policy`` can drive a graph that was exported with ``exported``.

    Raises:
        HiCacheError: it needs more anchors, or another graph.
    """
    check("OnnxDenoiser.policy", traits_when_exported(policy))
    if policy.depth > exported.depth:
        raise HiCacheError(
            f"OnnxDenoiser.policy needs {policy.depth} anchors: must be at most "
            f"{exported.depth}, what the rings of the file hold"
        )
    mine, theirs = _structure(policy), _structure(exported)
    for name in mine:
        if mine[name] != theirs[name]:
            raise HiCacheError(
                f"OnnxDenoiser.policy has {name} {mine[name]!r}: must be {theirs[name]!r}, as the exported graph has; "
                "export the denoiser with this policy"
            )


def _structure(policy: Policy) -> dict[str, object]:
    layout: Layout = policy.layout
    guards = tuple(rules.TensorRule(guard, Numbers).signature for guard in policy.guards)
    ends = (layout.first, layout.last)
    return {
        "scope": layout.scope,
        "first, last": ends,
        "kinds": layout.groups,
        "ranges": layout.ranges,
        "guards": guards,
        "probes": layout.probes,
        "tokens": layout.tokens,
        "parts": layout.parts,
    }


def plan_of(
    policy: Policy,
    num_steps: int,
    spec: RowSpec,
    branches: Branches,
    sparsity: Chipmunk | None,
    controls: Sequence[str],
) -> Plan:
    """By control input its value at each step; those of a guarded graph that do not change are ``constants_of``."""
    if policy.guards:
        return {
            "computing": [policy.forces(step, num_steps) for step in range(num_steps)],
            "step": [float(step) for step in range(num_steps)],
        }
    decider = ScheduledDecider(policy, branches, spec, num_steps, 0, sparsity)
    choices = [decider.decide(step, False).choice for step in range(num_steps)]
    plan: Plan = {}
    for name in controls:
        if name == "position":
            rows = [decider.rows.steps[step].positions for step in range(num_steps)]
            plan[name] = rows if len(spec.groups) > 1 else [row[0] for row in rows]
        elif name == "weights":
            weights = [decider.rows.steps[step].weights for step in range(num_steps)]
            plan[name] = weights if len(spec.shape) > 1 else [rows[0] for rows in weights]
        elif name == "draw" and policy.tokens is not None:
            plan[name] = [[policy.tokens.draw(step)] for step in range(num_steps)]
        else:
            plan[name] = [_is_taken(name, choice, branches) for choice in choices]
    return plan


def _is_taken(control: str, choice: Choice, branches: Branches) -> bool:
    """Whether the predicate ``control`` holds in a step of ``choice``."""
    for group in branches.groups:
        if group and control == control_name(group):
            forecasts = branches.groups if choice == Choice.FORECAST else choice.groups or ()
            return group not in forecasts
    return control == control_name("" if choice == Choice.FULL else str(choice))


def control_name(branch: str) -> str:
    """The name of the predicate of a group or of a computed branch."""
    text = "".join(letter if letter.isalnum() else "_" for letter in branch)
    return f"computing_{text}" if text else "computing"


def constants_of(policy: Policy, num_steps: int, depth: int) -> dict[str, Any]:
    """The control inputs of a guarded graph that are the same at every step. Of the table only rows that are not zero
    are listed: ``{"shape": [...], "index": [...], "rows": [...]}``."""
    if not policy.guards:
        return {}
    table = rules.weight_table(policy, depth, min(num_steps, rules.GAPS)).flatten(0, depth - 1)
    index = table.abs().sum(1).nonzero().flatten()
    found: dict[str, Any] = {
        "table": {"shape": list(table.shape), "index": index.tolist(), "rows": table[index].tolist()}
    }
    for number, guard in enumerate(policy.guards):
        found[f"parameters_{number}"] = rules.TensorRule(guard, Numbers).parameters(num_steps)
    return found


def dense(constant: Any, dtype: str) -> np.ndarray[Any, Any]:
    """A constant as an array."""
    if not isinstance(constant, Mapping):
        return np.asarray(constant, dtype=dtype)
    made = np.zeros(constant["shape"], dtype=dtype)
    made[constant["index"]] = constant["rows"]
    return made


def first_state(policy: Policy) -> dict[str, list[float]]:
    """The state at the start of a run that is not zero."""
    first = {f"remembered_{n}": rules.TensorRule(g, Numbers).first_remembered() for n, g in enumerate(policy.guards)}
    return {name: values for name, values in first.items() if any(values)}
