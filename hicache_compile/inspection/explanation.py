"""``explain``: what was found in a denoiser, and what a policy makes of it, as plain data and as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from hicache_compile.errors import plain, whole_number
from hicache_compile.inspection.findings import BranchRow, Findings, Ran, ScopeRow
from hicache_compile.inspection.graph_rows import (
    block_rows,
    graph_rows,
    opaque_rows,
    pass_rows,
    program_rows,
    site_rows,
)
from hicache_compile.inspection.page import page
from hicache_compile.inspection.tables import render
from hicache_compile.inspection.versions import versions
from hicache_compile.inspection.view import View
from hicache_compile.policy.files import file_path, write_whole
from hicache_compile.policy.json_codec import to_dict
from hicache_compile.policy.layout import SCOPES, Layout
from hicache_compile.policy.policy import Policy
from hicache_compile.policy.sparsity.chipmunk import Chipmunk
from hicache_compile.runtime.deciders.computed_steps import letters_of

__all__ = ["Explanation", "View", "explain"]


class Explanation(Findings):
    """What ``explain`` found: ``print`` shows it as tables, ``html`` writes it as a page."""

    __slots__ = ()

    def __str__(self) -> str:
        return render(self)

    def html(
        self,
        path: str | Path,
        graphs: Mapping[str, object] | None = None,
        compared: Sequence[tuple[str, Findings]] = (),
    ) -> Path:
        """Write a page that shows it to the file ``path``, and return where: one file that needs no other.

        Args:
            path: the file; one that is there is replaced.
            graphs: ``compiled.graphs``, to show them as Python too. Graphs that would make the page too large are not.
            compared: explanations of other policies on the same denoiser, each with its name.

        Raises:
            HiCacheError: ``path`` is no path, or cannot be written.
        """
        place = file_path("html.path", path)
        texts = {name: str(graph) for name, graph in (graphs or {}).items()}
        write_whole(place, page(self, texts, versions=versions(), compared=compared))
        return place


def explain(
    model: str,
    views: Sequence[View],
    policy: Policy,
    num_steps: int,
    scopes: Sequence[str] = SCOPES,
    sparsity: Chipmunk | None = None,
    layouts: Sequence[Layout] = (),
    memory: str = "",
    ran: Ran | None = None,
    by_sample: bool = False,
) -> Explanation:
    """What ``policy`` makes of the graphs of one denoiser call over a run of ``num_steps``; and at which other scopes.

    Args:
        model: the name of the denoiser.
        views: its graphs.
        layouts: of each graph, what a memory budget made of the policy; by default the policy's own.
        memory: what the budget has to say about it.
        ran: the newest run, where there was one.
        by_sample: whether each sample of a batch decided for itself.

    Raises:
        HiCacheError: ``num_steps`` is not a positive integer, or not the length the policy is made for.
    """
    num_steps = plain(num_steps)
    whole_number("explain", "num_steps", num_steps, 1)
    layouts = layouts or [replace(policy.layout, sparsity=sparsity)] * len(views)
    layout, sparsity = layouts[0], layouts[0].sparsity
    rewrites = [view.rewrite(own) for view, own in zip(views, layouts, strict=True)]
    sparse = [path for made in rewrites for path in made.sparse]
    decisions = _letters(views, layouts, policy, num_steps)
    flops_full = sum(view.flops_full for view in views)
    if layout.fixed_scope:
        scopes = (layout.scope,)  # what is measured or told apart is at this one
    cheap = [part for view, own in zip(views, layouts, strict=True) for part in view.costs(own)]
    chosen = _at_scope(layout.scope, views, layouts, policy, decisions, flops_full)
    rows = [
        chosen
        if scope == layout.scope
        else _at_scope(scope, views, [_elsewhere(own, scope) for own in layouts], policy, decisions, flops_full)
        for scope in scopes
    ]
    return Explanation(
        model=model,
        policy=to_dict(policy, own_parts=True),
        scope=layout.scope,
        memory=memory,
        num_steps=num_steps,
        decisions=decisions,
        graphs=len(views),
        nodes=sum(len(view.graph.graph.nodes) for view in views),
        flops_full=flops_full,
        flops_forecast=chosen.flops_forecast,
        flops_speedup=chosen.ceiling,
        collectives_full=sum(view.cost.collectives for view in views),
        collectives_forecast=sum(part.collectives for part in cheap),
        bytes_sent_full=sum(view.cost.bytes_sent for view in views),
        bytes_sent_forecast=sum(part.bytes_sent for part in cheap),
        state_bytes=chosen.state_bytes,
        blocks=[row for view, own in zip(views, layouts, strict=True) for row in block_rows(view, own)],
        sites=[row for view, own in zip(views, layouts, strict=True) for row in site_rows(view, own, flops_full)],
        scopes=rows,
        sparsity=sparsity.to_dict() if sparsity is not None and sparse else None,
        sparse=sparse,
        refused=sorted({(entry.site, entry.reason) for made in rewrites for entry in made.refused}),
        programs=program_rows(views, layouts),
        partitioned=[path for made in rewrites for path in made.partitioned],
        tokenwise=[name for made in rewrites for name in made.tokenwise],
        branches=[
            _branch(name, views, layouts, policy.for_branch(name), num_steps, flops_full) for name in policy.branches
        ],
        ran=ran,
        by_sample=by_sample,
        program_passes=pass_rows(views, layouts),
        parts=graph_rows(views, layouts),
        opaque=opaque_rows(views),
    )


def _letters(views: Sequence[View], layouts: Sequence[Layout], policy: Policy, num_steps: int) -> str:
    """One letter a step, as the newest graph that caches something decides; all are computed where none does."""
    pairs = list(zip(views, layouts, strict=True))
    if all(view.programs(layout).stateless for view, layout in pairs):
        return "F" * num_steps
    planned = [made for view, layout in pairs if (made := view.planned(layout, policy, num_steps))]
    if planned:
        return "".join(decision.letter for decision in planned[-1])
    rewrites = [view.rewrite(layout) for view, layout in pairs]
    sparsity = layouts[0].sparsity if any(made.sparse for made in rewrites) else None
    return letters_of(policy, num_steps, sparsity, any(made.tokenwise for made in rewrites))


def _branch(
    name: str, views: Sequence[View], layouts: Sequence[Layout], policy: Policy, num_steps: int, flops_full: int
) -> BranchRow:
    decisions = _letters(views, layouts, policy, num_steps)
    row = _at_scope(layouts[0].scope, views, layouts, policy, decisions, flops_full)
    return BranchRow(name, decisions, row.ceiling)


def _elsewhere(layout: Layout, scope: str) -> Layout:
    """``layout`` at another ``scope``, without a user's own passes, which may not be made for it."""
    return replace(layout.at(scope), program_passes=())


def _at_scope(
    scope: str, views: Sequence[View], layouts: Sequence[Layout], policy: Policy, decisions: str, flops_full: int
) -> ScopeRow:
    pairs = list(zip(views, layouts, strict=True))
    rings = [ring for view, layout in pairs for ring in view.rings(layout).values()]
    cheap = sum(view.flops_of(layout) for view, layout in pairs)
    spent = sum(view.flops_of_run(layout, policy, decisions) for view, layout in pairs)
    return ScopeRow(
        scope=scope,
        sites=sum(len(view.rewrite(layout).sites) for view, layout in pairs),
        slots=len(rings),
        flops_forecast=cheap,
        state_bytes=sum(view.nbytes(layout) for view, layout in pairs),
        ceiling=len(decisions) * flops_full / spent if spent else 1.0,
    )
