"""Batches whose rows are of several runs: each row is what it is in a call by itself."""

from __future__ import annotations

import gc
import logging
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from hicache_compile import (
    FORA,
    CompiledDenoiser,
    DBCache,
    DiCache,
    EasyCache,
    FBCache,
    HiCache,
    HiCacheError,
    Policy,
    TaylorSeer,
    TeaCache,
    Uncached,
    hicache_compile,
)
from hicache_compile.operators import pages
from hicache_compile.operators.anchors import forecast, quantised, remember, scale_of
from hicache_compile.runtime.rows.compute import _Made
from hicache_compile.runtime.runs import Run
from tests.support.models import ToyDiT, flux_inputs, random_flux

POLICIES: tuple[Policy, ...] = (
    HiCache(interval=3, order=1, warmup=2),
    TaylorSeer(interval=4, scope="stack"),
    FORA(interval=2, warmup=1),
    FBCache(threshold=0.5),
    TeaCache(threshold=0.2, coefficients=(1.0, 0.0)),
    DBCache(threshold=2.0, first=1, warmup=2),
    EasyCache(threshold=1.0),
    DiCache(threshold=2.0),
    Uncached(),
)
Request = tuple[int, int, int]  # seed, policy, steps


def noise(seed: int) -> Tensor:
    return torch.randn(1, 5, 16, generator=torch.Generator().manual_seed(seed))


def stepped(model: nn.Module, xs: Sequence[Tensor], times: Sequence[float], lengths: Sequence[int]) -> list[Tensor]:
    """The samples after one step each, made in one call."""
    with torch.no_grad():
        made = model(torch.cat(list(xs)), torch.tensor(times))
    return [x - made[row : row + 1] / length for row, (x, length) in enumerate(zip(xs, lengths, strict=True))]


def alone(model: CompiledDenoiser, request: Request) -> tuple[Tensor, str]:
    seed, policy, steps = request
    x, run = noise(seed), model.run(steps, POLICIES[policy])
    for step in range(steps):
        with run:
            (x,) = stepped(model, [x], [1 - step / steps], [steps])
    return x, run.decisions()


def together(model: CompiledDenoiser, requests: Sequence[Request], turns: random.Random) -> list[tuple[Tensor, str]]:
    """In each call some of the requests, in any order."""
    runs = [model.run(steps, POLICIES[policy]) for _, policy, steps in requests]
    xs, at = [noise(seed) for seed, _, _ in requests], [0] * len(requests)
    while left := [number for number, (_, _, steps) in enumerate(requests) if at[number] < steps]:
        chosen = turns.sample(left, turns.randint(1, len(left)))
        lengths = [requests[number][2] for number in chosen]
        times = [1 - at[number] / length for number, length in zip(chosen, lengths, strict=True)]
        with model.rows([runs[number] for number in chosen]):
            made = stepped(model, [xs[number] for number in chosen], times, lengths)
        for number, x in zip(chosen, made, strict=True):
            xs[number], at[number] = x, at[number] + 1
    return [(x, run.decisions()) for x, run in zip(xs, runs, strict=True)]


@pytest.fixture(scope="module")
def model() -> CompiledDenoiser:
    torch.manual_seed(0)
    return hicache_compile(ToyDiT(depth=2), POLICIES[0], backend="eager")


requests = st.lists(st.tuples(st.integers(0, 4), st.integers(0, len(POLICIES) - 1), st.integers(3, 9)), max_size=8)


@settings(max_examples=12, deadline=None)
@given(requests=requests, turns=st.randoms(use_true_random=False))
def test_each_row_is_what_it_is_alone(model: CompiledDenoiser, requests: list[Request], turns: random.Random) -> None:
    for request, (x, decisions) in zip(requests, together(model, requests, turns), strict=True):
        expected, letters = alone(model, request)
        assert decisions == letters
        torch.testing.assert_close(x, expected, rtol=1e-5, atol=1e-5)


def test_every_policy_at_once_skips_and_recompiles_nothing(model: CompiledDenoiser) -> None:
    mixed = [(number, number, 8) for number in range(len(POLICIES))]
    made = together(model, mixed, random.Random(1))
    assert [number for number, (_, letters) in enumerate(made[:-1]) if set(letters) == {"F"}] == []
    captured = len(model._graphs)
    together(model, mixed, random.Random(2))
    assert len(model._graphs) == captured
    assert any(graph.by_row for graph in model._graphs)  # they were made in one call


