"""An HTML page as its reader finds it: elements by a simple selector, their text, headings, names."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from html.parser import HTMLParser

VOID = {"meta", "input", "br", "link", "img", "hr"}
IN_LINE = {"b", "i", "code", "span", "a", "small"}


@dataclass(slots=True)
class Element:
    """An element: its children are elements and text."""

    tag: str
    attributes: dict[str, str]
    children: list[Element | str] = field(default_factory=list)

    def is_a(self, selector: str) -> bool:
        """Whether it is a ``tag``, ``tag.class`` or ``#id``."""
        if selector.startswith("#"):
            return self.attributes.get("id") == selector[1:]
        tag, _, name = selector.partition(".")
        return self.tag == tag and (not name or name in self.attributes.get("class", "").split())

    @property
    def text(self) -> str:
        """All text inside, in one line."""
        parts = (
            child if isinstance(child, str) else child.text if child.tag in IN_LINE else f" {child.text} "
            for child in self.children
        )
        return re.sub(r"\s+", " ", "".join(parts)).strip()


class Document(HTMLParser):
    """A page, parsed. Raises ``AssertionError`` where elements are not closed in their order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[Element] = []
        self._open = [Element("", {})]
        self.feed(text)
        assert len(self._open) == 1, [element.tag for element in self._open]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._add(tag, attrs)
        if tag not in VOID:
            self._open.append(self.elements[-1])

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._add(tag, attrs)

    def _add(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), (tag, attrs)
        self.elements.append(Element(tag, {name: value or "" for name, value in attrs}))
        self._open[-1].children.append(self.elements[-1])

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop().tag == tag, tag

    def handle_data(self, data: str) -> None:
        self._open[-1].children.append(data)

    def find(self, selector: str) -> list[Element]:
        """The elements that ``selector`` names, in order."""
        return [element for element in self.elements if element.is_a(selector)]

    def text(self, selector: str) -> list[str]:
        """Their text."""
        return [element.text for element in self.find(selector)]

    def named(self, selector: str) -> list[str]:
        """What those that have a name are called: their ``data-name``."""
        return [e.attributes["data-name"] for e in self.find(selector) if "data-name" in e.attributes]

    def labels(self, selector: str) -> list[str]:
        """What they are to a screen reader."""
        return [element.attributes.get("aria-label", "") for element in self.find(selector)]
