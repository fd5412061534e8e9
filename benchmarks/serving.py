"""Serving: requests one at a time and in a batcher, with a cache and without, in one process and in turns.

Throughput is measured with all requests waiting; latency with arrivals at random (Poisson), at shares of what one at a
time with a cache can serve. Programs are compiled, and a first round is made, before anything is timed.
"""

from __future__ import annotations

import functools
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from hicache_compile import HiCache, hicache_compile
from hicache_compile.benchmarks.measurement import Line
from hicache_compile.benchmarks.record import environment
from hicache_compile.benchmarks.scenarios import SCENARIOS
from hicache_compile.demo.emoji import GUIDANCE, SIZE, TOKENS
from hicache_compile.demo.emoji.drawing import load_pipeline
from hicache_compile.policy.progress import progress
from hicache_compile.serving.batcher import OFF, Batcher

STEPS = 28
CACHE = HiCache(interval=7, order=2)
PROMPTS = ("a red heart", "fox, flat style", "tiger", "blue car")
REQUESTS = 12  # of one round
ROUNDS = 3
LOADS = (0.5, 0.8, 1.1)  # arrivals, as shares of what one at a time with the cache serves
ARRIVALS = 24


@dataclass(frozen=True, slots=True)
class Contender:
    """A way to serve: how many requests at once, and their cache."""

    name: str
    at_once: int
    cache: Any


ONE_AT_A_TIME = Contender("one at a time, HiCache N=7", 1, CACHE)
CONTENDERS = (
    Contender("one at a time, uncached", 1, OFF),
    ONE_AT_A_TIME,
    Contender("Batcher, uncached", 8, OFF),
    Contender("Batcher, HiCache N=7", 8, CACHE),
    Contender("Batcher, HiCache N=7, scope stack", 8, replace(CACHE, scope="stack")),
)


@dataclass(frozen=True, slots=True)
class Served:
    """A model that requests are made of.

    Args:
        pipeline: makes its pipeline.
        call: the arguments of the request with a seed.
    """

    name: str
    pipeline: Callable[[], Any]
    call: Callable[[int], dict[str, Any]]


def _emoji_call(seed: int) -> dict[str, Any]:
    text = {"prompt": PROMPTS[seed % len(PROMPTS)], "negative_prompt": "", "true_cfg_scale": GUIDANCE}
    return {**text, **_sampled(seed), "height": SIZE, "width": SIZE, "max_sequence_length": TOKENS}


def _dit_pipeline() -> Any:
    """The denoiser of the scenario ``dit-small`` between a scheduler and a decoder, both as small as they may be."""
    from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline

    vae = AutoencoderKL(latent_channels=4, block_out_channels=(32,)).eval()
    return DiTPipeline(SCENARIOS["dit-small"].shape.model(), vae, DDIMScheduler())


def _dit_call(seed: int) -> dict[str, Any]:
    return {"class_labels": [seed % 1000], "guidance_scale": GUIDANCE, **_sampled(seed)}


def _sampled(seed: int) -> dict[str, Any]:
    return {"num_inference_steps": STEPS, "generator": torch.Generator().manual_seed(seed)}


SERVED = (Served("emoji", load_pipeline, _emoji_call), Served("dit-small", _dit_pipeline, _dit_call))


def measure() -> Iterator[Callable[[], Line]]:
    """For each model: images a second of each contender, latencies at each load, and a request alone in a batcher
    beside a plain call."""
    for served in SERVED:
        yield partial(_closed, served)
        for load in LOADS:
            yield partial(_open, served, load)
        yield partial(_alone, served)


@functools.cache
def _pipe(served: Served) -> Any:
    """The pipeline, warm."""
    pipe = hicache_compile(served.pipeline(), CACHE)
    pipe.set_progress_bar_config(disable=True)
    for contender in CONTENDERS:
        _throughput(served, pipe, contender, 0)
    return pipe


@contextmanager
def _batcher(pipe: Any, contender: Contender) -> Iterator[Batcher]:
    with Batcher(pipe, max_requests=contender.at_once) as batcher:
        yield batcher


def _throughput(served: Served, pipe: Any, contender: Contender, seed: int) -> float:
    """Images a second while requests wait."""
    with _batcher(pipe, contender) as batcher:
        began = time.perf_counter()
        for request in [batcher.submit(cache=contender.cache, **served.call(seed + n)) for n in range(REQUESTS)]:
            request.result()
        return REQUESTS / (time.perf_counter() - began)


def _closed(served: Served) -> Line:
    pipe = _pipe(served)
    found: dict[str, list[float]] = {contender.name: [] for contender in CONTENDERS}
    for turn in progress(range(ROUNDS), what="throughput", unit="round"):
        for contender in CONTENDERS:
            found[contender.name].append(_throughput(served, pipe, contender, REQUESTS * turn))
    medians = {name: statistics.median(rates) for name, rates in found.items()}
    return {"images_per_second": medians, "rounds": found, **_about(served)}


def _open(served: Served, load: float) -> Line:
    pipe = _pipe(served)
    rate = load * statistics.median(_throughput(served, pipe, ONE_AT_A_TIME, turn) for turn in range(ROUNDS))
    cached = [contender for contender in CONTENDERS if contender.cache is not OFF]
    seconds = {contender.name: _latencies(served, pipe, contender, rate) for contender in cached}
    return {"load": load, "requests_per_second": rate, "seconds": seconds, **_about(served)}


def _latencies(served: Served, pipe: Any, contender: Contender, rate: float) -> dict[str, float]:
    """Median and 95th percentile of the seconds from arrival to picture, the arrivals drawn from one seed."""
    drawn, due = random.Random(0), 0.0
    arrivals = [due := due + drawn.expovariate(rate) for _ in range(ARRIVALS)]
    ends: dict[int, float] = {}

    def ended(number: int, _: object) -> None:
        ends[number] = time.perf_counter() - began

    with _batcher(pipe, contender) as batcher:
        began, requests = time.perf_counter(), []
        for number, arrival in enumerate(arrivals):
            time.sleep(max(0.0, arrival - (time.perf_counter() - began)))
            request = batcher.submit(cache=contender.cache, **served.call(number))
            request.add_done_callback(partial(ended, number))
            requests.append(request)
        for request in requests:
            request.result()
    seconds = [ends[number] - arrival for number, arrival in enumerate(arrivals)]
    return {"median_s": statistics.median(seconds), "p95_s": statistics.quantiles(seconds, n=20)[-1]}


def _alone(served: Served) -> Line:
    """A request by itself, in a batcher and as a plain call, in turns."""
    pipe = _pipe(served)
    plain: list[float] = []
    batched: list[float] = []
    with Batcher(pipe) as batcher:
        for turn in progress(range(2 * ROUNDS), what="alone", unit="pair"):
            began = time.perf_counter()
            pipe(**served.call(turn))
            middle = time.perf_counter()
            batcher.submit(**served.call(turn)).result()
            plain.append(middle - began)
            batched.append(time.perf_counter() - middle)
    return {"alone_batcher_over_plain": _ratio(batched, plain), **_about(served)}


def _ratio(values: Sequence[float], others: Sequence[float]) -> float:
    return statistics.median(value / other for value, other in zip(values, others, strict=True))


def _about(served: Served) -> dict[str, Any]:
    about = {"measured": "serving", "model": served.name, "steps": STEPS, "guidance": GUIDANCE, "requests": REQUESTS}
    return {**about, **environment(), "command": "hicache bench serving"}