@pytest.mark.parametrize("backend", ["inductor", "aot_eager"])
def test_compiled(backend: str) -> None:
    torch.manual_seed(0)
    compiled = hicache_compile(ToyDiT(depth=2), POLICIES[0], backend=backend)
    mixed = [(0, 0, 8), (1, 1, 6), (2, 3, 7), (3, 7, 8)]
    for request, (x, decisions) in zip(mixed, together(compiled, mixed, random.Random(0)), strict=True):
        expected, letters = alone(compiled, request)
        assert decisions == letters
        torch.testing.assert_close(x, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("anchors", "most"), [("int8", 1e-2), ("float8_e4m3fn", 5e-2), ("bfloat16", 1e-2)])
def test_anchors_of_other_dtypes(anchors: str, most: float) -> None:
    """To a quantum of the anchors: what differs in a last bit may be rounded to the other side."""
    torch.manual_seed(0)
    compiled = hicache_compile(ToyDiT(depth=2), POLICIES[0], backend="eager", anchors=anchors)
    mixed = [(0, 0, 8), (1, 1, 6), (2, 2, 7)]
    for request, (x, _) in zip(mixed, together(compiled, mixed, random.Random(0)), strict=True):
        torch.testing.assert_close(x, alone(compiled, request)[0], rtol=most, atol=most)


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_quantised_pages_are_quantised_rings(dtype: torch.dtype) -> None:
    value = torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(0))
    value[1], value[2, 0] = torch.nan, torch.inf
    scales = pages.scale_of_rows(value, dtype, 1)
    made = quantised(value, pages.along(scales, value, 1), dtype)
    for row in range(3):
        mine = value[:, row : row + 1]
        assert torch.equal(scales[row], scale_of(mine, dtype)) or bool(scales[row].isnan())
        expected = quantised(mine, scale_of(mine, dtype), dtype)
        assert torch.equal(made[:, row : row + 1].view(torch.int8), expected.view(torch.int8))


def test_rows_of_a_flux_in_guidance_branches() -> None:
    compiled = hicache_compile(random_flux(), HiCache(interval=3, order=1), backend="eager")
    batch = {**flux_inputs(batch=2), "timestep": torch.tensor([0.9, 0.5])}
    runs = [compiled.run(5), compiled.run(4)]
    expected: dict[tuple[int, str], list[Tensor]] = {}
    with torch.no_grad():
        for row, run in enumerate([compiled.run(5), compiled.run(4)]):
            mine = {name: value[row : row + 1] if len(value) == 2 else value for name, value in batch.items()}
            start = mine.pop("hidden_states")
            for branch in ("cond", "uncond"):
                scale = 1.0 if branch == "cond" else 0.5
                for step in range(run.num_steps or 0):
                    with run, compiled.cache_context(branch):
                        made = compiled(**mine, hidden_states=start * (scale + step), return_dict=False)
                    expected.setdefault((row, branch), []).append(made[0])
        for step in range(4):
            for branches in (("cond", "uncond"), ("uncond", "cond")):  # two calls a step: each row is in each branch
                scales = torch.tensor([1.0 if branch == "cond" else 0.5 for branch in branches])
                given = {**batch, "hidden_states": batch["hidden_states"] * (scales + step)[:, None, None]}
                with compiled.rows(runs, branches):
                    made = compiled(**given, return_dict=False)[0]
                for row, branch in enumerate(branches):
                    torch.testing.assert_close(made[row : row + 1], expected[row, branch][step], rtol=1e-5, atol=1e-5)
    assert [run.decisions("cond") for run in runs] == ["FFF.", "FFF."]


def test_the_same_run_twice_has_a_row_each(model: CompiledDenoiser) -> None:
    run = model.run(6, POLICIES[0])
    xs = [noise(0), noise(1)]
    for step in range(6):
        with model.rows([run, run]):
            xs = stepped(model, xs, [1 - step / 6] * 2, [6, 6])
    for seed in range(2):
        torch.testing.assert_close(xs[seed], alone(model, (seed, 0, 6))[0], rtol=1e-5, atol=1e-5)
    assert run.decisions("default[1]") == run.decisions()


