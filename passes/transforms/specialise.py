"""specialised: one straight-line program per choice, made by inlining one branch and deleting what is dead.

full         every site inlined; ``remember(anchors, position, slot)`` for each slot a forecast reads
forecast     every site replaced by ``forecast(anchors, weights)``; no site's operands are computed
forecast_G   the sites of the groups ``G`` replaced, the others inlined
plain        every site inlined and nothing remembered: the denoiser as it was captured

Requires   a guarded graph, or a working copy without sites
Ensures    no guarded call is left; placeholders nobody reads are gone and the others keep
           ``meta["input"]`` (position among the denoiser's inputs) or ``meta["state"]``;
           ``full`` writes exactly the rings forecasts read; what a guard measures is in the programs of the steps it
           measures, and in no plain one
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import fx

from hicache_compile.operators.anchors import forecast, full_or_forecast, remember
from hicache_compile.passes.graph import ops
from hicache_compile.passes.graph.choices import Choice
from hicache_compile.passes.graph.graphs import copy_graph, copy_node, drop_dead_code, module_of, placeholders
from hicache_compile.passes.graph.inputs import is_ring
from hicache_compile.passes.graph.parts import check_read, how
from hicache_compile.passes.graph.quantised_rings import caller, to_forecast, to_remember
from hicache_compile.passes.transforms.narrow_linears import narrow_linears
from hicache_compile.passes.transforms.narrow_slices import Window, as_nodes, as_values, narrow
from hicache_compile.passes.transforms.program_inputs import drop_unused_inputs, number_rows, resize_rings
from hicache_compile.passes.transforms.sparsify import sparsify
from hicache_compile.passes.transforms.token_steps import TokenSteps
from hicache_compile.passes.work import Work


def specialise(work: Work) -> int:
    """Make the programs that every policy of the layout needs; returns how many."""
    if work.guarded is None:  # no sites: the working copy is every program but the plain one
        full = work.programs.get(Choice.FULL, work.module)
        work.programs = {Choice.FULL: full, Choice.FORECAST: work.module, Choice.PLAIN: copy_graph(work.captured)[0]}
        work.specialiser = Specialiser(work, work.module)
        return len(work.programs)
    work.specialiser = Specialiser(work, work.guarded)
    work.programs = work.specialiser.programs()
    if work.layout.sparsity is not None and work.layout.sparsity.order is not None:
        work.programs[Choice.PLAIN] = copy_graph(work.captured)[0]
    return len(work.programs)


class Specialiser:
    """Makes the straight-line programs of ``guarded``.

    Where groups are decided each by itself (``PerKind``) a slot may be read at any time: each is kept whole, and
    remembered wherever it is computed. Otherwise guards skip from a block on, and only steps that are computed in full
    are remembered.
    """

    def __init__(self, work: Work, guarded: fx.GraphModule) -> None:
        self.work = work
        self.guarded = guarded
        self.independent = bool(work.layout.groups)
        calls = [node for node in guarded.graph.nodes if node.target is full_or_forecast]
        self.groups = list(dict.fromkeys(call.meta["group"] for call in calls))
        slots = {ring.meta["slot"] for call in calls for ring in call.args[4]}
        self.own = slots  # of sites
        self.read: set[int] = slots if self.independent else set()
        self.tokens = TokenSteps(work, guarded)
        self.windows: dict[int, Window] = {}

    def programs(self) -> dict[Choice, fx.GraphModule]:
        """The programs every policy needs; with several groups in a row, also those that forecast from each on."""
        staged = self.work.layout.staged
        rows = [self.groups[start:] for start in range(max(1, len(self.groups)))]
        wanted = {Choice.FORECAST: self.groups} if self.independent else {self._choice(row): row for row in rows}
        wanted = wanted if self.groups else {Choice.FORECAST: []}
        if self.tokens.sites:
            read = [self._windows_read(row, False, staged) for row in wanted.values()]
            self.tokens.leave_out_unread({slot for windows in read for slot in windows})
        wanted |= {choice.with_tokens(): row for choice, row in wanted.items() if self.tokens.sites}
        forecasts = {choice: self._inlined(groups, choice.tokens) for choice, groups in wanted.items()}
        whole = set(self.read) if self.independent else self._read_differently(wanted, staged) | self.tokens.slots
        for program in forecasts.values():
            self.windows |= narrow(program, whole, staged)
            if not staged:
                narrow_linears(program)
            drop_unused_inputs(program)
            self.read |= {node.meta["slot"] for node in placeholders(program) if is_ring(node)}
        check_read(self.work.layout, self.read & self.own)
        programs = {Choice.FULL: self._inlined(()), **forecasts, Choice.PLAIN: self._plain()}
        return {choice: self._finished(program) for choice, program in programs.items()}

    def make(self, choice: Choice) -> fx.GraphModule:
        """The program of ``choice``: of groups that are decided each by itself, or in phases of sparsity."""
        if choice.phases:
            dense = replace(choice, phases=())
            if dense not in self.work.programs:
                self.work.programs[dense] = self.make(dense)
            assert self.work.layout.sparsity is not None
            return sparsify(self.work.programs[dense], self.work.layout.sparsity, dict(choice.phases))
        program = self._inlined(choice.groups or (), choice.tokens)
        narrow(program, self.read)
        narrow_linears(program)
        return self._finished(program)

    def _choice(self, groups: Iterable[str]) -> Choice:
        return Choice.forecasting(groups, self.groups)

    def _windows_read(self, groups: Iterable[str], tokens: bool, staged: bool) -> dict[int, str]:
        """By slot that such a forecast reads the window that it reads of it."""
        scratch = self._inlined(groups, tokens)
        windows = narrow(scratch, (), staged)
        drop_dead_code(scratch.graph)
        read = [node.args[0].meta["slot"] for node in scratch.graph.nodes if node.target is forecast]
        return {slot: str(windows.get(slot)) for slot in read}

    def _read_differently(self, wanted: Mapping[Choice, list[str]], staged: bool) -> set[int]:
        """The slots of which not all forecasts ``wanted`` read the same window."""
        if len(wanted) == 1:
            return set()
        seen: dict[int, set[str]] = {}
        for choice, groups in wanted.items():
            for slot, window in self._windows_read(groups, choice.tokens, staged).items():
                seen.setdefault(slot, set()).add(window)
        return {slot for slot, windows in seen.items() if len(windows) > 1}

    def _inlined(self, groups: Iterable[str], tokens: bool = False) -> fx.GraphModule:
        chosen = set(groups)

        def site(graph: fx.Graph, call: fx.Node, env: dict[fx.Node, fx.Node]) -> list[fx.Node]:
            if call.meta["group"] in chosen:
                outputs = _forecast_site(graph, call, env)
                if tokens and call.meta["site"] in self.tokens.sites:
                    return self.tokens.write_site(graph, call, env, outputs)
                return outputs
            outputs = _inline_full(graph, call, env, call.meta["group"] if self.independent else "")
            if self.independent or not chosen:
                _remember(graph, call, env, outputs, self.read, self.windows)
            return outputs

        measured = ("value", "every", "forecast") if chosen else ("value", "every", "computed")
        return _inline(self.guarded, site, measured)

    def _plain(self) -> fx.GraphModule:
        return _inline(self.guarded, _inline_full, ())

    def _finished(self, program: fx.GraphModule) -> fx.GraphModule:
        self.tokens.finish(program)
        drop_dead_code(program.graph)
        drop_unused_inputs(program)
        resize_rings(program, self.windows)
        if self.work.layout.per_slot:
            own = sum(len(site.slots) for site in self.work.sites)
            number_rows(program, sorted(slot for slot in self.read if slot < own))
        program.recompile()
        return program


Inliner = Callable[[fx.Graph, fx.Node, dict[fx.Node, fx.Node]], list[fx.Node]]


def _inline(guarded: fx.GraphModule, site: Inliner, measured: tuple[str, ...]) -> fx.GraphModule:
    """Copy ``guarded`` with each guarded call replaced by what ``site`` writes for it, and of what the guards measure
    only what is ``measured`` in such steps."""
    graph = fx.Graph()
    env: dict[fx.Node, fx.Node] = {}
    outputs: dict[fx.Node, list[fx.Node]] = {}
    own = [node for node in guarded.graph.nodes if node.op != "placeholder"]
    for node in [*sorted(placeholders(guarded), key=_place), *own]:
        if node.meta.get("probe", "value") not in ("value", *measured):
            continue
        if node.target is full_or_forecast:
            outputs[node] = site(graph, node, env)
        elif node.args and node.args[0] in outputs:
            env[node] = outputs[node.args[0]][node.args[1]]
        elif not (node.op == "get_attr" and all(user.target is full_or_forecast for user in node.users)):
            env[node] = copy_node(graph, node, env.__getitem__)
    return module_of(graph, guarded)


def _place(node: fx.Node) -> int:
    """The denoiser's own inputs come first, the rings last."""
    return 0 if "input" in node.meta else 2 if is_ring(node) else 1


