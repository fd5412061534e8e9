"""What a denoiser keeps, and for how long: nothing of it outlives it, and what ran before does not show."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hicache_compile import CompiledDenoiser, HiCache, HiCacheError, Policy, TeaCache, hicache_compile
from tests.support.models import ToyDiT

STEPS = 8


class Broken(ToyDiT):
    """The graph breaks before its last layer."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        x = super().forward(x, t)
        torch._dynamo.graph_break()
        return x * 1.0


class Counting(ToyDiT):
    """Writes to a buffer of its own in every call."""

    def __init__(self, depth: int = 2) -> None:
        super().__init__(depth)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x, t)


class Assigning(ToyDiT):
    """Gives buffers of its own a new tensor in every call."""

    def __init__(self, depth: int = 2) -> None:
        super().__init__(depth)
        self.register_buffer("calls", torch.zeros(()))
        self.statistics = nn.Module()
        self.statistics.register_buffer("mean", torch.zeros(()))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        self.calls = self.calls + 1
        self.statistics.mean = 0.9 * self.statistics.mean + 0.1 * x.mean()
        return super().forward(x, t)


class Scaled(ToyDiT):
    """What it adds has a scale, a plain attribute."""

    scale = 1.0

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return x + self.scale * (super().forward(x, t) - x)


def compiled(model: nn.Module, policy: Any = None, **options: Any) -> CompiledDenoiser:
    return hicache_compile(model, policy or HiCache(interval=3), backend="eager", **options)


@torch.no_grad()
def steps(model: Any, x: Tensor, places: range, change: Callable[[int], None] = lambda step: None) -> Tensor:
    for step in places:
        change(step)
        x = x - model(x, torch.full((len(x),), 1 - step / STEPS)) / STEPS
    return x


def sample(model: CompiledDenoiser, x: Tensor, change: Callable[[int], None] = lambda step: None) -> Tensor:
    with model.trajectory(STEPS):
        return steps(model, x, range(STEPS), change)


