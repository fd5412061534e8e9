"""A batch of one run: each sample is decided as it is alone, unless it is asked that they decide as one."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hicache_compile import (
    DMD,
    DBCache,
    DiCache,
    EasyCache,
    FBCache,
    HiCache,
    Policy,
    ResidualGate,
    SpeCa,
    StepMask,
    Taylor,
    TeaCache,
    XSlim,
    hicache_compile,
    inspect,
)
from tests.support.models import ToyDiT

GUARDED: tuple[Policy, ...] = (
    TeaCache(threshold=0.2, coefficients=(1.0, 0.0)),
    FBCache(threshold=0.5),
    DBCache(threshold=0.2, first=1, warmup=2),
    EasyCache(threshold=0.1),
    DiCache(threshold=0.2),
    SpeCa(threshold=0.5),
    XSlim(threshold=0.6, coefficients=(1.0, 0.0), clusters=3),
)
STEPS = 8
SPEEDS = (0.02, 0.3, 1.0, 4.0)  # how far each sample goes in a step: they decide apart


def sampled(model: nn.Module, samples: list[int], steps: Iterable[int] = range(STEPS), x: Any = None) -> Tensor:
    """``samples`` after ``steps``, as one batch; ``x``: before, by default noise."""
    if x is None:
        x = torch.cat([torch.randn(1, 5, 16, generator=torch.Generator().manual_seed(number)) for number in samples])
    speed = torch.tensor([SPEEDS[number] for number in samples]).reshape(-1, 1, 1)
    with torch.no_grad():
        for index in steps:
            time = torch.full((len(samples),), 1 - index / STEPS)
            x = x - speed * model(x, time) / STEPS
    return x


def decisions(model: Any, count: int) -> list[str]:
    return [model.report().decisions("default" + (f"[{number}]" if number else "")) for number in range(count)]


@pytest.fixture
def toy() -> nn.Module:
    torch.manual_seed(0)
    return ToyDiT().eval()


@pytest.mark.parametrize(
    "policy", GUARDED, ids=("TeaCache", "FBCache", "DBCache", "EasyCache", "DiCache", "SpeCa", "XSlim")
)
def test_each_sample_is_what_it_is_alone(toy: nn.Module, policy: Policy) -> None:
    alone, expected = [], []
    for number in range(4):
        model = hicache_compile(toy, policy, backend="eager")
        with model.trajectory(STEPS):
            alone.append(sampled(model, [number]))
        expected += decisions(model, 1)
    model = hicache_compile(toy, policy, backend="eager")
    for _ in range(2):
        with model.trajectory(STEPS):
            made = sampled(model, [0, 1, 2, 3])
        assert decisions(model, 4) == expected
        torch.testing.assert_close(made, torch.cat(alone), rtol=1e-5, atol=1e-6)
    assert len(set(expected)) > 1, expected


@dataclass
class Sample:
    x: Tensor


class Opening(ToyDiT):
    def forward(self, sample: Sample, t: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(sample.x, t)


def test_samples_in_a_dataclass() -> None:
    policy = FBCache(threshold=0.5)

    def run(samples: list[int]) -> tuple[Tensor, list[str]]:
        compiled = hicache_compile(Opening(), policy, backend="eager")

        class Packing(nn.Module):
            def forward(self, x: Tensor, t: Tensor) -> Tensor:
                return compiled(Sample(x), t)

        with compiled.trajectory(STEPS):
            x = sampled(Packing(), samples)
        return x, decisions(compiled, len(samples))

    together, letters = run([0, 3])
    for place, number in enumerate((0, 3)):
        alone, own = run([number])
        torch.testing.assert_close(together[place : place + 1], alone)
        assert letters[place] == own[0]
    assert letters[0] != letters[1]


@pytest.mark.parametrize("forecaster", [DMD(2), ResidualGate(Taylor(2))], ids=("DMD", "ResidualGate"))
def test_forecasts_are_fitted_to_each_sample(toy: nn.Module, forecaster: Any) -> None:
    policy = Policy(StepMask("11110101"), forecaster, "stack")

    def made(samples: list[int], **options: bool) -> Tensor:
        model = hicache_compile(toy, policy, backend="eager", **options)
        with model.trajectory(STEPS):
            found = sampled(model, samples)
        assert model.report().decisions() == policy.decisions(STEPS)
        return found

    alone = torch.cat([made([number]) for number in range(4)])
    torch.testing.assert_close(made([0, 1, 2, 3]), alone, rtol=1e-5, atol=1e-6)
    if isinstance(forecaster, DMD):  # the gate is fully open for all of them
        assert (made([0, 1, 2, 3], together=True) - alone).norm() > 1e-3 * alone.norm()


def test_a_warmup_compiles_what_they_need(toy: nn.Module) -> None:
    model = hicache_compile(toy, FBCache(threshold=0.5), backend="eager")
    model.warmup((torch.randn(4, 5, 16), torch.ones(4)), num_steps=STEPS)
    compiled = model.report().programs
    with model.trajectory(STEPS):
        sampled(model, [0, 1, 2, 3])
    assert (model.report().programs, model.report().recompiles) == (compiled, 0)
    assert len(set(decisions(model, 4))) > 1


def test_a_run_of_samples_is_suspended(toy: nn.Module, tmp_path: Path) -> None:
    """Each has anchors and decisions of its own in the file."""
    model = hicache_compile(toy, FBCache(threshold=0.5), backend="eager")
    with model.trajectory(STEPS):
        expected = sampled(model, [0, 1, 2, 3])
    letters = decisions(model, 4)
    with model.trajectory(STEPS):
        x = sampled(model, [0, 1, 2, 3], range(5))
        model.suspend(tmp_path / "run")
    other = hicache_compile(toy, FBCache(threshold=0.5), backend="eager")
    with other.resume(tmp_path / "run"):
        made = sampled(other, [0, 1, 2, 3], range(5, STEPS), x)
    torch.testing.assert_close(made, expected, rtol=1e-6, atol=1e-6)
    assert decisions(other, 4) == letters


def test_they_decide_as_one_where_asked(toy: nn.Module, caplog: pytest.LogCaptureFixture) -> None:
    model = hicache_compile(toy, FBCache(threshold=0.5), backend="eager", together=True)
    with caplog.at_level(logging.WARNING), model.trajectory(STEPS):
        sampled(model, [0, 1, 2, 3])
    assert list(model.report().history) == ["default"]
    assert not caplog.records


class Mixing(nn.Module):
    """What a sample returns changes with its neighbours."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        made: Tensor = self.inner(x - x.mean(0), time)
        return made


