"""either: both programs in one graph, ``torch.cond`` choosing, with state as inputs and outputs.

before   full:      y = ...; remember(anchors_0, position, value)
         forecast:  y = ...forecast(anchors_0, weights)...
after    y, next_anchors_0 = cond(computing, full, forecast, [x, ..., position, weights, anchors_0])

Requires   the full and the forecast program of one guarded graph
Ensures    nothing outside a branch is written to; inputs are the denoiser's own that a branch reads, then
           ``computing`` (one bool), ``position``, ``weights`` and the rings; outputs are the denoiser's
           own, contiguous and no views, then each ring as it is after the step
Refuses    programs without rings: there is nothing to choose
"""

from __future__ import annotations

import operator
from collections.abc import Mapping

import torch
from torch import fx

from hicache_compile.errors import HiCacheError
from hicache_compile.operators.anchors import remember
from hicache_compile.passes.graph import ops
from hicache_compile.passes.graph.graphs import copy_node, fake_mode_of, module_of, output_node, placeholders
from hicache_compile.passes.transforms.specialise import Choice


def either(programs: Mapping[str, fx.GraphModule]) -> fx.GraphModule:
    """One graph for the full and the forecast program of ``programs``.

    Raises:
        HiCacheError: a forecast reads no anchors.
    """
    full, forecasting = programs[Choice.FULL], programs[Choice.FORECAST]
    operands = _operands(full, forecasting)
    rings = [node for node in operands if node.meta.get("state") == "anchors"]
    if not rings:
        raise HiCacheError("either: the policy must cache something to have two branches; nothing is")
    branches = {"full": _branch(full, operands, rings), "forecast": _branch(forecasting, operands, rings)}
    graph = fx.Graph()
    own = [copy_node(graph, node, _same) for node in operands if "input" in node.meta]
    computing = _computing(graph, rings[0])
    given = own + [copy_node(graph, node, _same) for node in operands if "input" not in node.meta]
    attributes = [graph.get_attr(name) for name in branches]
    call = graph.call_function(torch.ops.higher_order.cond, (computing, *attributes, tuple(given)))
    returned = output_node(branches["full"].graph).all_input_nodes
    values = [ops.value(node) for node in returned]
    call.meta = {"example_value": tuple(values), "path": ""}
    outputs = []
    for index, value in enumerate(values):
        item = graph.call_function(operator.getitem, (call, index))
        item.meta = {"example_value": value, "path": ""}
        outputs.append(item)
    graph.output(tuple(outputs))
    return module_of(graph, full, branches)


def _operands(full: fx.GraphModule, forecasting: fx.GraphModule) -> list[fx.Node]:
    """The inputs of both, each once: the denoiser's own in order, then position, weights and the rings."""
    inputs: dict[int, fx.Node] = {}
    state: dict[object, fx.Node] = {}
    for node in [*placeholders(full), *placeholders(forecasting)]:
        if "input" in node.meta:
            inputs.setdefault(node.meta["input"], node)
        else:
            state.setdefault(_key(node), node)
    order = {"position": 0, "weights": 1, "anchors": 2}
    return [
        *[inputs[place] for place in sorted(inputs)],
        *sorted(state.values(), key=lambda node: (order[node.meta["state"]], node.meta.get("slot", 0))),
    ]


def _same(node: fx.Node) -> fx.Node:
    return node


def _key(node: fx.Node) -> object:
    return node.meta.get("input", (node.meta.get("state"), node.meta.get("slot")))


def _computing(graph: fx.Graph, like: fx.Node) -> fx.Node:
    node = graph.placeholder("computing")
    with fake_mode_of(ops.value(like)):
        node.meta = {"example_value": torch.empty((), dtype=torch.bool), "state": "computing"}
    node._dynamo_source = None  # see Note [Dynamo marks]
    return node


def _branch(program: fx.GraphModule, operands: list[fx.Node], rings: list[fx.Node]) -> fx.GraphModule:
    """``program`` as a function of ``operands`` that returns its outputs and the rings, none of them an input."""
    graph = fx.Graph()
    given = {_key(node): copy_node(graph, node, _same) for node in operands}
    env: dict[fx.Node, fx.Node] = {}
    after: dict[object, fx.Node] = {}
    for node in program.graph.nodes:
        if node.op == "placeholder":
            env[node] = given[_key(node)]
        elif node.target is remember:
            ring, position, value = (env[argument] for argument in node.args)
            after[ring.meta["slot"]] = remembered(graph, ring, position, value)
        elif node.op == "output":
            outputs = [owned(graph, env[value]) for value in node.args[0]]
            outputs += [after.get(ring.meta["slot"]) or owned(graph, given[_key(ring)]) for ring in rings]
            graph.output(tuple(outputs))
        else:
            env[node] = copy_node(graph, node, env.__getitem__)
    return module_of(graph, program)


def remembered(graph: fx.Graph, ring: fx.Node, position: fx.Node, value: fx.Node) -> fx.Node:
    """``remember`` without writing: the ring with ``value`` in row ``position``."""
    row = graph.call_method("unsqueeze", (value, 0))
    row.meta = {"path": "", "example_value": ops.value(value).unsqueeze(0)}
    kept = graph.call_method("to", (row, ops.value(ring).dtype))
    kept.meta = {"path": "", "example_value": ops.value(row).to(ops.value(ring).dtype)}
    ring_after = graph.call_function(torch.index_copy, (ring, 0, position, kept))
    ring_after.meta = {"path": "", "example_value": ops.value(ring)}
    return ring_after


def owned(graph: fx.Graph, value: fx.Node) -> fx.Node:
    """A contiguous copy: branches must not return an input or a view, and must agree on strides."""
    copy = graph.call_method("clone", (value,), {"memory_format": torch.contiguous_format})
    copy.meta = {"path": "", "example_value": ops.value(value).clone(memory_format=torch.contiguous_format)}
    return copy
