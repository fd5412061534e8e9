"""A server in this process: the same application, for as long as a block lasts."""

from __future__ import annotations

import base64
import socket
import threading
from io import BytesIO
from typing import Any

import httpx
import pytest
from openai import OpenAI
from PIL import Image

from hicache_compile import CompiledDenoiser, HiCache, HiCacheError, hicache_compile
from hicache_compile.serving import serve
from tests.pipelines import by_name
from tests.serving.http.fake_service import SECONDS_OF_A_TEST

POLICY = HiCache(interval=3, warmup=1)
GIVEN: dict[str, Any] = {"backend": "eager", "steps": 5, "size": "16x16", "call": {"max_sequence_length": 48}}


@pytest.fixture(scope="module")
def pipe() -> Any:
    made = by_name("FluxPipeline").build()
    made.set_progress_bar_config(disable=True)
    return made


def port_of(url: str) -> int:
    return int(url.rpartition(":")[2])


def assert_it_is_free(port: int) -> None:
    with socket.socket() as free:
        free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        free.bind(("127.0.0.1", port))
    assert "hicache serve" not in {thread.name for thread in threading.enumerate()}


def test_clients_are_answered_while_the_block_lasts(pipe: Any) -> None:
    with serve(pipe, POLICY, keys=["a-key-of-this-test"], **GIVEN) as server:
        client = OpenAI(base_url=f"{server.url}/v1", api_key="a-key-of-this-test", max_retries=0)
        answer = client.images.generate(prompt="a fox", extra_body={"seed": 3})
        assert answer.data is not None
        assert Image.open(BytesIO(base64.b64decode(answer.data[0].b64_json or ""))).size == (16, 16)
        assert answer.model_extra is not None
        assert answer.model_extra["hicache"]["decisions"] == ["F..F."]
        assert [model.id for model in client.models.list()] == ["FluxPipeline"]
        assert httpx.get(f"{server.url}/v1/models").status_code == 401
    assert_it_is_free(port_of(server.url))
    assert isinstance(pipe.transformer, CompiledDenoiser)


def test_an_exception_in_the_block_ends_it_too(pipe: Any) -> None:
    def fails(urls: list[str]) -> None:
        with serve(pipe, POLICY, **GIVEN) as server:
            urls.append(server.url)
            assert httpx.get(f"{server.url}/v1/models", timeout=SECONDS_OF_A_TEST).status_code == 200
            raise KeyError("mine")

    urls: list[str] = []
    with pytest.raises(KeyError, match="mine"):
        fails(urls)
    assert_it_is_free(port_of(urls[0]))


def test_a_pipeline_that_is_compiled_is_served_as_it_is(pipe: Any) -> None:
    if not isinstance(pipe.transformer, CompiledDenoiser):
        hicache_compile(pipe, POLICY, backend="eager")
    compiled = pipe.transformer
    with serve(pipe, HiCache(interval=2, warmup=1), warm_up=True, **GIVEN) as server:
        body = {"prompt": "a fox", "seed": 3}
        answer = httpx.post(f"{server.url}/v1/images/generations", json=body, timeout=SECONDS_OF_A_TEST).json()
        assert answer["hicache"]["decisions"] == ["F.F.F"]
    assert pipe.transformer is compiled


def test_a_taken_port_and_bad_arguments_leave_nothing_open(pipe: Any) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(HiCacheError, match=rf"serve.host, port = 127.0.0.1:{port}: must be a free address"):
            serve(pipe, POLICY, port=port, **GIVEN).__enter__()
    with pytest.raises(HiCacheError, match=r"serve.size = 'wide': must be WIDTHxHEIGHT"):
        serve(pipe, POLICY, **{**GIVEN, "size": "wide"}).__enter__()
    with pytest.raises(HiCacheError, match=r"serve.no_such: FluxPipeline takes no such argument"):
        serve(pipe, POLICY, port=port, **{**GIVEN, "call": {"no_such": 1}}).__enter__()
    for bad, says in (
        ({"keys": "my-secret-key"}, r"serve.keys is a str: must be a list of texts"),
        ({"keys": ["abc"]}, r"serve.keys, number 0: must be at least 8 ASCII characters"),
        ({"keys": ["long-enough", None]}, r"serve.keys, number 1: must be at least 8 ASCII characters"),
        ({"call": ["guidance_scale"]}, r"serve.call is a list: must be a dict"),
        ({"grace": "long"}, r"serve.grace = 'long': must be a number >= 0"),
        ({"port": 70000}, r"serve.port = 70000: must be an integer from 0 to 65535"),
        ({"host": 5}, r"serve.host = 5: must be the name or address"),
    ):
        with pytest.raises(HiCacheError, match=says):
            serve(pipe, POLICY, **{"port": port, **GIVEN, **bad}).__enter__()
    with pytest.raises(HiCacheError, match=r"serve.pipe = int: must be a diffusers pipeline"):
        serve(3, POLICY, port=port, **GIVEN).__enter__()
    assert_it_is_free(port)