def noise(seed: int = 0) -> Tensor:
    return torch.randn(1, 6, 16, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", [ToyDiT, Broken])
@pytest.mark.parametrize("route", ["hicache_compile", "torch.compile"])
def test_what_was_deleted_is_gone(kind: type[ToyDiT], route: str) -> None:
    def used() -> list[weakref.ref[Tensor]]:
        model = kind(depth=2)
        if route == "hicache_compile":
            sample(compiled(model), noise())
        else:
            options = {"policy": HiCache(interval=3), "backend": "eager"}
            steps(torch.compile(model, backend="hicache", options=options), noise(), range(STEPS))
        return [weakref.ref(weight) for weight in model.parameters()]

    weights = [weight for _ in range(3) for weight in used()]
    gc.collect()
    assert sum(weight() is not None for weight in weights) == 0


def test_idle_threads_keep_nothing() -> None:
    denoiser, together = compiled(ToyDiT(depth=2)), threading.Barrier(4)
    sample(denoiser, noise())
    alone = denoiser.report().state_bytes
    with ThreadPoolExecutor(4) as pool:

        def request(seed: int) -> None:
            together.wait()
            sample(denoiser, noise(seed))

        list(pool.map(request, range(4)))
        assert denoiser.report().state_bytes <= 2 * alone
        denoiser.reset()
        assert denoiser.report().state_bytes == 0


def test_other_strides_and_symbolic_sizes_go_on(tmp_path: Path) -> None:
    denoiser = compiled(ToyDiT(depth=2), HiCache(interval=5))
    with denoiser.trajectory(STEPS), torch.no_grad():
        for step in range(STEPS):
            x = noise(step).expand(2, 6, 16).contiguous()
            x = x.transpose(1, 2).contiguous().transpose(1, 2) if step in (4, 6) else x
            denoiser(x, torch.full((2,), 1 - step / STEPS))
    assert denoiser.report().decisions() == HiCache(interval=5).decisions(STEPS)
    with denoiser.trajectory(STEPS):  # batch 1 now: sizes are symbolic here, and not in a fresh denoiser
        x = steps(denoiser, noise()[:, :5], range(4))
        denoiser.suspend(tmp_path / "run")
        expected = steps(denoiser, x, range(4, STEPS))
    torch._dynamo.reset()
    fresh = compiled(ToyDiT(depth=2), HiCache(interval=5))
    with fresh.resume(tmp_path / "run"):
        assert torch.equal(steps(fresh, x, range(4, STEPS)), expected)


def test_weights_that_change_before_a_run_is_suspended_are_seen_after_it(tmp_path: Path) -> None:
    """Its anchors are of the weights before: the next step is computed, there as here."""
    outputs, letters = [], []
    for suspended in (False, True):
        model = ToyDiT(2)
        compiled = hicache_compile(model, HiCache(interval=4, warmup=1), backend="eager")
        with compiled.trajectory(STEPS):
            x = steps(compiled, torch.ones(1, 5, 16), range(2))
            with torch.no_grad():
                model.layers[0].proj.weight.mul_(0.5)
            if not suspended:
                outputs.append(steps(compiled, x, range(2, STEPS)))
                letters.append(compiled.report().decisions())
                continue
            compiled.suspend(tmp_path / "run")
        other = hicache_compile(model, HiCache(), backend="eager")
        with other.resume(tmp_path / "run"):
            outputs.append(steps(other, x, range(2, STEPS)))
        letters.append(other.report().decisions())
    assert letters[0] == letters[1]
    assert letters[0][1:3] == ".F"
    assert torch.equal(*outputs)


@pytest.mark.parametrize("then", ["resumed elsewhere", "other strides"])
def test_a_policy_with_more_anchors_before_does_not_show(tmp_path: Path, then: str) -> None:
    def new(policy: Policy) -> CompiledDenoiser:
        return hicache_compile(ToyDiT(2), policy, backend="eager", dynamic=False)

    few, x = HiCache(interval=4, order=1, warmup=2), torch.ones(2, 5, 16)
    alone = new(few)
    with alone.trajectory(STEPS):
        want = steps(alone, x, range(STEPS))
    compiled = new(HiCache(interval=4, order=3))
    with compiled.trajectory(STEPS):
        steps(compiled, x, range(STEPS))
    compiled.policy = few
    with compiled.trajectory(STEPS):
        x = steps(compiled, x, range(3))
        if then == "other strides":
            got = steps(compiled, x.transpose(1, 2).contiguous().transpose(1, 2), range(3, STEPS))
        else:
            compiled.suspend(tmp_path / "run")
    if then == "resumed elsewhere":
        compiled = new(few)
        with compiled.resume(tmp_path / "run"):
            got = steps(compiled, x, range(3, STEPS))
    assert compiled.report().decisions() == alone.report().decisions()
    torch.testing.assert_close(got, want)


def test_a_refused_resume_leaves_nothing(tmp_path: Path) -> None:
    first, second = compiled(ToyDiT(depth=2)), compiled(ToyDiT(depth=2))
    with first.trajectory(STEPS):
        steps(first, noise(), range(4))
        first.suspend(tmp_path / "run")
    before = sample(second, noise(1))
    with pytest.raises(HiCacheError, match="of another graph"), second.resume(tmp_path / "run"):
        steps(second, noise().repeat(2, 1, 1), range(4, STEPS))
    assert torch.equal(sample(second, noise(1)), before)


def test_every_call_of_a_run_of_unknown_length_is_told_the_same() -> None:
    denoiser = compiled(ToyDiT(depth=2), TeaCache(0.1, coefficients=(1.0, 0.0)))
    for step in range(4):
        with pytest.raises(HiCacheError, match="length of the trajectory is not known"):
            steps(denoiser, noise(), range(step, step + 1))


@pytest.mark.parametrize("kind", [Counting, Assigning])
def test_what_the_denoiser_writes_is_no_new_weight(kind: type[nn.Module]) -> None:
    denoiser = compiled(kind())
    sample(denoiser, noise())
    assert denoiser.report().decisions() == HiCache(interval=3).decisions(STEPS)
    assert denoiser.calls == STEPS


def test_a_buffer_that_others_assign_is_a_new_weight() -> None:
    class Biased(Assigning):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("bias", torch.zeros(()))

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return super().forward(x + self.bias, t)

    model = Biased()
    denoiser = compiled(model)

    def change(step: int) -> None:
        if step == 4:
            model.bias = torch.ones(())

    sample(denoiser, noise(), change)
    assert denoiser.report().decisions()[4] == "F"


@pytest.mark.parametrize("interval", [1, 3])
def test_an_attribute_set_between_two_steps_is_seen(interval: int) -> None:
    def run(model: Any, scaled: Scaled, sampled: Callable[..., Tensor]) -> Tensor:
        def change(step: int) -> None:
            scaled.scale = 0.2 if step >= 4 else 1.0

        return sampled(model, noise(), change)

    plain, model = Scaled(depth=2), Scaled(depth=2)
    expected = run(plain, plain, lambda model, x, change: steps(model, x, range(STEPS), change))
    denoiser = compiled(model, HiCache(interval=interval))
    got = run(denoiser, model, sample)
    assert denoiser.report().decisions() == HiCache(interval=interval).decisions(STEPS)
    assert torch.equal(got, expected) if interval == 1 else (got - expected).norm() < 0.05 * expected.norm()


def test_many_sizes_and_many_denoisers_of_a_class_are_cached() -> None:
    denoiser = compiled(ToyDiT(depth=1), dynamic=False)
    for tokens in range(4, 13):
        sample(denoiser, torch.randn(1, tokens, 16))
        assert "." in denoiser.report().decisions()
    broken = [compiled(Broken(depth=1), dynamic=False) for _ in range(9)]
    for one in broken:
        sample(one, noise())
        assert "." in one.report().decisions()
