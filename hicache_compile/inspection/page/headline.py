"""The head of the page: what it is about, what the policy does, and the numbers that matter."""

from __future__ import annotations

import json
from html import escape

from hicache_compile.inspection.findings import Findings
from hicache_compile.inspection.page.markup import bar, counted
from hicache_compile.inspection.page.words import policy_name, sentence
from hicache_compile.inspection.tables import percent, size, tera


def headline(found: Findings) -> str:
    """Model, policy, one sentence, FLOPs before and after, four numbers."""
    most = ", where guards skip every step that they may" if found.policy.get("guards") else ""
    policy = escape(json.dumps(found.policy, indent=1))
    tiles = "".join(
        f"<div class=tile><b>{escape(value)}</b> <span>{escape(label)}</span></div>" for value, label in _tiles(found)
    )
    return (
        f"<header><div class=head><div><h1>{escape(found.model)}</h1><p class=policy>{escape(policy_name(found))}</p>"
        f"<p class=says>{escape(sentence(found))}</p></div>"
        f"<p class=big><b>{found.flops_speedup:.2f}x</b> <span>speed-up by FLOPs, {counted(found.num_steps, 'step')}{most}. "
        f"The clock may gain less.</span></p></div>{_flops(found)}<div class=tiles>{tiles}</div>"
        f"<details><summary>The policy as JSON</summary><pre tabindex=0>{policy}</pre></details></header>"
    )


def _tiles(found: Findings) -> list[tuple[str, str]]:
    return [
        (f"{found.computed} of {found.num_steps}", "steps computed"),
        (str(len(found.blocks)), f"block{'s' * (len(found.blocks) != 1)} found"),
        (str(len(found.sites)), f"site{'s' * (len(found.sites) != 1)} at scope {found.scope}"),
        (size(found.state_bytes), "of anchors a guidance branch"),
    ]


def _flops(found: Findings) -> str:
    """FLOPs of a step and of a run, uncached above cached, as bars."""
    full, run = max(1, found.flops_full), max(1, found.num_steps * found.flops_full)
    cached = run / found.flops_speedup
    rows = [
        ("full step", tera(found.flops_full), 1.0, "plain"),
        (
            "forecast step",
            f"{tera(found.flops_forecast)}, {percent(found.flops_forecast / full)}",
            found.flops_forecast / full,
            "forecast",
        ),
        (f"{counted(found.num_steps, 'step')}, uncached", tera(run), 1.0, "plain"),
        (
            f"{counted(found.num_steps, 'step')}, this policy",
            f"{tera(cached)}, {percent(cached / run)}",
            cached / run,
            "full",
        ),
    ]
    shown = "".join(
        f"<li><span>{escape(name)}</span> {bar(share, kind)}<b>{escape(value)}</b></li>"
        for name, value, share, kind in rows
    )
    return f"<ul class=flops>{shown}</ul>"
