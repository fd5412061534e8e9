"""Write a branch of ``torch.cond``: the ops of straight-line programs, with every write replaced by a new value.

A branch must not write to an input and must not return an input or a view. What a program would write to is therefore
copied first, and the copy is what later parts of the step read under the same name.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import fx

from hicache_compile.operators import measurements
from hicache_compile.operators.anchors import full_or_forecast, remember, row_to_keep
from hicache_compile.passes.graph import ops
from hicache_compile.passes.graph.graphs import call_node, copy_node, module_of, output_node, placeholders
from hicache_compile.passes.graph.inputs import StateInput, state_of

Key = int | StateInput  # an input of the denoiser by its place, or of the rewrite
Names = dict[Key, fx.Node]  # every value a part of the graph may read


class Part:
    """A graph in the making, and what may be read in it by name."""

    def __init__(self, graph: fx.Graph, names: Names, attributes: dict[str, Any] | None = None) -> None:
        self.graph = graph
        self.names = names
        self.attributes: dict[str, Any] = {} if attributes is None else attributes
        self.written: set[Key] = set()
        self.origin: fx.GraphModule | None = None  # whose metadata the module takes over
        self._fresh: set[fx.Node] = set()  # made here, contiguous and no views: they may be returned as they are

    def call(self, function: Callable[..., Any], *args: Any) -> fx.Node:
        """A call of ``function``."""
        return call_node(self.graph, function, args)

    def element(self, values: fx.Node, index: int) -> fx.Node:
        """An element of a tuple."""
        node = self.graph.call_function(operator.getitem, (values, index))
        node.meta = {"path": "", "example_value": ops.value(values)[index]}
        return node

    def inline(self, program: fx.GraphModule, site: Callable[..., list[fx.Node]] | None = None) -> list[fx.Node]:
        """``program``, without writing: what it would write to is from here on read under its name.

        ``site``: writes a guarded call, and returns its slots.
        """
        env = {node: self.names[key_of(node)] for node in placeholders(program) if key_of(node) in self.names}
        outputs = self.run(program, env, site)
        returns = program.meta.get("returns", ())
        self.names |= dict(zip(returns, outputs, strict=True)) if returns else {}
        return outputs

    def run(
        self,
        program: fx.GraphModule,
        env: dict[fx.Node, fx.Node],
        site: Callable[..., list[fx.Node]] | None = None,
    ) -> list[fx.Node]:
        """The nodes of ``program`` for the inputs in ``env``; returns its outputs."""
        slots: dict[fx.Node, list[fx.Node]] = {}
        self.origin = self.origin or program
        for node in program.graph.nodes:
            if node.op == "placeholder":
                continue
            if node.op == "output":
                return [env[value] for value in node.args[0]]
            if node.target is full_or_forecast and site is not None:
                slots[node] = site(self, node, env)
            elif node.args and node.args[0] in slots:
                env[node] = slots[node.args[0]][node.args[1]]
            elif node.op == "get_attr":
                if site is None or not all(user.target is full_or_forecast for user in node.users):
                    env[node] = copy_node(self.graph, node, reads_nothing)
                    self.attributes[str(node.target)] = operator.attrgetter(str(node.target))(program)
            elif node.target is remember:
                ring, position, value = node.args
                self._rename(env, ring, self.remembered(env[ring], env[position], env[value]))
            elif node.target is measurements.keep:
                kept, value = node.args
                self._rename(env, kept, self.call(torch.Tensor.to, env[value], ops.value(kept).dtype))
            else:
                for written in _written(node):
                    self._rename(env, written, self.copied(env[written]))
                env[node] = copy_node(self.graph, node, env.__getitem__)
        raise AssertionError("a graph ends with its output")

    def _rename(self, env: dict[fx.Node, fx.Node], kept: fx.Node, value: fx.Node) -> None:
        self.names[key_of(kept)] = env[kept] = value
        self.written.add(key_of(kept))

    def remembered(self, ring: fx.Node, position: fx.Node, value: fx.Node) -> fx.Node:
        """``remember`` without writing: the ring with ``value`` in row ``position``."""
        return self._with_row(ring, position, self.call(row_to_keep, ring, position, value))

    def _with_row(self, ring: fx.Node, position: fx.Node, kept: fx.Node) -> fx.Node:
        dtype = ops.value(ring).dtype
        if dtype is torch.float8_e4m3fn:  # index_copy is not made for it
            ring, kept = (self.call(torch.Tensor.view, node, torch.int8) for node in (ring, kept))
            return self.copied(self.call(torch.Tensor.view, self._with_row(ring, position, kept), dtype))
        ring_after = self.graph.call_function(torch.index_copy, (ring, 0, position, kept))
        ring_after.meta = {"path": "", "example_value": ops.value(ring)}
        self._fresh.add(ring_after)
        return ring_after

    def copied(self, value: fx.Node) -> fx.Node:
        """A contiguous copy: branches must not return an input or a view, and must agree on strides."""
        copy = self.graph.call_method("clone", (value,), {"memory_format": torch.contiguous_format})
        copy.meta = {"path": "", "example_value": ops.value(value).clone(memory_format=torch.contiguous_format)}
        self._fresh.add(copy)
        return copy

    def owned(self, values: Sequence[fx.Node]) -> list[fx.Node]:
        """``values`` as a branch may return them, each once."""
        returned: list[fx.Node] = []
        for value in values:
            returned.append(value if value in self._fresh and value not in returned else self.copied(value))
        return returned

    def branch(self, write: Callable[[Part], list[fx.Node]]) -> fx.GraphModule:
        """A branch that may read everything this part can; ``write`` returns its outputs."""
        graph = fx.Graph()
        names = {key: _operand(graph, key, node) for key, node in self.names.items()}
        part = Part(graph, names)
        part.origin = self.origin
        graph.output(tuple(write(part)))
        return part.module()

    def cond(
        self, predicate: fx.Node, yes: fx.GraphModule, no: fx.GraphModule, names: tuple[str, str]
    ) -> list[fx.Node]:
        """``torch.cond`` over two branches of ``branch``; returns its outputs."""
        self.attributes |= dict(zip(names, (yes, no), strict=True))
        attributes = [self.graph.get_attr(name) for name in names]
        # No operand may be a view of another, as what probes hand over can be.
        operands = [node if node.op == "placeholder" else self.copied(node) for node in self.names.values()]
        call = self.graph.call_function(torch.ops.higher_order.cond, (predicate, *attributes, tuple(operands)))
        values = [ops.value(node) for node in output_node(no.graph).args[0]]  # type: ignore[union-attr,arg-type]  # a tuple
        call.meta = {"example_value": tuple(values), "path": ""}
        outputs = []
        for index, value in enumerate(values):
            item = self.graph.call_function(operator.getitem, (call, index))
            item.meta = {"example_value": value, "path": ""}
            outputs.append(item)
        self._fresh.update(outputs)
        return outputs

    def module(self) -> fx.GraphModule:
        """The graph as a module."""
        used: dict[str, Any] = {}
        for node in self.graph.find_nodes(op="get_attr"):
            if node.users:
                used[str(node.target)] = self.attributes[str(node.target)]
            else:
                self.graph.erase_node(node)
        origin = self.origin or next(value for value in used.values() if isinstance(value, fx.GraphModule))
        return module_of(self.graph, origin, used or None)


def key_of(node: fx.Node) -> Key:
    """The name of the input ``node``."""
    place: int | None = node.meta.get("input")
    state = state_of(node)
    if place is not None:
        return place
    assert state is not None
    return state


def _operand(graph: fx.Graph, key: Key, node: fx.Node) -> fx.Node:
    unique = node.op == "placeholder" or isinstance(key, int)
    made = graph.placeholder(node.name if unique else "given_" + re.sub(r"\W", "_", str(key)))
    made.meta = {"path": "", "example_value": ops.value(node)}
    if node.op == "placeholder":
        made.meta |= {name: node.meta[name] for name in ("input", "state", "slot", "weight") if name in node.meta}
    made._dynamo_source = None  # see Note [Dynamo marks] in graphs
    return made


def _written(node: fx.Node) -> list[fx.Node]:
    """What is kept and an operator of our own writes to in place."""
    schema = getattr(node.target, "_schema", None)
    if schema is None or not schema.is_mutable:
        return []
    written: Mapping[int, Any] = {
        place: argument
        for place, argument in enumerate(schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    }
    given = [node.args[place] for place in written if place < len(node.args)]
    return [argument for argument in given if isinstance(argument, fx.Node) and state_of(argument) is not None]


def reads_nothing(node: fx.Node) -> fx.Node:
    """What maps the arguments of a node that has none."""
    raise AssertionError(f"`{node.name}` reads nothing")
