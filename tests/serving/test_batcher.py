"""Requests that share calls of the denoiser: each is what it is alone."""

from __future__ import annotations

import asyncio
import gc
import random
import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hicache_compile import FORA, FBCache, HiCache, HiCacheError, Policy, TaylorSeer, Uncached, hicache_compile
from hicache_compile.frontend.denoiser import CompiledDenoiser
from hicache_compile.serving.batcher import Batcher
from hicache_compile.serving.meeting import Call, Meeting
from hicache_compile.serving.progress import Progress
from hicache_compile.serving.request import Request
from tests.pipelines.cases import CASES, PipelineCase
from tests.pipelines.table import ALL

POLICIES: tuple[Any, ...] = (
    HiCache(interval=3, order=1, warmup=2),
    TaylorSeer(interval=4, scope="stack"),
    FORA(interval=2, warmup=1),
    FBCache(threshold=0.5),
    "off",
)
PROMPTS = ("a red cube", "one blue ball on a green table, seen from above", "")
MOST_CAPTURES = 6  # one row and several, each for the first length of a prompt, its like of length 1, and any length
NAMES = ("FluxPipeline, true CFG", "WanPipeline", "QwenImagePipeline")


@dataclass(frozen=True)
class Order:
    """One request: what is asked for, and after which of its steps it is cancelled (``None``: never)."""

    seed: int
    steps: int
    policy: int
    prompt: int
    guided: bool
    cancelled: int | None = None

    @property
    def same(self) -> Order:
        """The same without a cancellation."""
        return Order(self.seed, self.steps, self.policy, self.prompt, self.guided)


orders = st.builds(
    Order,
    seed=st.integers(0, 2),
    steps=st.integers(3, 7),
    policy=st.integers(0, len(POLICIES) - 1),
    prompt=st.integers(0, len(PROMPTS) - 1),
    guided=st.booleans(),
    cancelled=st.one_of(st.none(), st.none(), st.integers(0, 2)),
)


@dataclass
class Served:
    """A pipeline, its batcher, and what requests are alone."""

    case: PipelineCase
    pipe: Any
    batcher: Batcher
    known: dict[Order, tuple[Tensor, str]] = field(default_factory=dict)

    def call(self, order: Order) -> dict[str, Any]:
        given = {
            **self.case.arguments(),
            "height": 32,
            "width": 32,
            "prompt": PROMPTS[order.prompt],
            "num_inference_steps": order.steps,
        }
        if not order.guided:
            scale = "true_cfg_scale" if "true_cfg_scale" in given else "guidance_scale"
            given[scale] = 1.0
        generator = torch.Generator().manual_seed(order.seed)
        return {**given, "generator": generator, "output_type": "latent", "return_dict": False}

    def alone(self, order: Order) -> tuple[Tensor, str]:
        if order not in self.known:
            denoiser, policy = self.pipe.transformer, POLICIES[order.policy]
            before, denoiser.policy = denoiser.policy, Uncached() if policy == "off" else policy
            made = self.pipe(**self.call(order))[0]
            decisions = denoiser.report().decisions(next(iter(denoiser._session.contexts)))
            denoiser.policy = before
            denoiser.reset()
            self.known[order] = made, decisions
        return self.known[order]

    def submit(self, order: Order) -> Request:
        waiting: list[Request] = []
        made = threading.Event()

        def on_step(progress: Progress) -> None:
            made.wait()
            if order.cancelled is not None and progress.step >= order.cancelled:
                waiting[0].cancel()

        waiting.append(self.batcher.submit(cache=POLICIES[order.policy], on_step=on_step, **self.call(order)))
        made.set()
        return waiting[0]

    def ended(self, order: Order, request: Request) -> Any:
        """What the pipeline returned; ``None``: the request was cancelled."""
        if order.cancelled is None:
            return request.result(timeout=120)[0]
        with pytest.raises(CancelledError):
            request.result(timeout=120)
        return None

    def check(self, order: Order, request: Request) -> None:
        made = self.ended(order, request)
        if made is None:
            return
        expected, decisions = self.alone(order)
        assert request.decisions == decisions
        torch.testing.assert_close(made, expected, rtol=1e-5, atol=1e-5, msg=lambda text: f"{order}: {text}")


def served_by(name: str, backend: str = "eager") -> Iterator[Served]:
    case = next(case for case in CASES if case.name == name)
    pipe = case.build()
    pipe.set_progress_bar_config(disable=True)
    pipe = hicache_compile(pipe, POLICIES[0], backend=backend)
    with Batcher(pipe, max_batch=8, max_wait=0.01) as batcher:
        yield Served(case, pipe, batcher)


