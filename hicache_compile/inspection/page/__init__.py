"""A self-contained page that shows a policy on a denoiser: ``Explanation.html`` writes it, ``dump`` as ``index.html``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files

from hicache_compile.inspection.findings import Findings
from hicache_compile.inspection.page.headline import headline
from hicache_compile.inspection.page.markup import section
from hicache_compile.inspection.page.memory import memory
from hicache_compile.inspection.page.model import model
from hicache_compile.inspection.page.notes import notes
from hicache_compile.inspection.page.programs import programs
from hicache_compile.inspection.page.sites import elsewhere, sites
from hicache_compile.inspection.page.steps import steps
from hicache_compile.inspection.page.words import policy_name

__all__ = ["page"]

Part = tuple[str, str, str, str]  # anchor, title, subtitle, body


def page(
    found: Findings,
    texts: Mapping[str, str] | None = None,
    names: Sequence[str] = (),
    versions: Mapping[str, str] | None = None,
    compared: Sequence[tuple[str, Findings]] = (),
) -> str:
    """The page's HTML.

    Args:
        found: the explanation to show.
        texts: graphs and generated code, by name.
        names: the names of the other files in the page's folder, if it has one; graphs as ``01_captured.py``.
        versions: of the packages used.
        compared: other policies on the same denoiser.
    """
    parts = _parts(found, texts or {}, names, compared)
    links = "".join(f'<a href="#{anchor}">{title}</a>' for anchor, title, _, _ in parts)
    used = ", ".join(f"{name} {release}" for name, release in (versions or {}).items())
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="color-scheme" content="light dark">',
            f"<title>{escape(found.model)}: {escape(policy_name(found))}</title>",
            f"<style>{_file('page.css')}</style></head><body>",
            '<a class=skip href="#model">Skip to the model</a>',
            headline(found),
            f'<nav aria-label="sections">{links}</nav><main>',
            *(section(*part) for part in parts),
            f"</main><footer class=dim>{escape(used)}</footer>",
            f"<script>{_file('page.js')}</script></body></html>",
        ]
    )


def _file(name: str) -> str:
    return (files(__name__) / name).read_text(encoding="utf-8")


def _parts(
    found: Findings, texts: Mapping[str, str], names: Sequence[str], compared: Sequence[tuple[str, Findings]]
) -> list[Part]:
    parts = [
        ("model", "Model", "The blocks in order, by FLOPs and kind. Open one to see its sites.", model(found)),
        ("steps", "Steps", "What happens in each step of a run.", steps(found)),
        ("notes", "Refusals and warnings", "What is not cached, why, and what to do.", notes(found)),
        ("memory", "Memory", "What is kept from step to step: mostly the anchors that forecasts read.", memory(found)),
        ("programs", "Graphs", "The programs of a step, and what they were made from.", programs(found, texts, names)),
        ("all-sites", "Sites", "All of them, by FLOPs and bytes.", sites(found)),
        ("elsewhere", "Alternatives", "The same numbers elsewhere. At most: the speed-up if time were proportional to "
         "FLOPs.", elsewhere(found, compared)),
    ]  # fmt: skip
    if names:
        linked = " ".join(f'<a href="{escape(name)}">{escape(name)}</a>' for name in names)
        parts.append(("files", "Files", "Beside this page.", f"<p class=files>{linked}</p>"))
    return parts
