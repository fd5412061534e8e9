"""The section about steps: the plan, and what the newest run did."""

from __future__ import annotations

from html import escape

from hicache_compile.inspection.decision_rows import Row
from hicache_compile.inspection.findings import Findings, Ran
from hicache_compile.inspection.page.cells import (
    OF_CELL,
    Drawn,
    letter_legend,
    shape_legend,
    step_map,
    strip,
    together,
)
from hicache_compile.inspection.page.markup import scrolled
from hicache_compile.inspection.page.words import LETTERS, letters_of

ELSEWHERE = "everything else"
MOST = 4  # guidance branches that are drawn


def steps(found: Findings) -> str:
    """The plan of a run; below it the newest run, where there was one."""
    letters = letters_of(found)
    plan = strip(found.decisions, letters, "plan, by step") + letter_legend(found.decisions, letters)
    rows = together(_planned(found))
    drawn = shape_legend(rows) + scrolled("plan by site and step", step_map(rows, "plan", "Plan: each site by step"))
    return (
        f"<h3>The plan</h3>{plan}<h4>Each site by step</h4>{drawn}"
        + _branches(found)
        + (_ran(found.ran) if found.ran else "")
    )


def _branches(found: Findings) -> str:
    """The plans of branches with schedules of their own."""
    letters = letters_of(found)
    return "".join(
        f"<h4>The plan of guidance branch <code>{escape(one.name)}</code>, {one.flops_speedup:.2f}x by FLOPs</h4>"
        + strip(one.decisions, letters, f"plan, {one.name}, by step")
        for one in found.branches
    )


def _ran(ran: Ran) -> str:
    shown, every = f"<h3>The last run</h3><p>Decided by: <code>{escape(ran.strategy)}</code></p>", []
    for place, (context, run) in enumerate([*ran.letters.items()][:MOST]):
        several = len(ran.letters) > 1
        before = f"<h4>Guidance branch <code>{escape(context)}</code></h4>" if several else ""
        rows = together([_cells(row) for row in ran.rows.get(context, [])])
        shown += before + strip(run, LETTERS, f"last run, {context}, by step")
        if rows:
            title = f"Last run, {context}: each site by step"
            shown += ("" if several else "<h4>Each site by step</h4>") + scrolled(
                title, step_map(rows, f"run{place}", title)
            )
        every += rows
    if len(ran.letters) > MOST:
        shown += f"<p class=dim>And {len(ran.letters) - MOST} more.</p>"
    return shown + shape_legend(every) + letter_legend("".join(ran.letters.values()), LETTERS)


def _cells(row: Row) -> Drawn:
    return row.name, [OF_CELL[cell] for cell in row.cells]


def _planned(found: Findings) -> list[Drawn]:
    """Each row's state in each step, in block order."""
    order = {block.name: place for place, block in enumerate(found.blocks)}
    inside = {name for site in found.sites for name in site.blocks}
    placed = [
        (order.get(site.blocks[0], 0) if site.blocks else len(order), site.name, _states(found, bool(site.shapes)))
        for site in found.sites
    ]
    live = ["live"] * found.num_steps
    placed += [(place, name, live) for name, place in order.items() if name not in inside]
    drawn: list[Drawn] = [(name, states) for _, name, states in sorted(placed, key=lambda one: one[0])]
    return [*drawn, (ELSEWHERE, live)]


def _states(found: Findings, read: bool) -> list[str]:
    letters = letters_of(found)
    states = [letters[letter][0] for letter in found.decisions]
    return states if read else ["unread" if state in ("forecast", "free") else state for state in states]
