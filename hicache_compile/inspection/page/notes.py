"""The section of refusals and warnings: which, why, and what to do."""

from __future__ import annotations

import re
from html import escape

from hicache_compile.inspection.findings import Findings
from hicache_compile.inspection.page.markup import coded, counted
from hicache_compile.inspection.tables import pattern

ADVICE = (  # a part of the reason, and what to do
    ("draws random numbers", "Call model.eval(), or draw the noise before the call and pass it in."),
    ("depends on data", "Pad it to a size that is known, or use scope='stack'."),
    ("writes in place", "Write to a new tensor in the model: x = x + y in place of x += y."),
    ("written in place", "Write to a new tensor in the model: x = x + y in place of x += y."),
    ("a view of the site's own input", "Return a new tensor from the module, or use scope='block' or 'stack'."),
    ("is also read by", "Use scope='block' or 'stack', whose sites may hold the reader too."),
    ("must run after something", "Use scope='block' or 'stack'."),
    ("nothing in it is worth caching", "Nothing: computing it costs next to nothing."),
    ("it follows from the time alone", "Nothing: computing it costs next to nothing."),
    ("is a residual sum of its input", "Nothing where this is no block. Else return x + f(x) from its forward."),
    ("must be real numbers", "Have the blocks pass on real and imaginary parts as two channels of a real tensor."),
    ("is a nested tensor", "Pad the sequences to one length, with a mask."),
    ("the gate it is multiplied with", "Nothing: the sites are cached one by one. Scope 'stack' keeps fewer bytes."),
    ("the fuel for", "Unset HICACHE_FUEL."),
    ("token-wise:", "Nothing: it is forecast as a whole in token-wise steps."),
    ("stays dense:", "Nothing: it is computed in full in sparse steps."),
    ("masked", "Call the model without a mask, or use a policy that does not partition attention."),
)
OTHERWISE = "Nothing: it is computed in every step. Another scope may cut it elsewhere: scope='block' or 'stack'."

Note = tuple[str, str, str]  # what, why, what to do


def notes(found: Findings) -> str:
    """Warnings first, then what was refused, equal reasons together."""
    warned = "".join(_item("warning", what, why, do) for what, why, do in warnings(found))
    refused = "".join(
        _item("refused", _names(names), reason, advice(reason), names) for reason, names in _by_reason(found).items()
    )
    if not warned + refused:
        return "<p>No site was refused, and there is nothing to warn of.</p>"
    return f"<ul class=notes>{warned}{refused}</ul>"


def warnings(found: Findings) -> list[Note]:
    """What a reader should know before trusting the numbers."""
    made: list[Note] = []
    if not (found.sites or found.partitioned or found.sparse) and found.scope != "none":
        made.append(("Nothing is cached", f"no site was found at scope {found.scope}", "See the reasons below."))
    if found.graphs > 1:
        made.append(
            (
                f"The denoiser was captured in {found.graphs} graphs",
                "its forward breaks the graph, and no site spans two graphs",
                "Find the breaks with TORCH_LOGS=graph_breaks.",
            )
        )
    if found.sites and found.computed == found.num_steps and not found.policy.get("guards"):
        made.append(
            (
                "Every step is computed",
                f"a run of {found.num_steps} steps is too short for this schedule",
                "Take more steps, or a smaller warmup or interval.",
            )
        )
    if found.flops_forecast * 2 > found.flops_full and found.sites:
        made.append(
            (
                "A forecast step costs more than half of a full one",
                "most of the FLOPs are outside the sites, or in blocks that are always computed",
                "Try another scope: the table of scopes has their FLOPs.",
            )
        )
    if found.memory:
        made.append(("A memory budget is set", found.memory, "Raise memory_budget to keep more anchors."))
    return made


def advice(reason: str) -> str:
    """What to do about a site that was refused for ``reason``."""
    return next((do for part, do in ADVICE if part in reason), OTHERWISE)


def _by_reason(found: Findings) -> dict[str, list[str]]:
    """The sites of each reason; of reasons that differ only in the number of a node, the first stands for all."""
    first: dict[tuple[str, str], str] = {}
    grouped: dict[str, list[str]] = {}
    for name, reason in found.refused:
        alike = re.sub(r"`[^`]*`", lambda quoted: re.sub(r"\d+", "*", quoted[0]), reason)
        grouped.setdefault(first.setdefault((pattern(name), alike), reason), []).append(name)
    return grouped


def _names(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{pattern(names[0])}: {counted(len(names), 'site')}"


def _item(kind: str, what: str, why: str, do: str, names: list[str] | None = None) -> str:
    listed = ""
    if names and len(names) > 1:
        inside = "".join(f"<li><code>{escape(name)}</code></li>" for name in names)
        listed = f"<details><summary>which</summary><ul class=names>{inside}</ul></details>"
    return (
        f'<li class={kind}><b><span class="mark {kind}">{kind}</span> {escape(what)}</b>'
        f"<p><b>Why</b> {coded(why)}</p><p><b>What to do</b> {escape(do)}</p>{listed}</li>"
    )