class Reading(Mixing):
    """Later samples read the first one, which reads none of them."""

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        made: Tensor = self.inner(x + 0.1 * x[:1], time)
        return made


class InParts(Mixing):
    """How many parts there are depends on how many samples there are."""

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        parts = x.flatten(0, 1).split(4)
        made: Tensor = self.inner(torch.cat([part * 0.5 for part in parts]).view_as(x), time)
        return made


@pytest.mark.parametrize(
    ("kind", "why"),
    [(Mixing, "changes with its neighbours"), (Reading, "changes with its neighbours"), (InParts, "for a batch of")],
)
def test_they_decide_as_one_where_they_cannot_be_told_apart(
    toy: nn.Module, kind: type[Mixing], why: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = hicache_compile(kind(toy), FBCache(threshold=0.5), backend="eager")
    with caplog.at_level(logging.WARNING), model.trajectory(STEPS):
        made = sampled(model, [0, 1])
    (said,) = [record.message for record in caplog.records if "decide as one" in record.message]
    assert why in said
    assert list(model.report().history) == ["default"]
    together = hicache_compile(kind(toy), FBCache(threshold=0.5), backend="eager", together=True)
    with together.trajectory(STEPS):
        torch.testing.assert_close(sampled(together, [0, 1]), made)


@pytest.mark.parametrize(("dynamic", "contexts"), [(True, 4), (None, 1)])
def test_with_torch_compile(
    toy: nn.Module, dynamic: bool | None, contexts: int, caplog: pytest.LogCaptureFixture
) -> None:
    """By sample where the batch size is symbolic; else they decide as one, which is said."""
    torch._dynamo.reset()
    options = {"policy": FBCache(threshold=0.5), "backend": "eager"}
    model: Any = torch.compile(toy, backend="hicache", options=options, dynamic=dynamic)
    handle = inspect(model)
    with caplog.at_level(logging.WARNING), handle.trajectory(STEPS):
        made = sampled(model, [0, 1, 2, 3])
    assert len(handle.report().history) == contexts
    assert len([record for record in caplog.records if "decide as one" in record.message]) == (contexts == 1)
    if contexts > 1:
        alone = hicache_compile(toy, FBCache(threshold=0.5), backend="eager")
        for number in range(4):
            with alone.trajectory(STEPS):
                torch.testing.assert_close(sampled(alone, [number]), made[number : number + 1], rtol=1e-5, atol=1e-6)
            assert decisions(alone, 1) == decisions(handle, 4)[number : number + 1]


def test_pages_are_no_more_than_samples(toy: nn.Module) -> None:
    """Nor does another guidance branch, or a run of fewer samples, keep more."""
    model = hicache_compile(toy, FBCache(threshold=0.5), backend="eager")
    pools = model._session.shared.pools
    for count in (4, 2):
        with model.trajectory(STEPS):
            for branch in ("cond", "uncond"):
                with model.cache_context(branch):
                    sampled(model, [0, 1, 2, 3][:count])
        assert pools.used == 2 * count
        assert pools.pages == 2 * 4
    assert model.report().recompiles == 0


def test_an_uncached_step_outside_of_a_run_leaves_nothing(toy: nn.Module) -> None:
    model = hicache_compile(toy, FBCache(threshold=0.5), backend="eager")
    with model.disabled():
        sampled(model, [0, 1], range(1))
    with model.trajectory(STEPS):
        sampled(model, [0, 1])
    assert list(model.report().history) == ["default", "default[1]"]
    assert decisions(model, 1)[0][0] == "F"


def test_a_step_that_is_observed_may_be_made_again(toy: nn.Module) -> None:
    model = hicache_compile(toy, FBCache(threshold=0.5), backend="eager")

    def twice(step: Any, call: Any, make: Any) -> Any:
        make()
        return make()

    with model.observed(twice), model.trajectory(STEPS):
        sampled(model, [0, 1])
    assert [len(letters) for letters in decisions(model, 2)] == [STEPS, STEPS]


def test_another_policy_is_asked_anew(toy: nn.Module, caplog: pytest.LogCaptureFixture) -> None:
    """A batch of one size that cannot be told apart says nothing of another."""
    model = hicache_compile(InParts(toy), FBCache(threshold=0.5), backend="eager")
    with caplog.at_level(logging.WARNING), model.trajectory(STEPS):
        sampled(model, [0, 1])
    assert "decide as one" in caplog.text
    with model.trajectory(STEPS):
        sampled(model, [0])
    model.policy = HiCache(interval=3)
    with model.trajectory(STEPS):
        sampled(model, [0, 1])
    assert model.report().decisions().count(".") > 0


def test_a_loop_of_ones_own_that_falls_back_is_one_run(toy: nn.Module) -> None:
    model = hicache_compile(Mixing(toy), FBCache(threshold=0.5), backend="eager")
    together = hicache_compile(Mixing(toy), FBCache(threshold=0.5), backend="eager", together=True)
    torch.testing.assert_close(sampled(model, [0, 1]), sampled(together, [0, 1]))
    assert model.report().history == together.report().history


def test_the_first_tensor_of_a_graph_may_have_no_samples(toy: nn.Module) -> None:
    class Positioned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = toy

        def forward(self, positions: Tensor, x: Tensor, time: Tensor) -> Tensor:
            shift = positions.sin().sum(1)
            made: Tensor = self.inner(x + shift[:, None], time)
            return made

    torch._dynamo.reset()
    options = {"policy": FBCache(threshold=0.5), "backend": "eager"}
    model: Any = torch.compile(Positioned(), backend="hicache", options=options, dynamic=True)
    handle = inspect(model)
    x = torch.randn(4, 5, 16)
    with handle.trajectory(3), torch.no_grad():
        for time in (1.0, 0.7, 0.4):
            assert model(torch.ones(5, 3), x, torch.full((4,), time)).shape == x.shape
    assert len(handle.report().history) == 4
