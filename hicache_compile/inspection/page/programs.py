"""The section about graphs: what each is, costs, and says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from hicache_compile.inspection.findings import Findings, ProgramRow
from hicache_compile.inspection.page.markup import bar, table
from hicache_compile.inspection.tables import passes, tera

INLINE = 400_000  # characters of all graphs on the page together; what is longer is left out
ABOUT = {
    "captured": "the denoiser as Dynamo captured it",
    "guarded": "each site as a branch: compute or forecast",
    "full": "the program of a computed step; it keeps the anchors",
    "forecast": "the program of a forecast step: what is left to compute",
}


def programs(found: Findings, texts: Mapping[str, str], files: Sequence[str]) -> str:
    """A table of the graphs, then the text of each that has room; ``files``: those beside the page, linked."""
    most = max((one.flops or 0 for one in found.programs), default=0) or 1
    links = {name[3:].rpartition(".")[0]: name for name in files}
    rows = [_row(one, most, links.get(one.name, "")) for one in found.programs]
    shown = table("graphs", ("graph", "what it is", "#operators", "#FLOPs"), rows) if rows else ""
    own = "".join(f"<p>{escape(line)}</p>" for line in passes(found))
    return shown + own + "\n".join(_texts(texts, links))


def _row(one: ProgramRow, most: int, link: str) -> str:
    name = f'<a href="{escape(link)}">{escape(one.name)}</a>' if link else escape(one.name)
    about = ABOUT.get(one.name.partition(".")[0], "a program of a step")
    flops = "both branches" if one.flops is None else tera(one.flops) + bar(one.flops / most)
    return f"<tr><td>{name}</td><td>{about}</td><td class=num>{one.ops:,}</td><td class=num>{flops}</td></tr>"


def _texts(texts: Mapping[str, str], links: Mapping[str, str]) -> list[str]:
    """The text of each graph behind its name, the short ones first served."""
    room, carried = INLINE, set()
    for name, text in sorted(texts.items(), key=lambda item: len(item[1])):
        if len(text) <= room:
            room -= len(text)
            carried.add(name)
    shown = []
    for name, text in texts.items():
        about = f"<code>{escape(name)}</code> <span class=dim>{text.count(chr(10)):,} lines of Python</span>"
        if name in carried:
            shown.append(f"<details><summary>{about}</summary><pre tabindex=0>{escape(text)}</pre></details>")
        else:
            where = f'<a href="{escape(links[name])}">the file</a>' if name in links else "a dump has it as a file"
            shown.append(f"<p class=absent>{about}: too long for this page; {where}</p>")
    return shown
