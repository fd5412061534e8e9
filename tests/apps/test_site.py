"""The documentation site: it builds without a warning, and each page can be read, followed and left again."""

from __future__ import annotations

import functools
import http.server
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from html.parser import HTMLParser
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from tests.support.chromium import BINARY, Tab, chromium

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(path.relative_to(DOCS).with_suffix(".html").as_posix() for path in DOCS.rglob("*.md"))
NEEDED = ("mkdocs", "material", "mkdocstrings")
pytestmark = pytest.mark.skipif(
    not all(map(find_spec, NEEDED)),
    reason="needs mkdocs-material and mkdocstrings (pip install 'hicache_compile[docs]')",
)
VOID = {"img", "br", "hr", "input", "meta", "link", "path", "source", "col", "rect", "wbr"}


class Page(HTMLParser):
    """What the tests look at in a page: its anchors, links and assets, and headings and pictures of its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.assets: list[str] = []
        self.own_links: list[str] = []
        self.headings: list[int] = []
        self.pictures: list[str | None] = []
        self._depth = 0  # inside of the article
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if given.get("id"):
            self.ids.add(given["id"] or "")
        if self._depth or tag == "article":
            self._depth += tag not in VOID
        href = given.get("href") or ""
        if tag == "a" and href:
            self.links.append(href)
            if self._depth and "headerlink" not in (given.get("class") or ""):
                self.own_links.append(href)
        if (tag in ("script", "img") and given.get("src")) or tag == "link":
            self.assets.append(given.get("src") or href)
        if self._depth and re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))
        if self._depth and tag == "img":
            self.pictures.append(given.get("alt"))

    def handle_endtag(self, tag: str) -> None:
        if self._depth:
            self._depth -= tag not in VOID


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a strict build."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environ = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="session")
def pages(site: Path) -> dict[str, Page]:
    return {name: Page((site / name).read_text(encoding="utf-8")) for name in PAGES}


def target(page: str, link: str) -> tuple[str, str]:
    """The path and the anchor that ``link`` on ``page`` leads to."""
    parts = urlsplit(link)
    path = os.path.normpath(os.path.join(os.path.dirname(page), unquote(parts.path))) if parts.path else page
    return path, unquote(parts.fragment)


def is_internal(link: str) -> bool:
    return not urlsplit(link).scheme and not link.startswith("//")


@pytest.mark.parametrize("name", PAGES)
def test_headings_begin_with_one_and_skip_no_level(pages: dict[str, Page], name: str) -> None:
    headings = pages[name].headings
    assert headings.count(1) == 1
    assert headings[0] == 1
    assert all(after - before <= 1 for before, after in pairwise(headings)), headings


@pytest.mark.parametrize("name", PAGES)
def test_every_picture_says_what_is_on_it(pages: dict[str, Page], name: str) -> None:
    assert all(alt and len(alt) > 5 for alt in pages[name].pictures)


@pytest.mark.parametrize("name", PAGES)
def test_every_link_leads_somewhere(pages: dict[str, Page], site: Path, name: str) -> None:
    for link in filter(is_internal, pages[name].links):
        path, anchor = target(name, link)
        assert (site / path).exists(), link
        if anchor and path in pages:
            assert anchor in pages[path].ids, link


@pytest.mark.parametrize("name", PAGES)
def test_a_reader_can_go_on(pages: dict[str, Page], name: str) -> None:
    """A link to another page in its text."""
    there = {target(name, link)[0] for link in filter(is_internal, pages[name].own_links)}
    assert there & set(pages) - {name}


@pytest.mark.parametrize("name", PAGES)
def test_nothing_is_fetched_from_elsewhere(pages: dict[str, Page], site: Path, name: str) -> None:
    for asset in pages[name].assets:
        assert is_internal(asset), asset
        assert (site / target(name, asset)[0]).exists(), asset


def test_every_page_is_in_the_navigation() -> None:
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").split("\nnav:\n")[1]
    assert sorted(re.findall(r"[\w/-]+(?=\.md$)", text, flags=re.MULTILINE)) == [
        page.removesuffix(".html") for page in PAGES
    ]


def test_every_public_name_is_in_the_reference(pages: dict[str, Page]) -> None:
    import hicache_compile

    anchors = set().union(*(page.ids for name, page in pages.items() if name.startswith("api/")))
    documented = {anchor.rpartition(".")[2] for anchor in anchors}
    assert not set(hicache_compile.__all__) - documented


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        return


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    """Where a server of this machine has the site."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=str(site))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture
def tab(tmp_path: Path) -> Iterator[Tab]:
    if BINARY is None:
        pytest.skip("needs Chromium")
    with chromium(tmp_path / "profile") as opened:
        yield opened


def test_a_phone_shows_it_without_scrolling_sideways(address: str, tab: Tab) -> None:
    for name in ("index", "how-it-works", "coverage", "troubleshooting", "recipes/flux", "api/compile", "coming-from"):
        tab.open(f"{address}/{name}.html", width=390, height=844)
        assert tab.value("document.documentElement.scrollWidth") <= 390, name
    assert not tab.errors


def test_the_search_finds_a_message(address: str, tab: Tab) -> None:
    tab.open(f"{address}/index.html?q=draws+random+numbers")
    tab.until("document.querySelectorAll('.md-search-result__item').length > 0")
    found = tab.value("document.querySelector('.md-search-result').textContent")
    assert "which a forecast step would skip" in " ".join(found.split())


def luminance(colour: str) -> float:
    """Relative luminance of ``#rrggbb``, as WCAG 2 defines it."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    low, high = sorted(map(luminance, (one, other)))
    return (high + 0.05) / (low + 0.05)


def test_contrast_is_that_of_the_standard() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


def test_the_drawing_reads_on_light_and_on_dark() -> None:
    """Text on its boxes by 7 to 1, lines on either page by 3 to 1, and no text beside a box."""
    drawing = (DOCS / "pictures" / "branch.svg").read_text(encoding="utf-8")
    texts = set(re.findall(r'<text [^>]*fill="(#\w{6})"', drawing))
    boxes = set(re.findall(r'<rect [^>]*fill="(#\w{6})"', drawing))
    lines = set(re.findall(r'stroke="(#\w{6})"', drawing))
    assert texts
    assert boxes
    assert lines
    assert all(contrast(text, box) >= 7 for text in texts for box in boxes)
    assert all(contrast(line, page) >= 3 for line in lines for page in ("#ffffff", "#1e2129"))


def test_colours_of_the_style_sheet_come_from_the_theme() -> None:
    style = (DOCS / "stylesheets" / "extra.css").read_text(encoding="utf-8")
    assert not re.search(r"#[0-9a-f]{3,8}\b|\brgba?\(|\bhsla?\(", style.split("*/")[-1])
