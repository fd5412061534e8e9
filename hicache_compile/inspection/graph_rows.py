"""Rows of an explanation that are read off one captured graph: its blocks, sites and programs."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import fx

from hicache_compile.inspection.findings import BlockRow, GraphRow, PassRow, ProgramRow, SiteRow
from hicache_compile.inspection.view import View
from hicache_compile.operators.anchors import QUANTISED
from hicache_compile.operators.opaque import opaque_modules
from hicache_compile.passes import Choice
from hicache_compile.passes.graph import ops
from hicache_compile.passes.graph.cost import cost_of
from hicache_compile.policy.layout import Layout


def block_rows(view: View, layout: Layout) -> list[BlockRow]:
    """The blocks in graph order."""
    made, kinds = view.rewrite(layout), _kinds(view)
    inside = {node.name for site in made.sites for node in site.region}
    rows = []
    for name, nodes in made.block_nodes.items():
        flops = {node: view.flops.get(node, 0) for node in nodes}
        skipped = sum(count for node, count in flops.items() if node in inside)
        rows.append(BlockRow(name, len(nodes), sum(flops.values()), skipped, kinds.get(name, {})))
    return rows


def _kinds(view: View) -> dict[str, dict[str, int]]:
    """FLOPs of each block's attentions and MLPs by kind: only scope ``module`` tells them apart."""
    found: dict[str, dict[str, int]] = {}
    for site in view.rewrite(Layout("module")).sites:
        for node in site.region:
            counted = found.setdefault(node.meta.get("block", ""), {})
            counted[site.kind] = counted.get(site.kind, 0) + view.flops.get(node.name, 0)
    return found


def program_rows(views: Sequence[View], layouts: Sequence[Layout]) -> list[ProgramRow]:
    """Every graph, named as ``graphs`` of a compiled denoiser names it."""
    rows = []
    for number, (view, layout) in enumerate(zip(views, layouts, strict=True)):
        made, suffix = view.rewrite(layout), f".{number}" if number else ""
        rows += [
            ProgramRow("captured" + suffix, _ops(made.captured), view.flops_full),
            ProgramRow("guarded" + suffix, _ops(made.guarded), None),
        ]
        rows += [
            ProgramRow(f"{choice}{suffix}", _ops(program), _flops(view, layout, choice, program))
            for choice, program in made.programs.items()
            if choice != Choice.PLAIN  # the captured graph once more
        ]
    return rows


def graph_rows(views: Sequence[View], layouts: Sequence[Layout]) -> list[GraphRow]:
    """The captured graphs in the order of a call."""
    return [_graph_row(view, layout) for view, layout in zip(views, layouts, strict=True)]


def _graph_row(view: View, layout: Layout) -> GraphRow:
    made = view.rewrite(layout)
    return GraphRow(
        nodes=len(view.graph.graph.nodes),
        blocks=made.blocks,
        sites=len(made.sites),
        flops_full=view.flops_full,
        flops_forecast=view.flops_of(layout),
        opaque=len(opaque_modules(_opaque(view))),
        why=made.why_nothing,
    )


def opaque_rows(views: Sequence[View]) -> list[tuple[str, str]]:
    """The submodules that are one operator each, with the code that Dynamo cannot trace."""
    return opaque_modules([name for view in views for name in _opaque(view)])


def _opaque(view: View) -> list[str]:
    return [str(node.args[0]) for node in view.graph.graph.nodes if ops.op(node) == ops.OPAQUE]


def pass_rows(views: Sequence[View], layouts: Sequence[Layout]) -> list[PassRow]:
    """The passes of your own, over all graphs."""
    rewrites = [view.rewrite(layout) for view, layout in zip(views, layouts, strict=True)]
    records = [[record for record in made.records if record.own] for made in rewrites]
    programs = sum(len(made.programs) for made in rewrites)
    return [
        PassRow(each[0].name, sum(record.rewrites for record in each), programs) for each in zip(*records, strict=True)
    ]


def _ops(graph: fx.GraphModule) -> int:
    return sum(node.op.startswith("call_") for node in graph.graph.nodes)


def _flops(view: View, layout: Layout, choice: Choice, program: fx.GraphModule) -> int:
    if view.rewrite(layout).stages:  # a step runs several programs; this is one of them
        return sum(cost_of(program, view.bindings).flops.values())
    return view.flops_full if choice == Choice.FULL else view.flops_of(layout, choice)


def site_rows(view: View, layout: Layout, flops_full: int) -> list[SiteRow]:
    """The sites in graph order. ``flops_full``: of a step of the whole denoiser."""
    rings = view.rings(layout)
    rows, slot = [], 0
    for site in view.rewrite(layout).sites:
        kept = [rings[place] for place in range(slot, slot + len(site.slots)) if place in rings]
        slot += len(site.slots)
        flops = sum(view.flops.get(node.name, 0) for node in site.region)
        blocks = dict.fromkeys(node.meta["block"] for node in site.region if "block" in node.meta)
        rows.append(
            SiteRow(
                name=site.name,
                kind=site.kind,
                blocks=list(blocks),
                nodes=len(site.region),
                flops=flops,
                share=flops / flops_full if flops_full else 0.0,
                shapes=[list(shape) for shape, _ in kept],
                nbytes=nbytes_of(kept),
                dtypes=[str(dtype).removeprefix("torch.") for _, dtype in kept],
            )
        )
    return rows


def nbytes_of(rings: Sequence[tuple[tuple[int, ...], torch.dtype]]) -> int:
    """Bytes of ``rings``, each a shape and a dtype, with the scales of quantised ones."""
    scales = sum(shape[0] * torch.float32.itemsize for shape, dtype in rings if dtype in QUANTISED)
    return sum(prod(shape) * dtype.itemsize for shape, dtype in rings) + scales
