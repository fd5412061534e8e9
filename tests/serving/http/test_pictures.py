"""What is served: pictures, streams of events, addresses; and what happens to requests that end early."""

from __future__ import annotations

import base64
import json
from io import BytesIO
from typing import Any

import httpx
import pytest
from PIL import Image

from hicache_compile.policy.presets import HiCache
from hicache_compile.serving.http import Limits
from hicache_compile.serving.http.settings import Size
from tests.serving.http.fake_service import ARGUMENTS, fake_service, letters_of
from tests.serving.http.live import GENERATIONS, Live, live
from tests.serving.http.test_bad_requests import told


def opened(data: str) -> Image.Image:
    return Image.open(BytesIO(base64.b64decode(data)))


def events(text: str) -> list[dict[str, Any]]:
    """The data of a stream; each with the name of its event as type."""
    found = []
    for block in text.strip().split("\n\n"):
        if not block.startswith(":"):
            name, data = block.split("\n")
            found.append(json.loads(data.removeprefix("data: ")))
            assert found[-1].get("type", "error") == name.removeprefix("event: ")
    return found


def test_n_pictures_are_n_seeds(served: Live) -> None:
    answer = served.post(n=3, seed=7, size="128x64", num_inference_steps=6).json()
    assert [opened(one["b64_json"]).size for one in answer["data"]] == [(128, 64)] * 3
    assert len({one["b64_json"] for one in answer["data"]}) == 3
    said = answer["hicache"]
    assert said["seeds"] == [7, 8, 9]
    assert said["decisions"] == ["F..F.."] * 3
    assert all(seconds > 0 for seconds in said["seconds"])
    calls = served.batcher.calls[-3:]
    assert sorted(call["generator"].initial_seed() for call in calls) == [7, 8, 9]
    alone = served.post(seed=8, size="128x64", num_inference_steps=6).json()
    assert alone["data"][0] == answer["data"][1]


def test_what_is_not_given_is_the_services(served: Live) -> None:
    one, other = (served.http.post(GENERATIONS, json={"prompt": "a fox"}).json() for _ in range(2))
    assert one["hicache"]["num_inference_steps"] == served.settings.steps
    assert one["hicache"]["seeds"] != other["hicache"]["seeds"]
    assert opened(one["data"][0]["b64_json"]).format == "PNG"
    assert one["size"] == "64x64"


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_formats(served: Live, kind: str) -> None:
    answer = served.post(output_format=kind, response_format="url").json()
    url = answer["data"][0]["url"]
    assert url.startswith(served.url + "/images/")
    fetched = served.http.get(url)
    assert fetched.headers["content-type"] == f"image/{kind}"
    assert Image.open(BytesIO(fetched.content)).format == kind.upper()


def test_policies(served: Live) -> None:
    assert served.post(cache="off").json()["hicache"]["decisions"] == ["FFFF"]
    assert served.post(cache="hicache", num_inference_steps=9).json()["hicache"]["decisions"] == [
        letters_of(HiCache(), 9)
    ]
    given = {"preset": "HiCache", "interval": 2, "warmup": 1}
    assert served.post(cache=given).json()["hicache"]["decisions"] == ["F.F."]
    assert served.post(cache=json.dumps(given)).json()["hicache"]["decisions"] == ["F.F."]


def test_fields_that_openai_has_and_this_service_needs_not(served: Live) -> None:
    more = {"quality": "hd", "style": "vivid", "user": "me", "background": "auto", "moderation": "low"}
    assert served.post(**more, partial_images=2, safety_identifier="me", size="auto").status_code == 200
    assert served.post(n=None, size=None, stream=False, seed=None).status_code == 200


def test_guidance() -> None:
    with live(fake_service(arguments=ARGUMENTS | {"negative_prompt", "true_cfg_scale"})) as running:
        for given, handed_on in (
            ({"guidance_scale": 4, "negative_prompt": "grey"}, {"true_cfg_scale": 4.0, "negative_prompt": "grey"}),
            ({"guidance_scale": 4}, {"guidance_scale": 4.0}),
            ({"guidance_scale": 1, "negative_prompt": ""}, {"guidance_scale": 1.0, "negative_prompt": ""}),
            (
                {"guidance_scale": 3, "true_cfg_scale": 2, "negative_prompt": ""},
                {"guidance_scale": 3.0, "true_cfg_scale": 2.0, "negative_prompt": ""},
            ),
        ):
            assert running.post(**given).status_code == 200
            call = running.batcher.calls[-1]
            names = ("guidance_scale", "true_cfg_scale", "negative_prompt")
            assert {name: call[name] for name in names if name in call} == handed_on