@pytest.fixture(scope="module", params=NAMES)
def served(request: pytest.FixtureRequest) -> Iterator[Served]:
    yield from served_by(request.param)


@pytest.fixture(scope="module")
def flux() -> Iterator[Served]:
    yield from served_by(NAMES[0])


@settings(max_examples=3, deadline=None)
@given(asked=st.lists(orders, min_size=1, max_size=16))
def test_each_request_is_what_it_is_alone(served: Served, asked: list[Order]) -> None:
    for order in asked:
        if order.cancelled is None:
            served.alone(order.same)
    for order, request in [(order, served.submit(order)) for order in asked]:
        served.check(order, request)


def test_requests_share_calls(flux: Served) -> None:
    asked = [Order(number % 3, 4 + number % 4, number % 5, number % 3, number % 2 == 0) for number in range(16)]
    for order in asked:
        flux.alone(order)
    for _ in range(2):  # what warms up
        [flux.submit(order).result(timeout=120) for order in asked[:1]]
        [request.result(timeout=120) for request in [flux.submit(order) for order in asked]]
    before = flux.batcher.statistics()
    shuffled = random.Random(0).sample(asked, len(asked))
    for order, request in [(order, flux.submit(order)) for order in shuffled]:
        flux.check(order, request)
    after = flux.batcher.statistics()
    assert len(flux.pipe.transformer._graphs) <= MOST_CAPTURES
    calls = sum(after.batches.values()) - sum(before.batches.values())
    rows = after.full_rows + after.forecast_rows - before.full_rows - before.forecast_rows
    assert rows == sum(order.steps * (1 + order.guided) for order in asked)
    assert calls < rows
    assert after.forecast_rows > before.forecast_rows


def test_every_page_is_free_again(flux: Served) -> None:
    random.seed(0)
    asked = [Order(number % 3, 3, number % 4, 0, False, number % 2 or None) for number in range(30)]
    for order in asked:
        flux.alone(order.same)
    requests = [flux.submit(order) for order in asked]
    broken = flux.batcher.submit(**{**flux.call(asked[0]), "prompt": 7})  # the pipeline refuses it
    for order, request in zip(asked, requests, strict=True):
        flux.check(order, request)
    with pytest.raises(Exception, match="prompt"):
        broken.result(timeout=120)
    gc.collect()
    found = flux.batcher.statistics()
    assert (found.waiting, found.running, found.pages_used) == (0, 0, 0)


class TellingError(Exception):
    pass


def test_a_request_that_fails_touches_no_other(flux: Served) -> None:
    order = Order(0, 6, 0, 0, True)
    expected = flux.alone(order)[0]

    def fail(progress: Progress) -> None:
        if progress.step == 2:
            raise TellingError("stop")

    def overflow(pipe: Any, step: int, time: Any, given: dict[str, Any]) -> dict[str, Any]:
        return {"latents": given["latents"] * torch.nan} if step == 1 else {}

    failing = flux.batcher.submit(on_step=fail, **flux.call(order))
    nan = flux.batcher.submit(**flux.call(order), callback_on_step_end=overflow)
    good = [flux.submit(order) for _ in range(3)]
    with pytest.raises(TellingError):
        failing.result(timeout=120)
    assert bool(nan.result(timeout=120)[0].isnan().all())
    for request in good:
        torch.testing.assert_close(request.result(timeout=120)[0], expected, rtol=1e-5, atol=1e-5)


def test_requests_wait_for_memory(flux: Served) -> None:
    order = Order(1, 5, 0, 0, True)
    expected = flux.alone(order)[0]
    together: list[int] = []
    batcher = Batcher(flux.pipe, memory_budget=1)

    def on_step(progress: Progress) -> None:
        together.append(batcher.statistics().running)

    with batcher:
        requests = [batcher.submit(on_step=on_step, **flux.call(order)) for _ in range(4)]
        for request in requests:
            torch.testing.assert_close(request.result(timeout=120)[0], expected, rtol=1e-5, atol=1e-5)
    assert flux.pipe.transformer._session.shared.pools.limit is None
    assert set(together) == {1}


def test_asyncio(flux: Served) -> None:
    order = Order(0, 4, 0, 0, False)

    async def both() -> list[Any]:
        return await asyncio.gather(*(flux.batcher.generate(**flux.call(order)) for _ in range(2)))

    for made in asyncio.run(both()):
        torch.testing.assert_close(made[0], flux.alone(order)[0], rtol=1e-5, atol=1e-5)