def _inline_full(graph: fx.Graph, call: fx.Node, env: dict[fx.Node, fx.Node], group: str = "") -> list[fx.Node]:
    owner = call.graph.owning_module
    full = owner.get_submodule(str(call.args[0].target))  # type: ignore[union-attr]  # a get_attr of the submodule
    assert isinstance(full, fx.GraphModule)
    inner = dict(zip(placeholders(full), (env[a] for a in call.args[2]), strict=True))  # type: ignore[union-attr,index]
    for node in full.graph.nodes:
        if node.op == "output":
            return [inner[slot] for slot in node.args[0]]
        if node.op != "placeholder":
            inner[node] = copy_node(graph, node, inner.__getitem__)
            if group:
                inner[node].meta["group"] = group
    raise AssertionError("a graph ends with its output")


def _forecast_site(graph: fx.Graph, call: fx.Node, env: dict[fx.Node, fx.Node]) -> list[fx.Node]:
    arguments: Any = call.args
    _, _, _, carried, rings, _, weights = arguments
    outputs = []
    written = caller(graph, call.meta["site"])
    rows = [weights] * len(rings) if isinstance(weights, fx.Node) else weights
    given: Any = [call.kwargs.get(name) or [None] * len(rings) for name in ("dtypes", "scales", "parts")]
    for stream, ring, row, dtype, scale, parts in zip(carried, rings, rows, *given, strict=True):
        factors = to_forecast(written, env[row], env.get(scale))
        node = graph.call_function(forecast, (env[ring], factors, *how(dtype, parts)))
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
    arguments: Any = call.args
    _, _, _, carried, rings, position, _ = arguments
    scales: Any = call.kwargs.get("scales") or [None] * len(rings)
    written = caller(graph, call.meta["site"])
    for output, stream, ring, scale in zip(outputs, carried, rings, scales, strict=True):
        slot = ring.meta["slot"]
        if slot not in read:
            continue
        value = output
        if stream is not None:
            value = graph.call_function(torch.sub, (output, env[stream]))
            value.meta = {"path": call.meta["site"], "example_value": ops.value(output)}
        if slot in windows:
            window = graph.call_function(operator.getitem, (value, as_nodes(windows[slot], graph)))
            window.meta = {"path": call.meta["site"], "example_value": ops.value(value)[as_values(windows[slot])]}
            value = window
        for kept, given in to_remember(written, env[ring], env.get(scale), value):
            write = graph.call_function(remember, (kept, env[position], given))
            write.meta = {"path": call.meta["site"], "side_effect": True}
