"""specialised: one straight-line program per choice, made by inlining one branch and deleting what is dead.

full       every site inlined; ``remember(anchors, position, slot)`` for each slot a forecast reads
forecast   every site replaced by ``forecast(anchors, weights)``; no site's operands are computed
plain      every site inlined and nothing remembered: the denoiser as it was captured

Requires   a guarded graph
Ensures    no guarded call is left; placeholders nobody reads are gone and the others keep
           ``meta["input"]`` (position among the denoiser's inputs) or ``meta["state"]``;
           ``full`` writes exactly the rings ``forecast`` reads
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from enum import StrEnum

import torch
from torch import fx

from hicache_compile.passes import ops
from hicache_compile.passes.branch import forecast, full_or_forecast, remember
from hicache_compile.passes.graphs import copy_node, drop_dead_code, module_of, placeholders
from hicache_compile.passes.guard import new_ring
from hicache_compile.passes.narrow import Window, narrow
from hicache_compile.passes.rows import narrow_rows


class Choice(StrEnum):
    """What a step does."""

    FULL = "full"
    FORECAST = "forecast"
    PLAIN = "plain"
    EITHER = "either"  # one program for both, under the cond backends


def specialise(guarded: fx.GraphModule) -> dict[Choice, fx.GraphModule]:
    """The straight-line programs of ``guarded``, by choice."""
    forecasting = _inline(guarded, _forecast_site)
    windows = narrow(forecasting)
    narrow_rows(forecasting)
    _drop_unused_inputs(forecasting)
    read = {node.meta["slot"] for node in placeholders(forecasting) if node.meta.get("state") == "anchors"}

    def remember_read_slots(graph: fx.Graph, call: fx.Node, env: dict[fx.Node, fx.Node]) -> list[fx.Node]:
        outputs = _inline_full(graph, call, env)
        _remember(graph, call, env, outputs, read, windows)
        return outputs

    programs = {
        Choice.FULL: _inline(guarded, remember_read_slots),
        Choice.FORECAST: forecasting,
        Choice.PLAIN: _inline(guarded, _inline_full),
    }
    for program in programs.values():
        drop_dead_code(program.graph)
        _drop_unused_inputs(program)
        _resize_rings(program, windows)
        program.recompile()
    return programs


Inliner = Callable[[fx.Graph, fx.Node, dict[fx.Node, fx.Node]], list[fx.Node]]


def _inline(guarded: fx.GraphModule, site: Inliner) -> fx.GraphModule:
    """Copy ``guarded`` with each guarded call replaced by what ``site`` writes for it."""
    graph = fx.Graph()
    env: dict[fx.Node, fx.Node] = {}
    outputs: dict[fx.Node, list[fx.Node]] = {}
    for node in guarded.graph.nodes:
        if node.target is full_or_forecast:
            outputs[node] = site(graph, node, env)
        elif node.args and node.args[0] in outputs:
            env[node] = outputs[node.args[0]][node.args[1]]
        elif not (node.op == "get_attr" and all(user.target is full_or_forecast for user in node.users)):
            env[node] = copy_node(graph, node, env.__getitem__)
    return module_of(graph, guarded)


def _inline_full(graph: fx.Graph, call: fx.Node, env: dict[fx.Node, fx.Node]) -> list[fx.Node]:
    owner = call.graph.owning_module
    full = owner.get_submodule(str(call.args[0].target))  # type: ignore[union-attr]  # a get_attr of the submodule
    assert isinstance(full, fx.GraphModule)
    inner = dict(zip(placeholders(full), (env[a] for a in call.args[2]), strict=True))  # type: ignore[union-attr,index]
    for node in full.graph.nodes:
        if node.op == "output":
            return [inner[slot] for slot in node.args[0]]
        if node.op != "placeholder":
            inner[node] = copy_node(graph, node, inner.__getitem__)
    raise AssertionError("a graph ends with its output")


def _forecast_site(graph: fx.Graph, call: fx.Node, env: dict[fx.Node, fx.Node]) -> list[fx.Node]:
    _, _, _, carried, rings, _, weights = call.args
    outputs = []
    dtypes = call.kwargs.get("dtypes") or [None] * len(rings)  # type: ignore[arg-type]  # a list of nodes
    for stream, ring, dtype in zip(carried, rings, dtypes, strict=True):  # type: ignore[arg-type]  # lists
        kept_otherwise = (dtype,) if dtype is not None else ()
        node = graph.call_function(forecast, (env[ring], env[weights], *kept_otherwise))  # type: ignore[index]  # nodes
        node.meta = {"path": call.meta["site"], "example_value": ops.value(ring)[0].to(dtype or ops.value(ring).dtype)}
        if stream is not None:
            total = graph.call_function(torch.add, (env[stream], node))
            total.meta = dict(node.meta)
            node = total
        outputs.append(node)
    return outputs


def _remember(
    graph: fx.Graph,
    call: fx.Node,
    env: dict[fx.Node, fx.Node],
    outputs: list[fx.Node],
    read: set[int],
    windows: dict[int, Window],
) -> None:
    _, _, _, carried, rings, position, _ = call.args
    for output, stream, ring in zip(outputs, carried, rings, strict=True):  # type: ignore[arg-type]  # lists of nodes
        slot = ring.meta["slot"]
        if slot not in read:
            continue
        value = output
        if stream is not None:
            value = graph.call_function(torch.sub, (output, env[stream]))
            value.meta = {"path": call.meta["site"], "example_value": ops.value(output)}
        if slot in windows:
            window = graph.call_function(operator.getitem, (value, windows[slot]))
            window.meta = {"path": call.meta["site"], "example_value": ops.value(value)[windows[slot]]}
            value = window
        write = graph.call_function(remember, (env[ring], env[position], value))  # type: ignore[index]  # nodes
        write.meta = {"path": call.meta["site"], "side_effect": True}


def _drop_unused_inputs(program: fx.GraphModule) -> None:
    for node in placeholders(program):
        if not node.users:
            program.graph.erase_node(node)


def _resize_rings(program: fx.GraphModule, windows: dict[int, Window]) -> None:
    """A slot of which only a window is read needs a ring of that window only."""
    for node in placeholders(program):
        slot = node.meta.get("slot")
        if slot in windows:
            ring = ops.value(node)
            node.meta = {**node.meta, "example_value": new_ring(ring[0][windows[slot]], ring.shape[0])}
