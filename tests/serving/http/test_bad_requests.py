"""What cannot be served: a clear error in OpenAI's form, and nobody else notices."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from hicache_compile.serving.http.errors import ApiError
from hicache_compile.serving.http.order import Order, order_of
from hicache_compile.serving.http.schema import ImageRequest, read_request
from hicache_compile.serving.http.service import Abilities
from hicache_compile.serving.http.settings import Limits, Settings, Size
from tests.serving.http.fake_service import ARGUMENTS, POLICY
from tests.serving.http.live import GENERATIONS, Live, live

STEP_MASK = {"schedule": {"type": "StepMask", "mask": "F..F"}}
FIELDS = [  # the field, its value, what the message says
    ("prompt", "", "a text that is not empty"),
    ("prompt", "  \n", "a text that is not empty"),
    ("prompt", "x" * 501, "501 characters; must have at most 500"),
    ("prompt", 5, "must be a text"),
    ("prompt", ["a fox"], "(a list)"),
    ("prompt", None, "(null): must be a text"),
    ("n", 10**9, "an integer from 1 to 4"),
    ("n", 10**200, "must be an integer"),
    ("n", 0, "an integer from 1 to 4"),
    ("n", -1, "n = -1"),
    ("n", True, "n = True: must be an integer"),
    ("n", 1.5, "must be an integer"),
    ("n", "2", "n = '2': must be an integer"),
    ("size", "1024x1024", "at most 512 pixels"),
    ("size", "100x100", "multiples of 16"),
    ("size", "0x64", "WIDTHxHEIGHT"),
    ("size", "-64x64", "WIDTHxHEIGHT"),
    ("size", "٦٤x٦٤", "WIDTHxHEIGHT"),
    ("size", "64x64" * 200, "WIDTHxHEIGHT"),
    ("size", 64, "must be a text"),
    ("response_format", "file", "'b64_json' or 'url'"),
    ("output_format", "gif", "'png', 'jpeg' or 'webp'"),
    ("output_compression", 101, "from 0 to 100"),
    ("background", "transparent", "'auto' or 'opaque'"),
    ("quality", "best", "'auto'"),
    ("style", 3, "'vivid' or 'natural'"),
    ("user", "u" * 257, "at most 256"),
    ("stream", "yes", "must be true or false"),
    ("stream", 1, "must be true or false"),
    ("partial_images", 4, "from 0 to 3"),
    ("seed", -1, "an integer from 0 to"),
    ("seed", 2**64, "an integer from 0 to"),
    ("seed", False, "must be an integer"),
    ("num_inference_steps", 0, "from 1 to 50"),
    ("num_inference_steps", 10**6, "from 1 to 50"),
    ("guidance_scale", -0.5, "from 0 to 1000"),
    ("guidance_scale", 1e308, "from 0 to 1000"),
    ("guidance_scale", "high", "must be a number"),
    ("true_cfg_scale", 4, "FakePipeline takes no such argument"),
    ("num_frames", 5, "FakePipeline takes no such argument"),
    ("cache", "HiCach", "did you mean HiCache"),
    ("cache", "/etc/passwd", '"off"'),
    ("cache", "policy.json", '"off"'),
    ("cache", "env", '"off"'),
    ("cache", 7, "a policy's name"),
    ("cache", {"preset": "HiCache", "interval": 0}, "interval"),
    ("cache", {"preset": "HiCache", "intervall": 3}, "intervall"),
    ("cache", {"nothing": 1}, "nothing"),
    ("cache", {"preset": "HiCache", "scope": "block"}, "for this model"),
    ("promt", "a fox", "did you mean prompt"),
    ("x" * 5000, 1, "no such field"),
]


def told(answer: httpx.Response, status: int) -> dict[str, Any]:
    """The error, in the form that it has to have."""
    assert answer.status_code == status, answer.text[:300]
    assert list(answer.json()) == ["error"]
    error: dict[str, Any] = answer.json()["error"]
    assert list(error) == ["message", "type", "param", "code"]
    assert 0 < len(error["message"]) <= 400
    assert "Traceback" not in answer.text
    return error


@pytest.mark.parametrize(("field", "value", "says"), FIELDS, ids=[f"{n}-{f[0][:20]}" for n, f in enumerate(FIELDS)])
def test_a_bad_value_is_named(served: Live, field: str, value: object, says: str) -> None:
    error = told(served.post(**{field: value}), 400)
    assert error["param"] == field[:60]
    assert error["type"] == "invalid_request_error"
    assert says in error["message"]
    assert field[:60] in error["message"] or error["code"] == "invalid_policy"


BODIES = {
    "nothing": b"",
    "half": b'{"prompt": "a fo',
    "no JSON": b"prompt=fox",
    "not UTF-8": b'{"prompt": "\xff"}',
    "half a character": b'{"prompt": "\\ud800"}',
    "a list": b'["a fox"]',
    "a text": b'"a fox"',
    "deep": b'{"prompt": "a", "cache": ' + b"[" * 5000 + b"]" * 5000 + b"}",
    "NaN": b'{"prompt": "a", "guidance_scale": NaN}',
    "infinite": b'{"prompt": "a", "guidance_scale": Infinity}',
    "NaN in a policy": b'{"prompt": "a", "cache": {"preset": "TeaCache", "threshold": NaN}}',
}


@pytest.mark.parametrize("body", BODIES.values(), ids=list(BODIES))
def test_a_body_that_is_no_request(served: Live, body: bytes) -> None:
    answer = served.http.post(GENERATIONS, content=body, headers={"content-type": "application/json"})
    assert told(answer, 400)["message"]


def test_a_prompt_of_ten_megabytes(served: Live) -> None:
    error = told(served.post(prompt="x" * 10_000_000), 413)
    assert "at most 20000 bytes" in error["message"]
    assert served.post().status_code == 200


@pytest.mark.parametrize("pieces", [21, 900])
def test_a_body_of_unknown_length(served: Live, pieces: int) -> None:
    body = (b"x" * 1000 for _ in range(pieces))
    answer = served.http.post(GENERATIONS, content=body, headers={"content-type": "application/json"})
    assert told(answer, 413)["message"]


@pytest.mark.parametrize("kind", ["text/plain", "multipart/form-data", "application/x-www-form-urlencoded", ""])
def test_another_content_type(served: Live, kind: str) -> None:
    answer = served.http.post(GENERATIONS, content=b'{"prompt": "a"}', headers={"content-type": kind})
    assert "application/json" in told(answer, 415)["message"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", GENERATIONS, 405),
        ("DELETE", "/v1/models", 405),
        ("GET", "/v1/images", 404),
        ("POST", "/v1/images/edits", 404),
        ("GET", "/images/none.png", 404),
        ("GET", "/images/..%2f..%2fpage.html", 404),
        ("GET", "/v1/models/other", 404),
        ("GET", "/" + "x" * 3000, 404),
    ],
)
def test_another_method_or_address(served: Live, method: str, path: str, status: int) -> None:
    assert told(served.http.request(method, path), status)["message"]


def test_another_model(served: Live) -> None:
    error = told(served.post(model="dall-e-3"), 404)
    assert error["code"] == "model_not_found"
    assert "'fake'" in error["message"]
    assert served.post(model="fake").status_code == 200


def test_a_failure_tells_nothing_of_the_inside(served: Live) -> None:
    error = told(served.post(prompt="break it"), 500)
    assert "secret" not in error["message"]
    assert error["type"] == "server_error"
    assert "`prompt` has to be another" in told(served.post(prompt="refuse it"), 400)["message"]


def test_others_are_undisturbed(served: Live) -> None:
    """A stream goes on while every kind of bad request comes and goes."""
    before = len(served.batcher.calls)
    with served.http.stream("POST", GENERATIONS, json={"prompt": "wait here", "stream": True, "seed": 3}) as stream:
        lines = stream.iter_lines()
        assert next(lines) == "event: hicache.progress"
        for field, value, _ in FIELDS:
            served.post(**{field: value})
        for body in BODIES.values():
            served.http.post(GENERATIONS, content=body, headers={"content-type": "application/json"})
        assert served.post().status_code == 200
        served.batcher.release()
        assert "event: image_generation.completed" in list(lines)
    assert len(served.batcher.calls) == before + 2  # the bad ones came no further


def test_a_mask_for_other_steps() -> None:
    with live() as running:
        mask = {"schedule": {"type": "StepMask", "mask": "1001"}, "forecaster": {"type": "Reuse"}, "scope": "stack"}
        error = told(running.post(cache=mask, num_inference_steps=9), 400)
        assert error["param"] == "cache"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=30),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=6,
)
VALUES = JSON | st.sampled_from([value for _, value, _ in FIELDS])
NAMES = st.sampled_from([*ImageRequest.model_fields]) | st.text(max_size=12)
CHOSEN = Settings(model="fake", policy=POLICY, limits=Limits(edge=512), size=Size(64, 64))
ABLE = Abilities("FakePipeline", ARGUMENTS | {"negative_prompt", "true_cfg_scale"})


def order_or_error(body: dict[str, Any]) -> Order | ApiError:
    try:
        return order_of(read_request(json.dumps(body).encode()), CHOSEN, ABLE)
    except ApiError as error:
        return error


@examples(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(NAMES, VALUES, max_size=6))
def test_any_object_is_an_order_within_the_limits_or_an_error(body: dict[str, Any]) -> None:
    body = {"prompt": "a fox", **body}
    order = order_or_error(body)
    if isinstance(order, ApiError):
        assert order.status in (400, 404)
        assert len(str(order)) <= 400
        assert order.param is None or len(order.param) <= 60
        return
    assert 1 <= len(order.seeds) <= CHOSEN.limits.n
    assert 1 <= order.call["num_inference_steps"] == order.steps <= CHOSEN.limits.steps
    assert set(order.call) <= ABLE.arguments
    assert order.size is None or max(order.size.width, order.size.height) <= 512


@examples(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_a_request_or_an_error(body: bytes) -> None:
    with contextlib.suppress(ApiError):
        assert read_request(body).prompt