def test_a_stream_tells_every_step_then_the_pictures(served: Live) -> None:
    told_of = events(served.post(stream=True, n=2, seed=5, num_inference_steps=6).text)
    for index in (0, 1):
        ours = [event for event in told_of if event["index"] == index]
        *steps, last = ours
        assert [event["step"] for event in steps] == list(range(6))  # of one guidance branch
        assert "".join(event["decision"] for event in steps) == "F..F.."
        assert {event["num_steps"] for event in steps} == {6}
        assert last["type"] == "image_generation.completed"
        assert last["hicache"]["seed"] == 5 + index
        assert last["hicache"]["decisions"] == "F..F.."
        assert opened(last["b64_json"]).size == (64, 64)
    # full steps of this size were measured before
    assert told_of[-1]["hicache"]["uncached_seconds"] >= 0


def test_a_stream_ends_with_its_error(served: Live) -> None:
    *steps, last = events(served.post(stream=True, prompt="break it").text)
    assert [step["step"] for step in steps] == [0]
    assert last["error"]["code"] == "internal_error"


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_is_cancelled(stream: bool) -> None:
    with live() as running:
        body = {"prompt": "wait long", "stream": stream, "n": 2}
        if stream:
            with running.http.stream("POST", GENERATIONS, json=body) as answer:
                next(answer.iter_lines())
        else:
            with pytest.raises(httpx.ReadTimeout):
                running.http.post(GENERATIONS, json=body, timeout=httpx.Timeout(5, read=0.2))
        running.batcher.until(lambda batcher: batcher.ended == 2)
        assert all(request.left.is_set() for request in running.batcher.requests)
        assert running.post().status_code == 200
        assert running.metric('hicache_requests_total{path="/v1/images/generations",status="499"}') == 1


def test_what_takes_too_long_is_cancelled() -> None:
    with live(limits=Limits(seconds=0.2)) as running:
        error = told(running.post(prompt="wait long"), 504)
        assert error["code"] == "timeout"
        running.batcher.until(lambda batcher: batcher.ended == 1)
        *_, last = events(running.post(prompt="wait long", stream=True).text)
        assert last["error"]["code"] == "timeout"
        assert running.metric('hicache_requests_total{path="/v1/images/generations",status="504"}') == 2


def test_a_full_queue_says_when_to_come_again() -> None:
    with live(limits=Limits(queue=3, n=3)) as running:
        with running.http.stream("POST", GENERATIONS, json={"prompt": "wait", "n": 2, "stream": True}) as waiting:
            lines = waiting.iter_lines()  # once it is gone, so is the client
            next(lines)
            answer = running.post(n=2)
            assert told(answer, 429)["type"] == "rate_limit_error"
            assert 1 <= int(answer.headers["retry-after"]) <= 60
            assert running.post(n=1).status_code == 200
        running.batcher.until(lambda batcher: batcher.ended == 3)
        assert running.post(n=3).status_code == 200


def test_one_size_and_sizes_that_are_listed() -> None:
    with live(fake_service(arguments=ARGUMENTS - {"height", "width"})) as running:
        assert "makes one size" in told(running.post(size="64x64"), 400)["message"]
        assert running.post(size="auto").status_code == 200
    with live(limits=Limits(sizes=(Size(64, 64), Size(96, 64)))) as running:
        assert "64x64, 96x64" in told(running.post(size="64x96"), 400)["message"]
        assert running.post(size="96x64").status_code == 200


def test_a_service_of_one_policy() -> None:
    with live(fixed_policy=True) as running:
        assert "one policy" in told(running.post(cache="FORA"), 400)["message"]
        assert running.post(cache="off").status_code == 200


def test_clips_are_animated() -> None:
    from types import SimpleNamespace

    import numpy as np

    from hicache_compile.serving.http.encode import file_of

    frames = np.random.default_rng(0).random((1, 5, 32, 32, 3))
    for kind in ("png", "webp"):
        clip = Image.open(BytesIO(file_of(SimpleNamespace(frames=frames), kind, 80)))
        assert clip.n_frames == 5  # type: ignore[attr-defined]
    with live(fake_service(arguments=ARGUMENTS | {"num_frames"})) as running:
        assert "png or webp" in told(running.post(output_format="jpeg"), 400)["message"]
