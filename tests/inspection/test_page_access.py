"""The page of ``explain`` for everyone: contrast, headings, names, keyboard, small windows; nothing from elsewhere."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.resources import files
from itertools import pairwise
from typing import Any

import pytest

from hicache_compile.inspection.decision_rows import Row
from hicache_compile.inspection.findings import BlockRow, Ran
from hicache_compile.inspection.page import page
from tests.support.chromium import BINARY, Tab, chromium
from tests.support.contrast import contrast, rules, schemes
from tests.support.findings import findings
from tests.support.pages import Document, Element

CSS = (files("hicache_compile.inspection.page") / "page.css").read_text(encoding="utf-8")
SURFACES = ("paper", "card", "soft")
TEXT, GRAPHIC = 4.5, 3.0
DECORATION = {"line", "paper", "card", "soft"}  # lines between things that are told apart without them
INTERACTIVE = {"a", "button", "input", "summary"}


def everything() -> str:
    """A page with all there can be on one."""
    kinds = ("joint-attention", "cross-attention", "mlp", "parallel", "other", "something")
    blocks = [BlockRow(f"blocks.{n}", 4, 500, 500 * (n == 0), {kind: 400}) for n, kind in enumerate(kinds)]
    rows = [Row("blocks.0.mlp", "mlp", "factr-"), Row("blocks.1.attn", "mlp", "ffffff")]
    return page(
        findings(
            blocks=blocks, decisions="FS.spt", refused=[("blocks.1.mlp", "`a` draws random numbers"), ("x", "y")],
            graphs=2, memory="fits", ran=Ran("pab", {"a": "FS.spt", "b": "F....."}, {"a": rows, "b": rows}),
        ),
        {"captured": "x = 1\n", "guarded": "y" * 500_000}, ["01_captured.py"], {"torch": "2"},
        [("one", findings()), ("other", findings())],
    )  # fmt: skip


@pytest.fixture(scope="module")
def seen() -> Document:
    return Document(everything())


def variables(value: str) -> list[str]:
    return re.findall(r"var\(--([\w-]+)\)", value)


def test_colours_are_declared_once() -> None:
    for selector, given in rules(CSS):
        assert not re.search(r"#[0-9a-f]{3}|rgb|hsl", " ".join(given.values())), selector
    assert len(schemes(CSS)["light"]) > 20


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_declared_colours_can_be_told_apart(scheme: str) -> None:
    colours, pairs = schemes(CSS)[scheme], []
    for selector, given in rules(CSS):
        own = variables(given.get("background", ""))
        for name in variables(given.get("color", "")) + variables(given.get("fill", "")) * ("text" in selector):
            if not name.startswith("on"):  # text on a colour of its own: below
                pairs += [(selector, name, under, TEXT) for under in own or SURFACES]
        drawn = [given.get(key, "") for key in ("background", "fill", "stroke", "outline", "border-color")]
        graphics = {name for value in drawn for name in variables(value)} - DECORATION
        pairs += [(selector, name, under, GRAPHIC) for name in graphics for under in ("paper", "card")]
    fills = {name for _, given in rules(CSS) for name in variables(given.get("background", ""))} - DECORATION
    lettered = fills - {"unread", "live", "rest", "forecast"}  # the first three bear no text
    pairs += [("text", "on", name, TEXT) for name in lettered] + [("text", "on-forecast", "forecast", TEXT)]
    assert len(pairs) > 60
    low = [pair for pair in pairs if contrast(colours[pair[1]], colours[pair[2]]) < pair[3]]
    assert low == []


def test_the_document_has_a_language_a_title_and_fits_a_phone(seen: Document) -> None:
    assert seen.find("html")[0].attributes["lang"] == "en"
    names = {meta.attributes.get("name"): meta.attributes.get("content") for meta in seen.find("meta")}
    assert names["viewport"] == "width=device-width, initial-scale=1"
    assert names["color-scheme"] == "light dark"
    (title, *_) = seen.text("title")
    assert title.startswith("a model: ")


def test_headings_are_in_order(seen: Document) -> None:
    levels = [int(element.tag[1]) for element in seen.elements if re.fullmatch(r"h[1-6]", element.tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert len(seen.find("main")) == len(seen.find("nav")) == len(seen.find("header")) == 1


def test_drawings_have_names_or_are_hidden(seen: Document) -> None:
    drawings = seen.find("svg")
    assert len(drawings) > 4
    for drawing in drawings:
        given = drawing.attributes
        if given.get("aria-hidden") != "true":
            assert given["role"] == "img"
            assert any(isinstance(child, Element) and child.tag == "title" and child.text for child in drawing.children)
    assert all(element.attributes["aria-label"] for element in seen.elements if element.attributes.get("role") == "img"
               and element.tag != "svg")  # fmt: skip


def test_what_can_be_used_is_native(seen: Document) -> None:
    for element in seen.elements:
        given = element.attributes
        assert not [name for name in given if name.startswith("on")], given
        assert given.get("role") not in ("button", "link", "tab", "checkbox")
        if "tabindex" in given:  # only what scrolls, so that keys can
            assert given["tabindex"] == "0"
            assert element.tag == "pre" or (given["role"] == "region" and given["aria-label"])
        if element.tag in INTERACTIVE - {"input"}:
            assert element.text, given
        if element.tag == "summary":
            assert not [e for e in inside(element) if e.tag in INTERACTIVE]
    named = {label.attributes["for"] for label in seen.find("label")}
    assert {field.attributes["id"] for field in seen.find("input")} == named


def inside(element: Element) -> Iterator[Element]:
    for child in element.children:
        if isinstance(child, Element):
            yield child
            yield from inside(child)


def test_names_within_the_page_lead_somewhere(seen: Document) -> None:
    names = [element.attributes["id"] for element in seen.elements if "id" in element.attributes]
    assert len(names) == len(set(names))
    for element in seen.elements:
        led = [element.attributes.get(key) for key in ("aria-labelledby", "for")]
        if element.attributes.get("href", "").startswith("#"):
            led.append(element.attributes["href"][1:])
        assert {name for name in led if name is not None} <= set(names)


def test_no_meaning_is_in_colour_alone(seen: Document) -> None:
    for cell in seen.find("b.cell"):
        assert cell.text, "a step has a letter"
    keys = [key.text for key in seen.find("b.key")]
    assert keys.count("") <= 1  # the rest of a block, the only part without a letter
    assert all(mark.text for mark in seen.find("span.mark"))


def test_nothing_comes_from_elsewhere() -> None:
    text = everything()
    assert "http" not in text
    assert not re.search(r"url\(|@import|<link|<img|<iframe|src=", text)
    outside = [e.attributes["href"] for e in Document(text).elements if "href" in e.attributes]
    assert {link for link in outside if not link.startswith("#")} == {"01_captured.py"}


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    if BINARY is None:
        pytest.skip("no Chromium to open the page in")
    folder = tmp_path_factory.mktemp("page")
    (folder / "page.html").write_text(everything(), encoding="utf-8")
    with chromium(folder / "profile") as opened:
        opened.open((folder / "page.html").as_uri())
        yield opened


TEXTS = """[...document.querySelectorAll('details')].forEach((each) => each.open = true),
[...document.querySelectorAll('body *')].filter((each) => each.checkVisibility()
  && !each.closest('.unseen, script, defs')
  && [...each.childNodes].some((node) => node.nodeType === 3 && node.data.trim())).map((each) => {
    let under = each;
    while (under && getComputedStyle(under).backgroundColor === 'rgba(0, 0, 0, 0)') under = under.parentElement;
    const style = getComputedStyle(each), svg = each instanceof SVGElement;
    return [each.outerHTML.slice(0, 90), svg ? style.fill : style.color, getComputedStyle(under).backgroundColor]; })"""


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("dark", [False, True])
def test_in_a_browser(tab: Tab, width: int, dark: bool) -> None:
    tab.open(str(tab.value("location.href")).partition("#")[0], width, 800, dark)
    assert tab.errors == []
    low = [(text, ink, under) for text, ink, under in tab.value(TEXTS) if contrast(rgb(ink), rgb(under)) < TEXT]
    assert low == []
    assert tab.value("document.documentElement.scrollWidth") == width
    tab.value("document.querySelectorAll('details').forEach((each) => each.open = false)")
    used = "[...document.querySelectorAll('summary, button, input')]"
    assert tab.value(f"Math.min(...{used}.map((each) => each.getBoundingClientRect().height))") >= 18


def test_a_wide_map_is_scaled_on_a_phone(tab: Tab) -> None:
    tab.open(str(tab.value("location.href")).partition("#")[0], 390)
    box = "document.querySelector('svg.map').parentElement"
    tab.value("document.querySelector('svg.map').setAttribute('width', 2000)")
    assert tab.value(f"{box}.scrollWidth <= {box}.clientWidth")
    bars = "document.querySelector('svg.map use').getBoundingClientRect()"
    assert 0 < tab.value(f"{bars}.width") < 390


def test_a_block_opens_with_the_keyboard(tab: Tab) -> None:
    tab.open(str(tab.value("location.href")).partition("#")[0])
    assert tab.value("document.querySelector('.panel').checkVisibility()") is False
    tab.value("document.querySelector('.block summary').focus()")
    tab.press("Enter", 13, "\r")
    assert tab.value("document.querySelector('.panel').checkVisibility()") is True
    wide = "document.querySelector('.panel').getBoundingClientRect().width"
    assert tab.value(wide) == tab.value("document.querySelector('.blocks').getBoundingClientRect().width")
    drawn = tab.value("[...document.querySelectorAll('.map use')].map((each) => each.getBBox().width)")
    assert len(drawn) == len(Document(everything()).find("g.row"))
    assert min(drawn) > 50


def rgb(text: Any) -> tuple[int, int, int]:
    found = re.fullmatch(r"rgb\((\d+), (\d+), (\d+)\)", text)
    assert found is not None, text
    return int(found[1]), int(found[2]), int(found[3])
