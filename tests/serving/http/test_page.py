"""The page in a browser."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import pytest

from tests.serving.http.fake_service import ARGUMENTS, fake_service
from tests.serving.http.live import Live, live
from tests.serving.packs import PACK, STEPS
from tests.support.chromium import BINARY, Tab, chromium

KEY = "a-key-of-this-test"
MADE = "tiles.every((tile) => tile.state === 'done')"


@pytest.fixture(scope="module")
def running() -> Iterator[Live]:
    with live(fake_service(arguments=ARGUMENTS | {"negative_prompt"}), keys=(KEY,), steps=9) as service:
        yield service


@pytest.fixture
def tab(running: Live, tmp_path: Path) -> Iterator[Tab]:
    """The page, opened and given the key."""
    if BINARY is None:
        pytest.skip("no Chromium to open the page in")
    with chromium(tmp_path / "profile") as opened:
        opened.open(running.url)
        opened.until("document.getElementById('ask').open")
        opened.type(KEY)
        opened.press("Enter", 13, "\r")
        opened.until("offer !== null")
        opened.errors.clear()  # the first answer was 401
        yield opened


def write(tab: Tab, text: str) -> None:
    tab.value("document.activeElement.blur(); document.getElementById('prompts').value = ''")
    tab.press("/", 191, "/")
    tab.type(text)


def test_two_prompts_at_once_are_made(running: Live, tab: Tab) -> None:
    write(tab, "wait, a fox\nwait, a lighthouse")
    tab.press("Enter", 13, "\r")
    running.batcher.until(lambda batcher: batcher.running == 2)
    tab.until("tiles.length === 2 && tiles.every((tile) => tile.letters.length > 0)")
    assert tab.value("tiles.map((tile) => tile.state).join()") == "running,running"
    assert "step 1 of 9" in tab.value("tiles[0].element.textContent")
    running.batcher.release()
    tab.until(MADE)
    assert tab.value("tiles.map((tile) => tile.body.prompt).join()") == "wait, a fox,wait, a lighthouse"
    strips = "tiles.map((tile) => [...tile.part('.strip').children].map((cell) => cell.className).join('')).join()"
    assert tab.value(strips) == "FffFffFff,FffFffFff"
    assert tab.value("tiles.every((tile) => tile.part('img').complete && tile.part('img').naturalWidth === 64)")
    assert "uncached" in tab.value("tiles[0].part('.times').textContent")
    assert "2 made" in tab.value("document.getElementById('totals').textContent")
    assert tab.errors == []


def test_everything_can_be_done_with_the_keyboard(running: Live, tab: Tab) -> None:
    tab.value("document.getElementById('twin').checked = true; document.getElementById('seed').value = 4")
    write(tab, "a boat")
    tab.press("Enter", 13, "\r")
    tab.until("tiles.length === 2 && " + MADE)
    assert tab.value("tiles.map((tile) => tile.letters).join()") == "F..F..F..,FFFFFFFFF"
    assert tab.value("tiles.map((tile) => tile.seed).join()") == "4,4"
    write(tab, "wait, it will be cancelled")
    tab.value("document.getElementById('twin').checked = false")
    tab.press("Enter", 13, "\r")
    tab.until("tiles.length === 3")
    tab.press("Escape", 27)
    tab.until("tiles[0].state === 'failed'")
    assert "cancelled" in tab.value("tiles[0].element.textContent")
    tab.press("ArrowRight", 39)
    tab.press("ArrowRight", 39)
    tab.press("Enter", 13, "\r")
    tab.until("document.getElementById('large').open")
    tab.press("Escape", 27)
    tab.until("!document.getElementById('large').open")
    before = tab.value("document.documentElement.dataset.theme")
    tab.press("t", 84, "t")
    tab.until(f"document.documentElement.dataset.theme !== '{before}'")
    assert tab.errors == []


def test_an_error_is_told_where_the_picture_would_be(tab: Tab) -> None:
    tab.value("document.getElementById('size').value = '100x100'")
    write(tab, "a fox <img src=x onerror=alert(1)>")
    tab.press("Enter", 13, "\r")
    tab.until("tiles.length === 1 && tiles[0].state === 'failed'")
    assert "multiples of 16" in tab.value("tiles[0].element.textContent")
    assert tab.value("tiles[0].element.querySelectorAll('img').length") == 0


def test_promises_are_among_the_policies(tmp_path: Path) -> None:
    """What is sent, and what the page says of it afterwards."""
    if BINARY is None:
        pytest.skip("no Chromium to open the page in")
    service = fake_service()
    with live(replace(service, abilities=replace(service.abilities, pack=PACK)), steps=STEPS) as running:
        with chromium(tmp_path / "profile") as tab:
            tab.open(running.url)
            tab.until("offer !== null")
            chosen = "[...document.getElementById('policy').options].map((each) => each.textContent).slice(2, 4).join()"
            assert tab.value(chosen) == "error \u2264 0.39,error \u2264 0.039"
            tab.value("document.getElementById('policy').selectedIndex = 2")
            write(tab, "wait, a fox")
            tab.press("Enter", 13, "\r")
            tab.until("tiles.length === 1")
            assert "error \u2264 0.39" in tab.value("tiles[0].element.textContent")
            running.batcher.until(lambda batcher: batcher.running == 1)
            running.batcher.release()
            tab.until(MADE)
            assert "fast" in tab.value("tiles[0].part('.meta').textContent")
            assert tab.errors == []
        assert running.batcher.calls[0]["cache"] == {"max_error": 0.39}


def test_the_page_needs_nothing_from_elsewhere(running: Live) -> None:
    page = files("hicache_compile.serving.http").joinpath("page.html").read_text(encoding="utf-8")
    assert page.replace("http://www.w3.org/2000/svg", "").count("http") == 0
    policy = running.http.get("/").headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "connect-src 'self'" in policy
