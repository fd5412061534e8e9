"""The nodes that token-wise steps add to programs: how tokens are chosen, and what is kept from step to step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from hicache_compile.operators import measurements, tokens
from hicache_compile.passes.graph import ops
from hicache_compile.passes.graph.graphs import call_node, fake_mode_of
from hicache_compile.passes.graph.inputs import Role, StateInput, add_input, memory, state_of
from hicache_compile.policy.tokens import Tokens

DRAW = StateInput(Role.DRAW)


class TokenWriter:
    """Adds nodes to a graph, at its end or one after another behind ``after``."""

    def __init__(self, graph: fx.Graph, path: str, after: fx.Node | None = None) -> None:
        self.graph, self.path, self.last = graph, path, after

    def __call__(self, function: Callable[..., Any], *args: Any) -> fx.Node:
        return self._placed(lambda: call_node(self.graph, function, args, path=self.path, calls=(), tokens=True))

    def keep(self, kept: fx.Node, value: fx.Node) -> None:
        """Write ``value`` into the memory ``kept``."""
        node = self._placed(lambda: self.graph.call_function(measurements.keep, (kept, value)))
        node.meta = {"path": self.path, "calls": (), "side_effect": True, "tokens": True}

    def corrected(self, made: fx.Node, slot: int) -> tuple[fx.Node, fx.Node]:
        """The forecast ``made`` of ``slot`` with what is known of its error, and the memory of that."""
        made.meta["corrected"] = True
        correction = self.memory("correction", slot, made)
        return self(torch.add, made, correction), correction

    def memory(self, name: str, number: int, like: fx.Node | torch.Tensor) -> fx.Node:
        """The memory ``name`` of slot or stream ``number``, of the form of ``like``, which all programs have one of."""
        return self.input(memory(f"tokens_{name}", number), like)

    def input(self, state: StateInput, like: fx.Node | torch.Tensor) -> fx.Node:
        known = (node for node in self.graph.find_nodes(op="placeholder") if state_of(node) == state)
        found = next(known, None)
        if found is None:
            example = ops.value(like) if isinstance(like, fx.Node) else like
            with fake_mode_of(example):
                found = add_input(self.graph, state, torch.empty_like(example, memory_format=torch.contiguous_format))
        return found

    def _placed(self, make: Callable[[], fx.Node]) -> fx.Node:
        if self.last is None:
            return make()
        with self.graph.inserting_after(self.last):
            self.last = make()
        return self.last


class Selection:
    """How the tokens of one stream are chosen."""

    def __init__(self, write: TokenWriter, wanted: Tokens | None, stream: int, streams: list[int]) -> None:
        assert wanted is not None
        self.write, self.wanted = write, wanted
        self.number = streams.index(stream)
        self.tokens, self.count = stream, wanted.of(stream)

    def note(self, value: fx.Node) -> None:
        """In a full step: what later steps choose tokens of ``value`` by."""
        write, select = self.write, self.wanted.select
        if select == "clusters":
            centroids = self._memory("centroids", value)
            moved = write(tokens.moved, centroids, value, self.wanted.iterations)
            found = write(tokens.finite_or, moved, centroids)
            write.keep(self._memory("clusters", value), write(tokens.nearest, found, value))
            write.keep(centroids, found)
        elif select == "norm":
            write.keep(self._memory("change", value), write(tokens.size_of, value))
        elif select == "score":
            before, stale = self._memory("before", value), self._memory("stale", value)
            write.keep(self._memory("change", value), write(tokens.size_of_change, value, before))
            write.keep(before, value)
            write.keep(stale, write(torch.zeros_like, stale))

    def chosen(self, like: fx.Node) -> fx.Node:
        """In a token-wise step: the indices ``[B, T]``, the same for all sites of the stream."""
        mark = ("chosen", self.number)
        known = next((node for node in self.write.graph.nodes if node.meta.get("chooses") == mark), None)
        if known is None:
            known = self._choose(like)
            known.meta["chooses"] = mark
        return known

    def _choose(self, like: fx.Node) -> fx.Node:
        write, wanted = self.write, self.wanted
        if wanted.select == "norm":
            return write(tokens.best, self._memory("change", like), self.count)
        if wanted.select == "score":
            change, stale = self._memory("change", like), self._memory("stale", like)
            score = write(tokens.score, change, stale, wanted.staleness, wanted.bonus)
            chosen = write(tokens.best, score, self.count)
            write.keep(stale, write(tokens.older, stale, chosen))
            return chosen
        example = ops.value(like)
        with fake_mode_of(example):
            number = torch.zeros(1, dtype=torch.int64, device=example.device)
        draw = write.input(DRAW, number)
        if wanted.select == "clusters":
            return write(tokens.one_of_each, draw, self._memory("clusters", like), self.count)
        return write(tokens.on_a_grid if wanted.select == "grid" else tokens.at_random, draw, like, self.count)

    def spread(self, forecast: fx.Node, chosen: fx.Node, rows: fx.Node) -> fx.Node:
        """``forecast`` with what the computed ``rows`` say about the other tokens of their clusters."""
        if self.wanted.spread == "none":
            return forecast
        function = tokens.spread_value if self.wanted.spread == "value" else tokens.spread_error
        clusters = self._memory("clusters", forecast)
        return self.write(function, forecast, chosen, rows, clusters, self.wanted.blend)

    def _memory(self, name: str, like: fx.Node) -> fx.Node:
        example = ops.value(like)
        batch, device = example.shape[0], example.device
        with fake_mode_of(example):
            form = {
                "clusters": lambda: torch.empty(batch, self.tokens, dtype=torch.int64, device=device),
                "centroids": lambda: torch.empty(batch, self.count, example.shape[2], device=device),
                "before": lambda: torch.empty(example.shape, dtype=example.dtype, device=device),
            }.get(name, lambda: torch.empty(batch, self.tokens, device=device))()
        return self.write.memory(name, self.number, form)
