"""deciding: probes, guards and both branches in one graph; which branch is taken never reaches the host.

before   probe_0, forecast, full
after    m = probe_0(...); answer = asks(numbers_0, watched_0, m); cond(answer, forecast, full, [...])

Requires   the programs of one guarded graph, cut at the probes of its guards
Ensures    nothing is written to; inputs are the denoiser's own, then ``computing``, ``step``, ``table``, ``course``,
           ``numbers_N`` and ``watched_N`` of each guard, what probes remember, the rings; outputs are the denoiser's
           own, each ring, what probes remember, ``course`` and ``watched_N``, as they are after the step
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from hicache_compile.operators import guard_state as rules
from hicache_compile.operators import measurements as measure
from hicache_compile.operators.anchors import remember
from hicache_compile.passes.graph import ops
from hicache_compile.passes.graph.graphs import copy_node, fake_mode_of, module_of, output_node, placeholders
from hicache_compile.passes.lowering.either import owned, remembered

Names = dict[str, fx.Node]  # every value a part of the program may read, by name


def deciding(programs: Mapping[str, fx.GraphModule], stages: Sequence[tuple[str, str]], guards: int) -> fx.GraphModule:
    """One graph of ``programs``.

    Args:
        stages: the probe and the skip program of each guard that decides in the middle of a step.
        guards: how many there are.
    """
    used = [name for stage in stages for name in stage] or ["forecast"]
    return _Writer(programs, stages, guards, [programs[name] for name in dict.fromkeys([*used, "full"])]).write()


@dataclass(frozen=True, slots=True)
class _Layout:
    """What is handed over between the parts, by name, in order."""

    rings: list[str]
    memory: list[str]
    guards: int

    @property
    def state(self) -> list[str]:
        return [*self.rings, *self.memory, "course", *(f"watched_{n}" for n in range(self.guards))]


class _Writer:
    def __init__(
        self,
        programs: Mapping[str, fx.GraphModule],
        stages: Sequence[tuple[str, str]],
        guards: int,
        used: Sequence[fx.GraphModule],
    ) -> None:
        self.programs = programs
        self.stages = stages
        self.given: dict[str, fx.Node] = {}
        for program in used:
            for node in placeholders(program):
                self.given.setdefault(_name(node), node)
        rings = sorted((n for n in self.given if n.startswith("anchors:")), key=lambda n: int(n.partition(":")[2]))
        memory = sorted(name for name in self.given if name.startswith("memory:"))
        self.layout = _Layout(rings, memory, guards)
        self.fake = ops.value(self.given[rings[0]])
        self.depth = int(self.fake.shape[0])

    def write(self) -> fx.GraphModule:
        graph = fx.Graph()
        names: Names = {}
        own = sorted((n for n in self.given if n.startswith("input:")), key=lambda n: int(n.partition(":")[2]))
        for name in own:
            names[name] = copy_node(graph, self.given[name], _never)
        for name, example in self._declared().items():
            names[name] = _placeholder(graph, name, example, name)
        for name in [*self.layout.memory, *self.layout.rings]:
            names[name] = copy_node(graph, self.given[name], _never)
        part = _Part(graph, dict(names), self.layout)
        numbers = [names[f"numbers_{n}"] for n in range(self.layout.guards)]
        part.names["forced"] = part.call(
            rules.starts_forced, names["computing"], names["course"], names["step"], *numbers
        )
        outputs = self._stage(part, 0)
        graph.output(tuple(outputs))
        return part.module()

    def _declared(self) -> dict[str, torch.Tensor]:
        widest = next(ops.value(n) for name, n in self.given.items() if name == "weights").dtype
        device = self.fake.device
        with fake_mode_of(self.fake), torch.no_grad():
            vectors = {
                "computing": torch.empty((), dtype=torch.bool, device=device),
                "step": torch.empty(1, dtype=torch.float64, device=device),
                "table": torch.empty(rules.GAPS**self.depth, self.depth, dtype=widest, device=device),
                "course": torch.empty(rules.HEAD + self.depth, dtype=torch.float64, device=device),
            }
            for n in range(self.layout.guards):
                vectors[f"numbers_{n}"] = torch.empty(rules.RULE, dtype=torch.float64, device=device)
                vectors[f"watched_{n}"] = torch.empty(rules.WATCHED, dtype=torch.float64, device=device)
        return vectors

    def _stage(self, part: _Part, number: int) -> list[fx.Node]:
        """Probe, ask guard ``number``, and branch; returns the outputs of the step."""
        probe, skip = self.stages[number] if self.stages else ("", "forecast")
        if probe:
            part.inline(self.programs[probe])
        measured = part.names[f"memory:measured_{number}"] if probe else part.nothing()
        names = part.names
        answer = part.call(
            rules.asks,
            names[f"numbers_{number}"],
            names[f"watched_{number}"],
            names["course"],
            names["forced"],
            names["step"],
            measured,
        )
        names["course"] = part.call(rules.counted, names["course"], answer)
        names[f"watched_{number}"] = part.call(rules.remembered, answer)
        names["forced"] = part.call(rules.still_forced, answer)
        skipped, rest = self._branch(part, number, skip), self._branch(part, number, None)
        return part.cond(part.call(rules.skips, answer), skipped, rest)

    def _branch(self, before: _Part, number: int, skip: str | None) -> fx.GraphModule:
        """What follows guard ``number``: the program ``skip``, or the next guard, or the full step."""
        graph = fx.Graph()
        names = {name: _placeholder(graph, name, ops.value(node)) for name, node in before.names.items()}
        part = _Part(graph, names, self.layout)
        if skip is None and number + 1 < len(self.stages):
            outputs = self._stage(part, number + 1)
        else:
            outputs = self._end(part, number, skip)
        graph.output(tuple(outputs))
        return part.module()

    def _end(self, part: _Part, number: int, skip: str | None) -> list[fx.Node]:
        names = part.names
        if skip is None:
            names["position"] = part.call(rules.position, names["course"])
        else:
            names["weights"] = part.call(
                rules.weights,
                names["course"],
                names["step"],
                names["table"],
                names[f"numbers_{number}"],
                names[f"watched_{number}"],
            )
        outputs = part.inline(self.programs[skip or "full"])
        after = rules.after_full if skip is None else rules.after_forecast
        late = f"memory:measured_{0}" if not self.stages else ""
        measured = names[late] if late in part.written else part.nothing()
        for n in range(self.layout.guards):
            arguments = (names[f"numbers_{n}"], names[f"watched_{n}"], names["course"], names["step"], measured)
            names[f"watched_{n}"] = part.call(after, *arguments)
        if skip is None:
            names["course"] = part.call(rules.course_after_full, names["course"], names["step"])
        else:
            names["course"] = part.call(rules.course_after_forecast, names["course"], number + 1)
        return [owned(part.graph, node) for node in [*outputs, *(names[name] for name in self.layout.state)]]


class _Part:
    """A graph in the making, and what its parts may read by name."""

    def __init__(self, graph: fx.Graph, names: Names, layout: _Layout) -> None:
        self.graph = graph
        self.names = names
        self.layout = layout
        self.written: set[str] = set()
        self.attributes: dict[str, Any] = {}
        self.origin: fx.GraphModule | None = None

    def call(self, function: Callable[..., Any], *args: Any) -> fx.Node:
        node = self.graph.call_function(function, args)
        tensors = [ops.value(a) if isinstance(a, fx.Node) else a for a in args]
        with fake_mode_of(next(t for t in tensors if isinstance(t, torch.Tensor))), torch.no_grad():
            node.meta = {"path": "", "example_value": function(*tensors)}
        return node

    def nothing(self) -> fx.Node:
        """A measurement of a guard that has none here."""
        return self.call(torch.zeros_like, self.names["step"])

    def inline(self, program: fx.GraphModule) -> list[fx.Node]:
        """``program``, without writing: what it would write to is from here on read under its name."""
        self.origin = self.origin or program
        env: dict[fx.Node, fx.Node] = {}
        for node in program.graph.nodes:
            if node.op == "placeholder":
                env[node] = self.names[_name(node)]
            elif node.op == "get_attr":
                env[node] = copy_node(self.graph, node, _never)
                self.attributes[str(node.target)] = operator.attrgetter(str(node.target))(program)
            elif node.target is remember:
                ring, position, value = node.args
                after = remembered(self.graph, env[ring], env[position], env[value])
                self.names[_name(ring)] = env[ring] = after
            elif node.target is measure.keep:
                memory, value = node.args
                kept = self.call(torch.Tensor.to, env[value], ops.value(memory).dtype)
                self.names[_name(memory)] = env[memory] = kept
                self.written.add(_name(memory))
            elif node.op == "output":
                outputs = [env[value] for value in node.args[0]]
            else:
                env[node] = copy_node(self.graph, node, env.__getitem__)
        returns = program.meta.get("returns", ())
        self.names |= dict(zip(returns, outputs, strict=True)) if returns else {}
        return outputs

    def cond(self, predicate: fx.Node, yes: fx.GraphModule, no: fx.GraphModule) -> list[fx.Node]:
        branches = {"skip": yes, "rest": no}
        self.attributes |= branches
        attributes = [self.graph.get_attr(name) for name in branches]
        # No operand may be a view of another, as what probes hand over can be.
        operands = tuple(node if node.op == "placeholder" else owned(self.graph, node) for node in self.names.values())
        call = self.graph.call_function(torch.ops.higher_order.cond, (predicate, *attributes, operands))
        values = [ops.value(node) for node in output_node(no.graph).all_input_nodes]
        call.meta = {"example_value": tuple(values), "path": ""}
        outputs = []
        for index, value in enumerate(values):
            item = self.graph.call_function(operator.getitem, (call, index))
            item.meta = {"example_value": value, "path": ""}
            outputs.append(item)
        return outputs

    def module(self) -> fx.GraphModule:
        attributes: dict[str, Any] = {}
        for node in self.graph.find_nodes(op="get_attr"):
            attributes[str(node.target)] = self.attributes[str(node.target)]
        for node in self.graph.find_nodes(op="get_attr"):
            if not node.users:
                self.graph.erase_node(node)
        assert self.origin is not None or attributes
        return module_of(self.graph, self.origin or attributes["rest"], attributes or None)


def _name(node: fx.Node) -> str:
    if "input" in node.meta:
        return f"input:{node.meta['input']}"
    state = str(node.meta["state"])
    return f"anchors:{node.meta['slot']}" if state == "anchors" else state


def _placeholder(graph: fx.Graph, name: str, example: Any, state: str = "") -> fx.Node:
    node = graph.placeholder(name.replace(":", "_"))
    node.meta = {"path": "", "example_value": example} | ({"state": state} if state else {})
    node._dynamo_source = None  # see Note [Dynamo marks]
    return node


def _never(node: fx.Node) -> fx.Node:
    raise AssertionError(f"`{node.name}` reads nothing")