def test_a_request_in_the_queue_is_cancelled(flux: Served) -> None:
    order, steps = Order(0, 3, 0, 0, False), list[int]()
    going, go_on = threading.Event(), threading.Event()

    def hold(progress: Progress) -> None:
        going.set()
        go_on.wait(60)

    with Batcher(flux.pipe, max_requests=1) as batcher:
        first = batcher.submit(on_step=hold, **flux.call(order))
        queued = batcher.submit(on_step=lambda progress: steps.append(progress.step), **flux.call(order))
        going.wait(60)
        assert (queued.cancel(), queued.cancelled(), queued.cancel()) == (True, True, True)
        go_on.set()
        first.result(timeout=60)
    assert steps == []
    assert not first.cancel()


def test_closed_and_bad(flux: Served) -> None:
    batcher = Batcher(flux.pipe)
    waiting = batcher.submit(**flux.call(Order(0, 50, 0, 0, False)))
    batcher.close()
    with pytest.raises(CancelledError):
        waiting.result(timeout=60)
    with pytest.raises(HiCacheError, match="closed"):
        batcher.submit(prompt="x")
    with pytest.raises(HiCacheError):
        flux.batcher.submit(cache="no such policy", prompt="x")
    for bad in ({"max_batch": 0}, {"max_wait": -1}, {"max_requests": True}, {"memory_budget": "much"}):
        with pytest.raises(HiCacheError, match=next(iter(bad))):
            Batcher(flux.pipe, **bad)  # type: ignore[arg-type]


def test_a_pipeline_that_is_not_compiled_is() -> None:
    pipe = next(case for case in CASES if case.name == "FluxPipeline").build()
    policy: Policy = HiCache(interval=2, order=1)
    with Batcher(pipe, policy) as batcher:
        assert batcher._denoisers == [pipe.transformer]
        assert pipe.transformer.policy == policy


def test_a_leader_that_is_cancelled_hands_on() -> None:
    """Its call is dropped after it was elected, and before its thread came to lead."""

    class Cancelled:
        stopped = False
        number = 0

    meeting = Meeting(4, 0.0, lambda: 1, lambda calls: None)
    calls = [Call(Cancelled(), object(), ((), {}), [], False) for _ in range(2)]  # type: ignore[arg-type]
    elected = calls[0].woken.set

    def dropped() -> None:
        calls[0].ended, calls[0].error = True, CancelledError()
        meeting._calls.clear()
        elected()

    calls[0].woken.set = dropped  # type: ignore[method-assign]
    with pytest.raises(CancelledError):
        meeting.make(calls[0])
    assert meeting._leader is None


def test_a_callback_of_a_request_may_ask_for_another_and_close(flux: Served) -> None:
    """With room for one at a time; the thread of the first is busy with the callback meanwhile."""
    found: list[Any] = []
    done = threading.Event()
    batcher = Batcher(flux.pipe, max_requests=1)

    def then(_: object) -> None:
        try:
            found.append(batcher.submit(**flux.call(Order(1, 3, 0, 0, False))).result(timeout=120))
            batcher.close()
        finally:
            done.set()

    batcher.submit(**flux.call(Order(0, 3, 0, 0, False))).add_done_callback(then)
    assert done.wait(120)
    assert len(found) == 1
    assert all(thread.daemon for thread in threading.enumerate() if thread.name == "hicache-request")


def test_a_call_that_changes_the_denoiser_is_made_alone_and_leaves_it_as_it_was() -> None:
    """Perturbed attention sets attention processors of the denoiser, and takes the batch in three parts."""
    case = next(case for case in ALL if case.name == "StableDiffusion3PAGPipeline")

    def call(seed: int, **more: Any) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(seed)
        given = {**case.arguments(), "num_inference_steps": 4, "output_type": "latent", "return_dict": False}
        return {**given, "generator": generator, **more}

    plain = case.build()
    plain.set_progress_bar_config(disable=True)
    expected = [plain(**call(seed))[0] for seed in range(2)]
    without = plain(**call(0, pag_scale=0.0))[0]
    pipe = hicache_compile(case.build(), HiCache(interval=1), backend="eager")
    before = dict(pipe.transformer.attn_processors)
    stopped: list[Request] = []
    submitted = threading.Event()

    def stop(progress: Progress) -> None:
        submitted.wait()
        if progress.step:
            stopped[0].cancel()

    with Batcher(pipe) as batcher:
        stopped.append(batcher.submit(on_step=stop, **call(0)))
        requests = [batcher.submit(**call(seed)) for seed in range(2)]
        bare = batcher.submit(**call(0, pag_scale=0.0))
        submitted.set()
        with pytest.raises(CancelledError):
            stopped[0].result(timeout=120)
        for request, picture in zip((*requests, bare), (*expected, without), strict=True):
            torch.testing.assert_close(request.result(timeout=120)[0], picture, rtol=1e-5, atol=1e-5)
    assert pipe.transformer.attn_processors == before


