"""The official client of OpenAI, against a server on this machine."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from io import BytesIO

import pytest
from openai import AuthenticationError, BadRequestError, InternalServerError, NotFoundError, OpenAI
from openai.types import ImageGenCompletedEvent
from PIL import Image

from tests.serving.http.live import live

KEY = "a-key-of-this-test"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with live(keys=(KEY,)) as running:
        yield f"{running.url}/v1"


@pytest.fixture
def client(url: str) -> OpenAI:
    return OpenAI(base_url=url, api_key=KEY, max_retries=0)


def test_it_makes_pictures(client: OpenAI) -> None:
    more = {"seed": 3, "num_inference_steps": 6, "cache": {"preset": "HiCache", "interval": 2, "warmup": 1}}
    answer = client.images.generate(model="fake", prompt="a fox", n=2, size="96x64", extra_body=more)
    assert answer.data is not None
    assert [Image.open(BytesIO(base64.b64decode(one.b64_json or ""))).size for one in answer.data] == [(96, 64)] * 2
    assert answer.model_extra is not None
    assert answer.model_extra["hicache"]["decisions"] == ["F.F.F."] * 2
    by_address = client.images.generate(prompt="a fox", response_format="url")
    assert by_address.data is not None
    assert (by_address.data[0].url or "").endswith(".png")


def test_it_streams(client: OpenAI) -> None:
    seen = list(
        client.images.generate(prompt="a fox", stream=True, partial_images=2, extra_body={"num_inference_steps": 5})
    )
    assert [event.type for event in seen] == ["hicache.progress"] * 5 + ["image_generation.completed"]
    last = seen[-1]
    assert isinstance(last, ImageGenCompletedEvent)
    assert Image.open(BytesIO(base64.b64decode(last.b64_json))).size == (64, 64)


def test_it_lists_models(client: OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["fake"]
    assert client.models.retrieve("fake").owned_by == "hicache_compile"


def test_it_raises_its_own_errors(client: OpenAI, url: str) -> None:
    with pytest.raises(BadRequestError, match="n = 999: must be an integer from 1 to 10") as bad:
        client.images.generate(prompt="a fox", n=999)
    assert (bad.value.param, bad.value.code) == ("n", "invalid_value")
    with pytest.raises(NotFoundError, match="must be 'fake'"):
        client.images.generate(prompt="a fox", model="dall-e-3")
    with pytest.raises(InternalServerError):
        client.images.generate(prompt="break it")
    with pytest.raises(AuthenticationError):
        OpenAI(base_url=url, api_key="another-key", max_retries=0).models.list()