class InALoop(nn.Module):
    """Works sample by sample."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = ToyDiT(depth=2)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return torch.cat([self.inner(x[row : row + 1], t[row : row + 1]) for row in range(len(x))])


def test_rows_that_cannot_share_a_call_are_called_one_by_one(caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    compiled = hicache_compile(InALoop(), POLICIES[0], backend="eager")
    mixed = [(0, 0, 8), (1, 1, 6), (2, 3, 7)]
    with caplog.at_level(logging.WARNING, logger="hicache_compile"):
        made = together(compiled, mixed, random.Random(0))
    assert sum("one by one" in record.message for record in caplog.records) == 1
    for request, (x, decisions) in zip(mixed, made, strict=True):
        expected, letters = alone(compiled, request)
        assert (decisions, True) == (letters, torch.equal(x, expected))


class Mixing(ToyDiT):
    """All samples of a call see their mean."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return super().forward(x + x.mean(0, keepdim=True), t)


def test_rows_of_one_run_stay_together_where_they_depend_on_each_other(caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    compiled = hicache_compile(Mixing(), POLICIES[0], backend="eager")
    batch, steps = torch.cat([noise(0), noise(1)]), 6
    with torch.no_grad(), compiled.trajectory(steps):
        expected = batch
        for step in range(steps):
            expected = expected - compiled(expected, torch.full((2,), 1 - step / steps)) / steps
    decisions = compiled.report().decisions()
    run, other, xs = compiled.run(steps), compiled.run(steps), [noise(0), noise(1), noise(2)]
    for step in range(steps):
        with compiled.rows([run, run, other]):
            xs = stepped(compiled, xs, [1 - step / steps] * 3, [steps] * 3)
    assert torch.equal(torch.cat(xs[:2]), expected)
    assert run.decisions() == run.decisions("default[1]") == decisions
    assert (xs[2] - alone(compiled, (2, 0, steps))[0]).abs().max() == 0
    assert sum("made one by one" in record.message for record in caplog.records) == 1


@pytest.mark.parametrize("failing", [3, 5], ids=["forecast", "computed"])
def test_a_call_that_failed_is_made_again_by_each(
    model: CompiledDenoiser, failing: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = [(0, 0, 8), (1, 0, 8)]
    runs, xs = [model.run(steps, POLICIES[policy]) for _, policy, steps in requests], [noise(0), noise(1)]

    def fail(*_: Any) -> None:
        raise RuntimeError("no memory")

    for step in range(8):
        time = 1 - step / 8
        if step == failing:
            with monkeypatch.context() as patch:
                patch.setattr(_Made, "_run", fail)
                with pytest.raises(RuntimeError, match="no memory"), model.rows(runs):
                    stepped(model, xs, [time] * 2, [8] * 2)
            for number, run in enumerate(runs):
                with run:
                    (xs[number],) = stepped(model, xs[number : number + 1], [time], [8])
            continue
        with model.rows(runs):
            xs = stepped(model, xs, [time] * 2, [8] * 2)
    for x, run, request in zip(xs, runs, requests, strict=True):
        expected, decisions = alone(model, request)
        assert run.decisions() == decisions
        torch.testing.assert_close(x, expected, rtol=1e-5, atol=1e-5)


def test_pages_return_when_runs_end(model: CompiledDenoiser) -> None:
    together(model, [(0, 0, 4)] * 3, random.Random(0))
    gc.collect()
    pools = model._session.shared.pools
    assert pools.used == 0
    runs = [model.run(4) for _ in range(3)]
    with model.rows(runs):
        stepped(model, [noise(0)] * 3, [1.0] * 3, [4] * 3)
    assert pools.used == 3
    runs[0].close()
    assert pools.used == 2


def test_more_rows_than_pages() -> None:
    torch.manual_seed(0)
    compiled = hicache_compile(ToyDiT(depth=2), POLICIES[0], backend="eager")
    compiled._session.shared.pools.capacity = 2
    mixed = [(number, 0, 7) for number in range(5)]
    for request, (x, _) in zip(mixed, together(compiled, mixed, random.Random(0)), strict=True):
        torch.testing.assert_close(x, alone(compiled, request)[0], rtol=1e-5, atol=1e-5)


def test_bad_rows(model: CompiledDenoiser) -> None:
    closed = model.run(3)
    closed.close()
    other = hicache_compile(ToyDiT(depth=1), POLICIES[0], backend="eager").run(3)
    mine = model.run(3)
    bad: list[tuple[object, object, str]] = [
        ([], None, "one or more runs"),
        (mine, None, "one or more runs"),
        ([mine, 3], None, "one or more runs"),
        ([mine, closed], None, r"runs\[1\]: is closed"),
        ([other], None, "another denoiser"),
        ([mine], "cond", "contexts"),
        ([mine], ["a", "b"], "contexts"),
    ]
    for runs, contexts, text in bad:
        with pytest.raises(HiCacheError, match=text):
            model.rows(runs, contexts)  # type: ignore[arg-type]
    with pytest.raises(HiCacheError, match="2 rows, must have 1"), model.rows([mine]):
        stepped(model, [noise(0)] * 2, [1.0] * 2, [3] * 2)


def test_a_step_that_fails_leaves_the_rows_right(model: CompiledDenoiser) -> None:
    runs = [model.run(6, POLICIES[0]) for _ in range(2)]
    xs = [noise(0), noise(1)]
    for step in range(6):
        if step == 3:
            with pytest.raises(Exception), model.rows(runs), torch.no_grad():  # noqa: B017, PT011  # torch's own
                model(torch.cat(xs)[..., :3], torch.ones(2))
        with model.rows(runs):
            xs = stepped(model, xs, [1 - step / 6] * 2, [6, 6])
    assert all(bool(x.isfinite().all()) for x in xs)


@settings(max_examples=30, deadline=None)
@given(
    capacity=st.integers(3, 6),
    batch=st.integers(0, 2),
    depth=st.integers(1, 4),
    seed=st.integers(0, 99),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_pages_are_rings_row_by_row(capacity: int, batch: int, depth: int, seed: int, dtype: torch.dtype) -> None:
    """Reading, weighing and writing by page is what the functions of a ring do for each row."""
    generator = torch.Generator().manual_seed(seed)
    shape = [4, 5]
    shape.insert(batch, 1)
    pool = torch.randn(capacity, depth, *shape, generator=generator).to(dtype)
    rows = torch.randperm(capacity, generator=generator)[:3]
    weights = torch.randn(3, depth, generator=generator)
    position = torch.randint(depth, (3,), generator=generator)
    value = torch.randn(3, 4, 5, generator=generator).movedim(0, batch).to(dtype)
    value.select(batch, 1).view(-1)[:1] = torch.nan if value.select(batch, 1).is_contiguous() else 0.0
    each = [pool[page].clone() for page in rows]
    read = pages.forecast_rows(pool, rows, weights, batch)
    pages.remember_rows(pool, rows, position, value, batch)
    for row, ring in enumerate(each):
        torch.testing.assert_close(read.narrow(batch, row, 1), forecast(ring, weights[row]))
        remember(ring, position[row : row + 1], value.narrow(batch, row, 1))
        assert torch.equal(pool[rows[row]], ring)


def test_policies_of_one_layout_share_programs(model: CompiledDenoiser) -> None:
    first = POLICIES[0]
    others: list[Run] = [model.run(5, replace(first)), model.run(9, HiCache(interval=4, order=1, warmup=3))]
    before = [len(graph.program_sets) for graph in model._graphs]
    with model.rows(others):
        stepped(model, [noise(0), noise(1)], [1.0, 1.0], [5, 9])
    assert [len(graph.program_sets) for graph in model._graphs][: len(before)] == before


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize("of_a_run", [False, True])
def test_a_mode_around_a_batch_sees_what_runs(of_a_run: bool, alone: bool) -> None:
    """Rows in one call and one by one; samples of a run that each decide for themselves."""
    torch.manual_seed(0)
    model = InALoop() if alone else ToyDiT(depth=3)
    compiled = hicache_compile(model, FBCache(threshold=0.5), backend="eager")
    x, t = torch.randn(2, 16, 16), torch.full((2,), 0.5)

    def counted(call: Any) -> int:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            call(x, t)
        return int(counter.get_total_flops())

    runs = [compiled.run(3), compiled.run(3)]

    def as_rows(*inputs: Tensor) -> None:
        with compiled.rows(runs):
            compiled(*inputs)

    with compiled.trajectory(3):
        found = [counted(compiled if of_a_run else as_rows) for _ in range(3)]
    assert found[0] == counted(model) > found[1] == found[2] > 0