def test_one_thread_makes_the_calls_of_cuda_graphs(flux: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are kept by the thread that recorded them."""
    threads: set[str] = set()
    together = CompiledDenoiser.together

    def noticed(self: CompiledDenoiser, *args: Any, **how: Any) -> Any:
        threads.add(threading.current_thread().name)
        return together(self, *args, **how)

    monkeypatch.setattr(CompiledDenoiser, "together", noticed)
    monkeypatch.setattr(flux.pipe.transformer._inner, "graphed", True)
    with Batcher(flux.pipe) as batcher:
        for request in [batcher.submit(**flux.call(Order(seed, 3, 0, 0, False))) for seed in range(3)]:
            request.result(timeout=120)
    assert len(threads) == 1
    assert threads.pop().startswith("hicache-batcher")


@pytest.mark.parametrize("name", ["StableDiffusionXLPipeline", "Flux2KleinKVPipeline"])
def test_components_and_outputs_of_other_kinds(name: str) -> None:
    """Encoders whose hidden states are read; keys and values in an object, which the first step returns."""
    case = next(case for case in ALL if case.name == name)
    pipe = hicache_compile(case.build(), HiCache(interval=2, order=1), backend="eager")
    pipe.set_progress_bar_config(disable=True)

    def call(steps: int) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(steps)
        return {**case.arguments(), "num_inference_steps": steps, "generator": generator, "output_type": "latent"}

    alone = [pipe(**call(steps))[0] for steps in (3, 5)]
    with Batcher(pipe, max_wait=0.2) as batcher:
        for order in ((0, 1), (1, 0)):
            requests = {place: batcher.submit(**call((3, 5)[place])) for place in order}
            for place, request in requests.items():
                torch.testing.assert_close(request.result(timeout=120)[0], alone[place], rtol=1e-4, atol=1e-4)


def test_closed_from_a_step(flux: Served) -> None:
    batcher = Batcher(flux.pipe)
    ended = threading.Event()

    def on_step(progress: Progress) -> None:
        batcher.close()
        ended.set()

    request = batcher.submit(on_step=on_step, **flux.call(Order(0, 4, 0, 0, False)))
    assert ended.wait(60)
    with pytest.raises(CancelledError):
        request.result(timeout=60)


def test_a_second_batcher_leaves_the_first_its_policy(flux: Served) -> None:
    order, before = Order(0, 4, 0, 0, False), flux.pipe.transformer.policy
    with Batcher(flux.pipe, HiCache(interval=3, warmup=1, order=0)) as first, Batcher(flux.pipe, Uncached()) as second:
        requests = [batcher.submit(**flux.call(order)) for batcher in (first, second, first)]
        for request in requests:
            request.result(timeout=120)
    assert [request.decisions for request in requests] == ["F..F", "FFFF", "F..F"]
    assert flux.pipe.transformer.policy is before


def test_a_run_that_a_step_is_told_of_makes(flux: Served) -> None:
    """A preview of few steps in ``on_step``: it has a run of its own, and is no step of the request."""
    order, told = Order(1, 5, 0, 0, False), list[int]()

    def on_step(progress: Progress) -> None:
        told.append(progress.step)
        if progress.step == 2:
            flux.pipe(**flux.call(Order(0, 3, 0, 0, False)))

    with Batcher(flux.pipe) as batcher:
        request = batcher.submit(on_step=on_step, cache=POLICIES[0], **flux.call(order))
        flux.check(order, request)
    assert told == [*range(5)]


def test_what_is_no_pipeline(flux: Served) -> None:
    for pipe in (None, torch.nn.Linear(1, 1), flux.pipe.transformer):
        with pytest.raises(
            HiCacheError, match=f"Batcher.pipe = {type(pipe).__name__}: must be a pipeline of diffusers"
        ):
            Batcher(pipe)
    with pytest.raises(HiCacheError, match=r"Batcher\.on_step = 3: must be a function"):
        flux.batcher.submit(on_step=3, prompt="x")  # type: ignore[arg-type]


def test_a_budget_below_one_request_is_said(flux: Served, caplog: pytest.LogCaptureFixture) -> None:
    with Batcher(flux.pipe, memory_budget=10) as batcher:
        for _ in range(2):
            batcher.submit(**flux.call(Order(0, 3, 0, 0, False))).result(timeout=120)
    said = [record.message for record in caplog.records if "made one at a time" in record.message]
    assert len(said) == 1
    assert said[0].startswith("memory_budget = 10 bytes: a request keeps ")
