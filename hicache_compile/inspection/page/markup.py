"""Pieces of HTML that the sections of the page share. All text is escaped here or by the caller."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape

MORE = 40  # rows of a table or a map that are shown one by one


def section(anchor: str, title: str, subtitle: str, body: str) -> str:
    """A part of the page under a heading of its own."""
    return (
        f'<section id="{anchor}" aria-labelledby="{anchor}-title"><h2 id="{anchor}-title">{title}</h2>'
        f"<p class=lead>{escape(subtitle)}</p>\n{body}\n</section>"
    )


def scrolled(label: str, body: str, tall: bool = False) -> str:
    """``body`` in a box of its own that scrolls, with the keyboard too."""
    classes = '"scroll tall"' if tall else "scroll"
    return f'<div class={classes} role=region aria-label="{escape(label)}" tabindex=0>{body}</div>'


def table(label: str, headings: Sequence[str], rows: Sequence[str], tall: bool = False) -> str:
    """A table of ``rows`` of HTML. Headings that begin with ``#`` stand over numbers."""
    heads = "".join(
        f"<th scope=col{' class=num' if heading.startswith('#') else ''}>{escape(heading.lstrip('#'))}</th>"
        for heading in headings
    )
    body = f"<table><thead><tr>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    return scrolled(label, body, tall)


def row(cells: Sequence[str], numbers: Sequence[str] = (), chosen: bool = False) -> str:
    """A row: ``cells`` as escaped text, then ``numbers``."""
    given = "".join(f"<td>{escape(cell)}</td>" for cell in cells)
    given += "".join(f"<td class=num>{escape(number)}</td>" for number in numbers)
    return f"<tr{' class=chosen' if chosen else ''}>{given}</tr>"


def bar(share: float, kind: str = "full") -> str:
    """A bar as long as ``share`` of the room there is. It repeats a number that stands beside it."""
    return f'<i class="bar {kind}" style="width:{100 * min(1.0, share):.2f}%" aria-hidden=true></i>'


def coded(text: str) -> str:
    """``text`` escaped, with what is in backticks as code."""
    return re.sub(r"`([^`]*)`", r"<code>\1</code>", escape(text))


def hidden(text: str) -> str:
    """``text`` for screen readers alone."""
    return f"<span class=unseen>{escape(text)}</span>"


def counted(number: int, what: str) -> str:
    """``1 site``, ``2 sites``."""
    return f"{number:,} {what}{'s' * (number != 1)}"
