"""A small pipeline from its folder, behind the real Batcher."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hicache_compile.errors import HiCacheError
from hicache_compile.policy.presets import HiCache
from hicache_compile.serving.http import Settings
from hicache_compile.serving.http.settings import Size
from hicache_compile.serving.http.source import Source, open_service
from tests.pipelines import by_name
from tests.serving.http.fake_service import letters_of
from tests.serving.http.live import Live, live
from tests.serving.http.test_bad_requests import told
from tests.serving.http.test_pictures import events

POLICY = HiCache(interval=3, warmup=1)
CALL = {"max_sequence_length": 48}
SETTINGS = Settings(model="tiny", policy=POLICY, steps=5, size=Size(16, 16), call=CALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return by_name("FluxPipeline").saved(tmp_path_factory.mktemp("flux"))


@pytest.fixture(scope="module")
def running(folder: Path) -> Iterator[Live]:
    source = Source(folder=folder, policy=POLICY, backend="eager", device="cpu")
    with live(open_service(source, SETTINGS, warm=True), policy=POLICY, steps=5, size=SETTINGS.size, call=CALL) as made:
        yield made


def pixels(data: str) -> np.ndarray:
    return np.asarray(Image.open(BytesIO(base64.b64decode(data)))).astype(int)


def test_its_pictures_are_the_pipelines(running: Live, folder: Path) -> None:
    from diffusers import DiffusionPipeline

    answer = running.post(cache="off", num_inference_steps=5, seed=3, n=2).json()
    assert answer["hicache"]["decisions"] == ["FFFFF"] * 2
    pipeline = DiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    for number, seed in enumerate((3, 4)):
        generator = torch.Generator().manual_seed(seed)
        made = pipeline("a fox", num_inference_steps=5, height=16, width=16, generator=generator, **CALL).images[0]
        assert np.abs(pixels(answer["data"][number]["b64_json"]) - np.asarray(made)).max() <= 1  # one rounding


def test_it_is_cached(running: Live) -> None:
    *steps, last = events(running.post(num_inference_steps=8, seed=3, stream=True).text)
    assert "".join(step["decision"] for step in steps) == letters_of(POLICY, 8)
    assert last["hicache"]["decisions"] == letters_of(POLICY, 8)
    other = running.post(num_inference_steps=8, seed=3, cache={"preset": "FORA", "interval": 2}).json()
    assert other["hicache"]["decisions"] == ["F.F.F.F."]
    assert running.metric('hicache_rows_total{kind="forecast"}') > 0


def test_a_policy_that_cannot_serve_is_refused(running: Live) -> None:
    error = told(running.post(cache={"preset": "HiCache", "scope": "nowhere"}), 400)
    assert error["param"] == "cache"


def test_an_argument_that_the_pipeline_does_not_take(folder: Path) -> None:
    settings = Settings(model="tiny", policy=POLICY, call={"num_frames": 5})
    with pytest.raises(HiCacheError, match="FluxPipeline takes no such argument"):
        open_service(Source(folder=folder, policy=POLICY, backend="eager", device="cpu"), settings, warm=False)


def test_a_pipeline_that_needs_more_than_a_prompt_is_told_when_it_warms_up(tmp_path: Path) -> None:
    by_name("FluxImg2ImgPipeline").saved(tmp_path)
    says = r"FluxImg2ImgPipeline must make pictures of a prompt and a size.* ValueError"
    with pytest.raises(HiCacheError, match=says):
        open_service(Source(folder=tmp_path, policy=POLICY, backend="eager", device="cpu"), SETTINGS, warm=True)
