"""token-wise: in some of the skipped steps sites compute a few of their tokens and forecast the others.

forecast    y = forecast(anchors, weights) + correction
token-wise  c = one_of_each(draw, clusters, 16);  rows = full(take(x, c), ...)
            f = forecast(anchors, weights) + correction
            y = put(f, c, rows);  keep(correction, y - forecast(anchors, weights))
full        remember(anchors, position, y);  keep(correction, 0);  keep(clusters, nearest(...))

Requires   a guarded graph, and sites in which tokens do not mix
Ensures    one more program for each way to forecast; what was computed of a token since the last full step is added to
           the forecasts after it; anchors are written by full steps alone. What is chosen is data: new inputs ``draw``
           and ``memory:...`` (a correction for each slot, what tokens are chosen by for each stream)
Refuses    sites whose tokens mix, or whose code has their number written out
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import fx

from hicache_compile.errors import CannotRewrite
from hicache_compile.operators import tokens
from hicache_compile.operators.anchors import forecast, full_or_forecast, quantised, remember
from hicache_compile.passes.analysis.token_sites import TokenSite, token_site
from hicache_compile.passes.graph import ops
from hicache_compile.passes.graph.graphs import copy_node, fake_mode_of, output_node, placeholders
from hicache_compile.passes.transforms.token_selection import Selection, TokenWriter
from hicache_compile.passes.work import Work

KIND = "mlp"  # of sites whose tokens do not mix; in attention they do

log = logging.getLogger(__name__)


def plan_tokens(work: Work) -> int:
    """Find the sites that can be token-wise; returns how many."""
    wanted, guarded = work.layout.tokens, work.guarded
    assert wanted is not None
    assert guarded is not None
    for call in guarded.graph.nodes:
        if call.target is not full_or_forecast or call.meta["kind"] != KIND:
            continue
        full: Any = guarded.get_submodule(str(call.args[0].target))
        if any(stream is not None for stream in call.args[3]):
            found: TokenSite | str = "it is cached as a residual"
        else:
            found = token_site(full, wanted.of)
        if isinstance(found, str):
            work.refused.append(CannotRewrite(call.meta["site"], f"token-wise: {found}"))
        else:
            work.tokenwise[call.meta["site"]] = found
    if not work.tokenwise:
        _say_none(work)
    return len(work.tokenwise)


def _say_none(work: Work) -> None:
    log.warning(
        "no MLP can be computed for some of its tokens, so such steps are forecasts; %s",
        work.refused[-1] if work.refused else "there is none",
    )


class TokenSteps:
    """Writes what token-wise steps need into the programs of a guarded graph."""

    def __init__(self, work: Work, guarded: fx.GraphModule) -> None:
        self.wanted = work.layout.tokens
        self.sites: dict[str, TokenSite] = work.tokenwise
        self._work = work
        self._calls = [call for call in guarded.graph.nodes if call.target is full_or_forecast]
        self._find()

    def leave_out_unread(self, read: set[int]) -> None:
        """Drop the sites of which no forecast reads a slot (of text, which only attention reads): nothing would come of
        their tokens."""
        before = len(self.sites)
        for call in self._calls:
            if not read & {ring.meta["slot"] for ring in call.args[4]}:
                self.sites.pop(call.meta["site"], None)
        if before and not self.sites:
            _say_none(self._work)
        self._find()

    def _find(self) -> None:
        calls = [call for call in self._calls if call.meta["site"] in self.sites]
        self.slots = {ring.meta["slot"] for call in calls for ring in call.args[4]}
        self.streams = list(dict.fromkeys(self.sites[call.meta["site"]].tokens for call in calls))
        # By the slot that tokens are chosen by, the last of its stream: the stream.
        last = {self.sites[call.meta["site"]].tokens: call.args[4][0].meta["slot"] for call in calls}
        self.leading = {slot: stream for stream, slot in last.items()}

    def write_site(
        self, graph: fx.Graph, call: fx.Node, env: dict[fx.Node, fx.Node], forecasts: list[fx.Node]
    ) -> list[fx.Node]:
        """The slots of ``call``, forecast as ``forecasts``, with the rows of the chosen tokens computed."""
        site = self.sites[call.meta["site"]]
        selected = Selection(TokenWriter(graph, call.meta["site"]), self.wanted, site.tokens, self.streams)
        chosen = selected.chosen(forecasts[0])
        rows = self._computed(graph, call, env, site, chosen)
        outputs = []
        for made, row, ring in zip(forecasts, rows, call.args[4], strict=True):  # type: ignore[arg-type]  # a list
            write = TokenWriter(graph, call.meta["site"])
            corrected, correction = write.corrected(made, ring.meta["slot"])
            whole = write(tokens.put, selected.spread(corrected, chosen, row), chosen, row)
            write.keep(correction, write(tokens.finite_or, write(torch.sub, whole, made), correction))
            outputs.append(whole)
        return outputs

    def _computed(
        self, graph: fx.Graph, call: fx.Node, env: dict[fx.Node, fx.Node], site: TokenSite, chosen: fx.Node
    ) -> list[fx.Node]:
        """The rows of the chosen tokens, of each slot."""
        write = TokenWriter(graph, call.meta["site"])
        full: Any = call.graph.owning_module.get_submodule(str(call.args[0].target))  # type: ignore[union-attr]
        operands: Any = call.args[2]
        inner: dict[fx.Node, fx.Node] = {}
        mode = fake_mode_of(ops.value(chosen))
        for place, (node, operand) in enumerate(zip(placeholders(full), operands, strict=True)):
            given = env[operand]
            inner[node] = write(tokens.take, given, chosen) if place in site.gathered else given
        for node in full.graph.nodes:
            if node.op not in ("placeholder", "output"):
                inner[node] = copy_node(graph, node, inner.__getitem__)
                inner[node].meta = {**node.meta, "tokens": True, "example_value": _value_of(inner[node], mode)}
        slots: Any = output_node(full.graph).args[0]
        return [inner[slot] for slot in slots]

    def finish(self, program: fx.GraphModule) -> None:
        """Forecasts are corrected; full steps clear corrections and note what tokens are chosen by."""
        for node in list(program.graph.nodes):
            if node.target not in (forecast, remember) or "corrected" in node.meta:
                continue
            slot: int = node.args[0].meta.get("slot", -1)  # the scales of a ring have none
            if slot not in self.slots:
                continue
            write = TokenWriter(program.graph, node.meta["path"], after=node)
            if node.target is forecast:
                readers = list(node.users)
                corrected, _ = write.corrected(node, slot)
                for reader in readers:
                    reader.replace_input_with(node, corrected)
                continue
            value = node.args[2].args[0] if node.args[2].target is quantised else node.args[2]
            write.keep(write.memory("correction", slot, value), write(torch.zeros_like, value))
            if slot in self.leading:
                Selection(write, self.wanted, self.leading[slot], self.streams).note(value)


def _value_of(node: fx.Node, mode: Any) -> Any:
    """The value of the call ``node``, by the example values of its arguments, in their fake ``mode``."""
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), ops.value)
    with mode, torch.no_grad():
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        return node.target(*args, **kwargs)  # type: ignore[operator]  # a function
