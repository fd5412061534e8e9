"""Keys, kept pictures, timings, metrics."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from hicache_compile.errors import HiCacheError
from hicache_compile.serving.http.app import create_app
from hicache_compile.serving.http.kept import KeptPictures
from hicache_compile.serving.http.keys import KeyCheck, read_keys
from hicache_compile.serving.http.settings import Limits, Settings, Size
from hicache_compile.serving.http.timings import KINDS, Clock, Timings
from tests.serving.http.fake_service import fake_service
from tests.serving.http.live import Live, live
from tests.serving.http.test_bad_requests import told

KEYS = ("first-key-1234", "second-key-123")


def test_keys_are_read_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("# of the team\n\nfirst-key-1234  # hers\r\n  second-key-123\n")
    assert read_keys(path) == KEYS


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("# none\n", "at least one"),
        ("short\n", "line 1"),
        ("\nalong enough key\n", "line 2"),
        ("ключключключ", "line 1"),
    ],
)
def test_a_bad_file_of_keys_is_refused_and_no_key_shown(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "keys"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(HiCacheError, match=says) as raised:
        read_keys(path)
    assert text.strip() not in str(raised.value)


@given(st.text(max_size=40))
def test_only_keys_are_known(given: str) -> None:
    assert KeyCheck(KEYS).knows(given) == (given in KEYS)


def test_who_has_no_key_is_not_served() -> None:
    with live(keys=KEYS) as running:
        for header in ("", "Bearer", KEYS[0], f"Basic {KEYS[0]}"):
            answer = running.http.get("/v1/models", headers={"authorization": header})
            assert told(answer, 401)["code"] == "invalid_api_key"
            assert answer.headers["www-authenticate"] == "Bearer"
        running.http.headers["authorization"] = "Bearer first-key-1235"
        error = told(running.post(prompt=5), 401)  # before the body is looked at
        assert "first-key" not in error["message"]
        assert running.batcher.calls == []
        for key in KEYS:
            running.http.headers["authorization"] = f"Bearer {key}"
            assert running.http.get("/v1/models").status_code == 200
            assert running.post().status_code == 200
        del running.http.headers["authorization"]
        for path in ("/", "/healthz", "/metrics"):
            assert running.http.get(path).status_code == 200
        for path in ("/", "/healthz"):
            assert (running.http.head(path).status_code, running.http.head(path).content) == (200, b"")
        assert KEYS[0] not in repr(running.settings)


def test_kept_pictures_are_few_and_for_a_while() -> None:
    now = [0.0]
    kept = KeptPictures(Limits(kept=3, kept_bytes=100, kept_seconds=10), lambda: now[0])
    names = [kept.keep(b"x" * 30, "png") for _ in range(4)]
    assert len(set(names)) == 4
    assert [kept.find(name) is not None for name in names] == [False, True, True, True]
    large = kept.keep(b"y" * 500, "webp")
    assert [kept.find(name) is not None for name in names] == [False] * 4
    now[0] = 9.9
    found = kept.find(large)
    assert found is not None
    assert (found.data, found.kind) == (b"y" * 500, "webp")
    now[0] = 10.0
    assert kept.find(large) is None


def test_full_steps_are_measured_in_the_first_branch() -> None:
    timings, clock = Timings(), Clock(100.0)
    assert timings.uncached("small", 10, clock) is None
    walk = [
        (0, "a", "F", 101.0),
        (0, "b", "F", 101.5),
        (1, "a", ".", 102.0),
        (2, "a", "F", 104.0),
        (2, "b", "F", 105.0),
    ]
    assert [clock.step(*each) for each in walk] == [True, False, True, True, False]
    assert clock.first == 1.0
    assert clock.step(0, "a", "F", 109.0)  # it is made again
    timings.note("small", clock, 6.0)
    assert timings.uncached("small", 10, Clock(0.0)) == 20.0  # the first step is not counted: it waited
    assert timings.picture() == 6.0
    for number in range(KINDS):
        timings.note(number, clock, 1.0)
    assert timings.uncached("small", 10, Clock(0.0)) is None
    clock.full = [1.0, 9.0, 3.0]
    assert timings.uncached("small", 10, clock) == 30.0  # of its own


def test_metrics_are_what_prometheus_reads(served: Live) -> None:
    before = served.metric("hicache_pictures_total")
    served.post(n=2)
    served.http.get("/nowhere/else")
    served.http.get("/nowhere/again")
    text = served.http.get("/metrics").text
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert served.metric("hicache_pictures_total") == before + 2
    for name in ("hicache_waiting", "hicache_running", "hicache_pages", "hicache_pages_used"):
        assert families[name].type == "gauge"
    for name in ("hicache_batch_rows", "hicache_request_seconds", "hicache_first_step_seconds"):
        assert families[name].type == "histogram"
    kinds = {sample.labels["kind"]: sample.value for sample in families["hicache_rows"].samples}
    assert kinds["full"] > 0
    paths = {sample.labels["path"] for sample in families["hicache_requests"].samples if "path" in sample.labels}
    assert "other" in paths
    assert not any("nowhere" in path for path in paths)
    buckets = [sample.value for sample in families["hicache_batch_rows"].samples if sample.name.endswith("_bucket")]
    assert buckets == sorted(buckets)


SIZES = Limits(sizes=(Size(16, 16),))


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda: Limits(n=0), "serve.n = 0"),
        (lambda: Limits(seconds=float("nan")), "serve.seconds"),
        (lambda: Limits(n=8, queue=4), "queue's 4"),
        (lambda: Settings(model="m", steps=999), "serve.steps = 999"),
        (lambda: create_app(fake_service(), Settings(model="m", size=Size(8, 8), limits=SIZES)), "one of 16x16"),
        (lambda: create_app(fake_service(), Settings(model="m", size=Size(60, 60))), "that are multiples of"),
        (lambda: create_app(fake_service(), Settings(model="m", size=Size(4096, 64))), "at most 2048 pixels"),
    ],
)
def test_settings_that_make_no_sense(build: object, says: str) -> None:
    with pytest.raises(HiCacheError, match=says):
        build()  # type: ignore[operator]
