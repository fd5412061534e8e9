"""Requests that bring a promise in place of a policy: what is picked, and what cannot be promised."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hicache_compile import HiCache, HiCacheError, Uncached, hicache_compile
from hicache_compile.serving.batcher import Batcher
from hicache_compile.serving.http.service import Abilities
from tests.pipelines import by_name
from tests.serving.packs import DECISIONS, FAST, PACK, STEPS

CALL: dict[str, Any] = {
    "prompt": "a fox",
    "height": 16,
    "width": 16,
    "num_inference_steps": STEPS,
    "max_sequence_length": 48,
    "output_type": "latent",
}


def pipeline() -> Any:
    made = by_name("FluxPipeline").build()
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture(scope="module")
def promised() -> Iterator[Batcher]:
    with Batcher(hicache_compile(pipeline(), PACK, max_error=0.1, backend="eager")) as batcher:
        yield batcher


@pytest.mark.parametrize(
    ("cache", "entry"),
    [
        (None, "true"),
        ({"max_error": 0.5}, "fast"),
        ({"max_error": 0.05}, "true"),
        ({"max_error": 0.01}, "in full"),
        ({"max_seconds": 2}, "fast"),
        ({"max_seconds": 5.0}, "true"),
        ({"max_error": 0.5, "max_seconds": 5.0}, "true"),
        ({"max_error": 0.5, "max_seconds": None}, "fast"),
    ],
)
def test_a_promise_picks_for_its_request_alone(promised: Batcher, cache: Any, entry: str) -> None:
    asked, neighbour = promised.submit(cache=cache, **CALL), promised.submit(**CALL)
    asked.result(timeout=120), neighbour.result(timeout=120)
    assert (asked.entry, asked.decisions) == (entry, DECISIONS[entry])
    assert (neighbour.entry, neighbour.decisions) == ("true", DECISIONS["true"])


def test_a_policy_of_the_request_is_of_no_pack(promised: Batcher) -> None:
    for cache, decisions in ((HiCache(interval=3, warmup=1), "F..F."), ("off", "FFFFF")):
        asked = promised.submit(cache=cache, **CALL)
        asked.result(timeout=120)
        assert (asked.entry, asked.decisions) == ("", decisions)


@pytest.mark.parametrize(
    ("cache", "steps", "says"),
    [
        ({"max_seconds": 1.0}, STEPS, r"pack.max_seconds = 1.0: must be 1.5 or more, which 'fast' takes on a machine"),
        ({"max_seconds": 2.0, "max_error": 0.1}, STEPS, r"pack.max_error = 0.1: must be 0.39 or more within 2.0 s"),
        ({"max_error": "low"}, STEPS, r"pack.max_error = 'low': must be a number"),
        ({"max_error": True}, STEPS, r"pack.max_error = True: must be a number"),
        ({"max_error": None}, STEPS, r"max_error or max_seconds must be given"),
        ({"preset": "HiCache", "max_error": 0.1}, STEPS, r"cache.preset: must be left out beside max_error"),
        ({"max_error": 0.1}, 9, r"num_inference_steps = 9: must be 5 with a promise"),
    ],
)
def test_what_cannot_be_promised(promised: Batcher, cache: Any, steps: int, says: str) -> None:
    with pytest.raises(HiCacheError, match=says):
        promised.submit(cache=cache, **{**CALL, "num_inference_steps": steps})


@pytest.mark.parametrize("length", [{}, {"sigmas": [1 - step / 9 for step in range(9)]}], ids=["28", "9"])
def test_a_length_that_is_not_said_by_a_number_of_steps(promised: Batcher, length: dict[str, Any]) -> None:
    call = {name: value for name, value in CALL.items() if name != "num_inference_steps"}
    with pytest.raises(HiCacheError, match=r"must be 5 with a promise"):
        promised.submit(cache={"max_error": 0.1}, **call, **length)
    if length:
        asked = promised.submit(**call, **length)
        asked.result(timeout=120)
        assert (asked.entry, len(asked.decisions)) == ("", 9)


def test_without_a_pack_it_says_how_to_start_with_one() -> None:
    with (
        Batcher(hicache_compile(pipeline(), HiCache(), backend="eager")) as batcher,
        pytest.raises(
            HiCacheError, match=r"cache.max_error = 0.02: must be left out: .* hicache serve --pack pack.json"
        ),
    ):
        batcher.submit(cache={"max_error": 0.02}, **CALL)


def test_a_policy_that_was_stepped_back_from_is_not_picked() -> None:
    pipe = hicache_compile(pipeline(), PACK, max_error=0.5, backend="eager")
    contract = pipe.transformer.contract
    with Batcher(pipe) as batcher:
        assert batcher.submit(**CALL).entry == "fast"
        while contract.entry is FAST:
            contract.observe(10.0)
        assert contract.report().stepped_back == ("fast",)
        broken = batcher.submit(cache={"max_error": 0.5}, **CALL)
        broken.result(timeout=120)
        assert (broken.entry, broken.decisions) == ("true", DECISIONS["true"])


def test_a_batcher_takes_a_pack_and_its_promise(tmp_path: Path) -> None:
    PACK.save(tmp_path / "pack.json")
    pipe = pipeline()
    with Batcher(pipe, str(tmp_path / "pack.json"), max_seconds=2.0):
        assert pipe.transformer.contract.entry == FAST
        assert Abilities.of(pipe).pack == PACK
    with Batcher(pipe, PACK, max_seconds=2.0), pytest.raises(HiCacheError, match="another pack or promise"):
        Batcher(pipe, PACK, max_error=0.1)
    with Batcher(pipe, Uncached()) as batcher:  # of requests that bring none; the pack stays
        assert batcher.submit(**CALL).entry == ""
        assert batcher.submit(cache={"max_error": 0.1}, **CALL).entry == "true"
    for policy, says in ((PACK, "must be given, to choose a policy by"), ("HiCache", "with a pack as policy")):
        promise = {} if policy is PACK else {"max_error": 0.1}
        with pytest.raises(HiCacheError, match=says):
            Batcher(pipeline(), policy, **promise)
