"""Runs as objects: however they take turns, each is what it is alone."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Generator, Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from hicache_compile import (
    FORA,
    CompiledDenoiser,
    DBCache,
    FBCache,
    HiCache,
    HiCacheError,
    Policy,
    TaylorSeer,
    TeaCache,
    hicache_compile,
    inspect,
)
from hicache_compile.runtime.step import Step
from tests.support.models import ToyDiT

POLICIES: tuple[Policy, ...] = (
    HiCache(interval=3, order=1, warmup=2),
    TaylorSeer(interval=4, scope="stack"),
    FORA(interval=2, warmup=1),
    FBCache(threshold=0.05),
    TeaCache(threshold=0.2, coefficients=(1.0, 0.0)),
    DBCache(threshold=0.1, first=1),
)


def noise(seed: int) -> Tensor:
    return torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def by_steps(model: nn.Module, seed: int, steps: int) -> Iterator[Tensor]:
    x = noise(seed)
    for step in range(steps):
        x = x - model(x, torch.full((2,), 1 - step / steps)) / steps
        yield x


def alone(seed: int, policy: Policy, steps: int) -> tuple[Tensor, str]:
    fresh = hicache_compile(ToyDiT(depth=2), policy, backend="eager")
    with fresh.trajectory(steps):
        *_, x = by_steps(fresh, seed, steps)
    return x, fresh.report().decisions()


@pytest.fixture(scope="module")
def shared() -> CompiledDenoiser:
    """One denoiser of all runs."""
    return hicache_compile(ToyDiT(depth=2), POLICIES[0], backend="eager")


Request = tuple[int, int, int]  # seed, policy, steps


@settings(max_examples=12, deadline=None)
@given(
    requests=st.lists(st.tuples(st.integers(0, 3), st.integers(0, len(POLICIES) - 1), st.integers(3, 9)), max_size=6),
    turns=st.randoms(use_true_random=False),
)
def test_each_is_what_it_is_alone(shared: CompiledDenoiser, requests: list[Request], turns: object) -> None:
    runs = [shared.run(steps, POLICIES[policy]) for _, policy, steps in requests]
    going = [by_steps(shared, seed, steps) for seed, _, steps in requests]
    found: list[Tensor | None] = [None] * len(requests)
    waiting = [place for place, (_, _, steps) in enumerate(requests) for _ in range(steps)]
    turns.shuffle(waiting)  # type: ignore[attr-defined]  # a random.Random
    for place in waiting:
        with runs[place]:
            found[place] = next(going[place])
    for run, x, (seed, policy, steps) in zip(runs, found, requests, strict=True):
        wanted, letters = alone(seed, POLICIES[policy], steps)
        assert run.decisions() == letters
        assert x is not None
        assert torch.equal(x, wanted)


def within(shared: CompiledDenoiser, seed: int, steps: int) -> Generator[Tensor, None, str]:
    """Yields inside of its run."""
    with shared.run(steps) as run:
        yield from by_steps(shared, seed, steps)
        return run.decisions()


def test_generators_that_yield_inside_of_their_runs(shared: CompiledDenoiser) -> None:
    going = {seed: within(shared, seed, 6 + seed) for seed in range(3)}
    found: dict[int, Tensor] = {}
    letters: dict[int, str] = {}
    while going:
        for seed, generator in list(going.items()):
            try:
                found[seed] = next(generator)
            except StopIteration as stop:
                letters[seed] = stop.value
                del going[seed]
    for seed in range(3):
        wanted, decisions = alone(seed, POLICIES[0], 6 + seed)
        assert torch.equal(found[seed], wanted)
        assert letters[seed] == decisions


def test_what_a_run_is_entered_inside_of_holds_for_its_steps(shared: CompiledDenoiser) -> None:
    """Names of branches, switched off, observed: as where they are entered inside of the run."""
    seen, run, rows, named = [], shared.run(4), [shared.run(4), shared.run(4)], shared.run(4)

    def observer(step: Step, call: object, make: Callable[[], Tensor]) -> Tensor:
        seen.append(step.index)
        return make()

    time = torch.ones(2)
    with torch.no_grad():
        for step in range(4):
            with shared.disabled(), shared.observed(observer), run:
                shared(noise(0), time - step / 4)
            with shared.disabled(), shared.rows(rows):
                shared(noise(0), time - step / 4)
            for name in ("cond", "uncond"):
                with shared.cache_context(name), named:
                    shared(noise(0), time - step / 4)
    assert {run.decisions(), *(row.decisions() for row in rows)} == {"FFFF"}
    assert seen == [0, 1, 2, 3]
    assert named.decisions("cond") == named.decisions("uncond") == "FF.."
    with shared.trajectory(4), torch.no_grad():  # and what it took is its own no more
        shared(noise(0), time)
    assert shared.report().decisions() == "F"


@pytest.mark.parametrize("streams", [1, 2])
def test_what_is_sampled_between_two_values_of_a_generator_is_none_of_its_run(
    shared: CompiledDenoiser, streams: int
) -> None:
    going = [within(shared, seed, 6) for seed in range(streams)]
    for _ in range(2):
        assert len([next(stream) for stream in going]) == streams
    with shared.trajectory(5):
        *_, x = by_steps(shared, 3, 5)
    assert torch.equal(x, alone(3, POLICIES[0], 5)[0])
    for seed, stream in enumerate(going):
        *_, x = stream
        assert torch.equal(x, alone(seed, POLICIES[0], 6)[0])


def test_a_generator_that_is_left_behind_takes_its_run_with_it() -> None:
    denoiser = hicache_compile(ToyDiT(depth=2), POLICIES[0], backend="eager")

    def consume() -> None:
        stream = within(denoiser, 0, 6)
        next(stream)
        assert denoiser.report().state_bytes > 0

    consume()
    gc.collect()
    assert denoiser.report().state_bytes == 0


def test_what_is_sampled_beside_an_async_generator_is_none_of_its_run(shared: CompiledDenoiser) -> None:
    async def stream() -> AsyncIterator[Tensor]:
        with shared.run(6):
            for x in by_steps(shared, 1, 6):
                yield x

    async def consume() -> tuple[Tensor, list[Tensor]]:
        between = []
        async for x in stream():
            with shared.trajectory(2):
                *_, own = by_steps(shared, 3, 2)
            between.append(own)
            newest = x
        return newest, between

    found, between = asyncio.run(consume())
    assert torch.equal(found, alone(1, POLICIES[0], 6)[0])
    wanted = alone(3, POLICIES[0], 2)[0]
    assert len(between) == 6
    assert all(torch.equal(own, wanted) for own in between)


def test_a_thread_that_a_task_waits_for_is_in_its_run(shared: CompiledDenoiser) -> None:
    async def sample(seed: int) -> tuple[Tensor, str]:
        going = by_steps(shared, seed, 6)
        with shared.run(6) as run:
            for _ in range(6):
                x = await asyncio.to_thread(next, going)
            return x, run.decisions()

    async def together() -> list[tuple[Tensor, str]]:
        return await asyncio.gather(*map(sample, range(2)))

    for seed, (x, letters) in enumerate(asyncio.run(together())):
        wanted, decisions = alone(seed, POLICIES[0], 6)
        assert letters == decisions
        assert torch.equal(x, wanted)


def test_tasks_of_asyncio(shared: CompiledDenoiser) -> None:
    @contextlib.contextmanager
    def entered(steps: int) -> Iterator[None]:  # the frame that enters the run is not one the calls are made from
        with shared.run(steps):
            yield

    async def sample(seed: int) -> Tensor:
        with entered(8):
            drawn = []
            for x in by_steps(shared, seed, 8):
                drawn.append(x)
                await asyncio.sleep(0)
        return drawn[-1]

    async def together() -> list[Tensor]:
        return await asyncio.gather(*map(sample, range(4)))

    for seed, x in enumerate(asyncio.run(together())):
        assert torch.equal(x, alone(seed, POLICIES[0], 8)[0])


def test_a_run_goes_on_in_another_thread_but_is_in_one_at_a_time(shared: CompiledDenoiser) -> None:
    run, steps = shared.run(6), by_steps(shared, 1, 6)
    with run:
        next(steps)
    errors: list[str] = []

    def go_on() -> None:
        with run:
            for _ in range(4):
                next(steps)

    def enter() -> None:
        try:
            with run:
                pass
        except HiCacheError as error:
            errors.append(str(error))

    _in_a_thread(go_on)
    with run:
        x = next(steps)
        _in_a_thread(enter)
    assert errors == ["a run was entered in two threads: must be in one at a time"]
    assert torch.equal(x, alone(1, POLICIES[0], 6)[0])


def _in_a_thread(work: Callable[[], None]) -> None:
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


def test_an_exception_closes_it_and_no_other(shared: CompiledDenoiser) -> None:
    broken, whole = shared.run(4), shared.run(4)
    others = by_steps(shared, 2, 4)
    with whole:
        next(others)
    with pytest.raises(KeyError), broken:
        raise KeyError
    assert broken.closed
    with pytest.raises(HiCacheError, match="a run that is closed was entered: must be a new one"), broken:
        pass
    with whole:
        *_, x = others
    assert torch.equal(x, alone(2, POLICIES[0], 4)[0])


def test_a_trajectory_beside_it_is_the_threads_own(shared: CompiledDenoiser) -> None:
    run, mine = shared.run(5), by_steps(shared, 1, 5)
    with shared.trajectory(6):
        for place, _ in enumerate(by_steps(shared, 3, 6)):
            if place < 5:
                with run:
                    x = next(mine)
    assert shared.report().decisions() == alone(3, POLICIES[0], 6)[1]
    assert torch.equal(x, alone(1, POLICIES[0], 5)[0])
    with run, pytest.raises(HiCacheError, match="step 5 of context 'default': the trajectory has 5 steps"):
        next(by_steps(shared, 1, 5))


def test_what_is_dropped_is_freed() -> None:
    denoiser = hicache_compile(ToyDiT(depth=2), POLICIES[0], backend="eager")
    run = denoiser.run(6)
    with run:
        next(by_steps(denoiser, 1, 6))
    assert denoiser.report().state_bytes > 0  # of all runs
    session = weakref.ref(run.session)
    del run
    gc.collect()
    assert session() is None
    assert denoiser.report().state_bytes == 0
    kept = denoiser.run(6)
    with kept:
        next(by_steps(denoiser, 1, 6))
        assert denoiser.report().decisions() == "F"
    kept.close()
    assert (kept.closed, kept.decisions(), denoiser.report().state_bytes) == (True, "F", 0)
    generator = within(denoiser, 0, 6)
    next(generator)
    generator.close()
    assert denoiser.report().state_bytes == 0


def test_a_run_that_is_closed_holds_no_weights() -> None:
    denoiser = hicache_compile(ToyDiT(depth=2), POLICIES[0], backend="eager")
    run = denoiser.run(4)
    with run:
        for _ in by_steps(denoiser, 1, 4):
            pass
    run.close()
    weights = list(map(weakref.ref, denoiser.parameters()))
    del denoiser
    gc.collect()
    assert not any(weight() is not None for weight in weights)
    assert (run.decisions(), run.num_steps, run.policy) == (alone(1, POLICIES[0], 4)[1], None, POLICIES[0])
    with pytest.raises(HiCacheError, match="a run that is closed was entered"), run:
        pass


def test_a_generator_that_is_closed_in_another_context_takes_its_run_with_it(shared: CompiledDenoiser) -> None:
    own = shared._sessions.mine()
    generator = within(shared, 0, 6)
    next(generator)
    contextvars.Context().run(generator.close)
    assert shared._sessions.mine() is own
    with shared.trajectory(5):
        *_, x = by_steps(shared, 1, 5)
    assert torch.equal(x, alone(1, POLICIES[0], 5)[0])
    assert shared.report().decisions() == alone(1, POLICIES[0], 5)[1]


def test_guidance_branches_are_a_runs_own(shared: CompiledDenoiser) -> None:
    runs = [shared.run(5) for _ in range(2)]
    going = {(place, name): by_steps(shared, place, 5) for place in range(2) for name in ("cond", "uncond")}
    for _ in range(5):
        for (place, name), steps in going.items():
            with runs[place], shared.cache_context(name):
                x = next(steps)
    assert torch.equal(x, alone(1, POLICIES[0], 5)[0])
    assert {run.decisions(name) for run in runs for name in ("cond", "uncond")} == {alone(0, POLICIES[0], 5)[1]}
    with pytest.raises(HiCacheError, match=r"decisions\.context = 'other': must be one of cond, uncond"):
        runs[0].decisions("other")


def test_by_torch_compile() -> None:
    model = torch.compile(ToyDiT(depth=2), backend="hicache", options={"policy": POLICIES[0], "backend": "eager"})
    handle = inspect(model)
    runs = [handle.run(6, POLICIES[place]) for place in range(2)]
    going = [by_steps(model, place, 6) for place in range(2)]
    for _ in range(6):
        found = []
        for run, steps in zip(runs, going, strict=True):
            with run:
                found.append(next(steps))
    for place in range(2):
        assert torch.equal(found[place], alone(place, POLICIES[place], 6)[0])


@pytest.mark.parametrize(("steps", "policy"), [(0, None), (2.5, None), (5, "nothing"), (5, {"interval": 3})])
def test_bad_arguments_leave_nothing_behind(shared: CompiledDenoiser, steps: object, policy: object) -> None:
    before = len(shared._sessions.all())
    with pytest.raises(HiCacheError):
        shared.run(steps, policy)  # type: ignore[arg-type]
    gc.collect()
    assert len(shared._sessions.all()) <= before
