"""Random walks: calls, contexts, policies, suspended runs, resets, threads, modes, shapes, strides and failures in any
order give what a cache written out by hand gives. ``HICACHE_WALKS`` sets how many (by default 20, always the same)."""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from hicache_compile import FORA, HiCache, HiCacheError, Interval, Newton, Policy, hicache_compile
from hicache_compile.runtime.replay.dispatch_modes import set_aside
from tests.support.models import ToyDiT

POLICIES = [
    FORA(interval=3, scope="stack"),
    HiCache(interval=2, order=1, scope="stack"),
    HiCache(interval=4, order=2, warmup=2, scope="stack"),
    Policy(Interval(3, warmup=1), Newton(1), scope="stack"),
]
MODES: dict[str, Any] = {
    "plain": contextlib.nullcontext,
    "inference": torch.inference_mode,
    "counted": lambda: FlopCounterMode(display=False),
}


class Scaled(ToyDiT):
    """A toy with an attribute that callers set between two steps."""

    scale = 1.0

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return super().forward(x, t) * self.scale


class WrittenOut:
    """One run in one context, with a cache of the residual of the blocks in Python."""

    def __init__(self, model: Scaled, policy: Policy, num_steps: int) -> None:
        self.model, self.policy, self.num_steps = model, policy, num_steps
        self.step, self.letters = 0, ""
        self.forget()

    def forget(self) -> None:
        self.computed: list[int] = []
        self.residuals: list[Tensor] = []
        self.shape: tuple[int, ...] | None = None

    def __call__(self, x: Tensor, t: Tensor, cached: bool = True) -> Tensor:
        model, step = self.model, self.step
        if x.shape != self.shape:
            self.forget()
        self.shape = tuple(x.shape)
        c, stream = model.time(t[:, None]), model.embed(x)
        computes = not cached or not self.computed or self.policy.schedule.computes(step, self.num_steps)
        if computes:
            out = stream
            for layer in model.layers:
                out = layer(out, c)
            if cached:
                self.computed.append(step)
                self.residuals.append(out - stream)
            else:
                self.forget()  # a step without a cache leaves no anchors
        else:
            weights = self.policy.weights(self.computed, step, self.policy.depth)
            out = stream + sum(w * r for w, r in zip(weights, reversed(self.residuals), strict=False))
        self.step += 1
        self.letters += "F" if computes else "."
        return model.head(out) * model.scale


def noise(seed: int, batch: int) -> Tensor:
    return torch.randn(batch, 5, 16, generator=torch.Generator().manual_seed(seed))


class Walk(RuleBasedStateMachine):
    """A denoiser, what was done to it so far, and what should have come of it."""

    def __init__(self) -> None:
        super().__init__()
        torch._dynamo.reset()
        self.folder = Path(tempfile.mkdtemp())
        self.stack = contextlib.ExitStack()
        self.runs: dict[str, WrittenOut] = {}
        self.num_steps = 0  # of the open trajectory
        self.resumed: set[str] = set()  # contexts that made no step since

    @initialize(policy=st.sampled_from(POLICIES))
    def made(self, policy: Policy) -> None:
        self.model = Scaled(2)
        self.compiled = hicache_compile(self.model, policy, backend="eager")
        self.policy = policy
        self.begin(8)

    @property
    def is_open(self) -> bool:
        return self.num_steps > 0

    @precondition(lambda self: not self.is_open)
    @rule(num_steps=st.integers(5, 12))
    def begin(self, num_steps: int) -> None:
        self.stack.enter_context(self.compiled.trajectory(num_steps))
        self.num_steps, self.running, self.runs = num_steps, self.policy, {}

    @precondition(lambda self: self.is_open)
    @rule()
    def end(self) -> None:
        self.stack.close()
        for name, run in self.runs.items():
            assert self.compiled.report().decisions(name) == run.letters
        self.num_steps, self.runs, self.resumed = 0, {}, set()

    @precondition(lambda self: self.is_open)
    @rule(name=st.sampled_from(["a", "b"]), seed=st.integers(0, 5), count=st.integers(1, 5))
    def calls(self, name: str, seed: int, count: int) -> None:
        for number in range(count):
            self.step(name, noise(seed + number, 1))

    @precondition(lambda self: self.is_open)
    @rule(name=st.sampled_from(["a", "b"]), mode=st.sampled_from(list(MODES)), turned=st.booleans())
    def a_call_in_a_mode(self, name: str, mode: str, turned: bool) -> None:
        x = noise(0, 1)
        with MODES[mode]():
            self.step(name, x.transpose(1, 2).contiguous().transpose(1, 2) if turned else x)

    @precondition(lambda self: self.is_open)
    @rule(name=st.sampled_from(["a", "b"]), cached=st.booleans())
    def a_call_of_its_own_kind(self, name: str, cached: bool) -> None:
        """Of another batch, or without a cache."""
        with contextlib.nullcontext() if cached else self.compiled.disabled():
            self.step(name, noise(0, 2 if cached else 1), cached)

    def step(self, name: str, x: Tensor, cached: bool = True) -> None:
        run = self.runs.setdefault(name, WrittenOut(self.model, self.running, self.num_steps))
        if run.step == self.num_steps:
            return
        if name in self.resumed and run.shape not in (None, x.shape):
            return  # refused: the anchors of the file are of another batch
        self.resumed.discard(name)
        t = torch.full((len(x),), 1 - run.step / self.num_steps)
        with torch.no_grad(), self.compiled.cache_context(name):
            got = self.compiled(x, t)
            with set_aside():
                torch.testing.assert_close(got, run(x, t, cached), rtol=1e-4, atol=1e-5)

    @rule(policy=st.sampled_from(POLICIES))
    def another_policy(self, policy: Policy) -> None:
        self.compiled.policy = self.policy = policy

    @rule(scale=st.sampled_from([0.5, 1.0, 2.0]))
    def set_an_attribute(self, scale: float) -> None:
        self.model.scale = scale

    @rule()
    def change_a_weight(self) -> None:
        with torch.no_grad():
            self.model.layers[0].proj.weight.mul_(0.9)
        for run in self.runs.values():
            run.forget()

    @precondition(lambda self: not self.is_open)
    @rule()
    def reset(self) -> None:
        self.compiled.reset()

    @rule()
    def refused(self) -> None:
        for wrong in (
            lambda: setattr(self.compiled, "policy", {"preset": "none"}),
            lambda: self.compiled.trajectory(0).__enter__(),
            lambda: self.compiled.resume(self.folder / "none").__enter__(),
        ):
            with pytest.raises(HiCacheError):
                wrong()

    @precondition(lambda self: self.is_open)
    @rule(name=st.sampled_from(["a", "b"]))
    def a_step_that_fails(self, name: str) -> None:
        run = self.runs.setdefault(name, WrittenOut(self.model, self.running, self.num_steps))
        if run.step == self.num_steps:
            return
        with self.compiled.cache_context(name), pytest.raises(Exception):  # noqa: B017, PT011  # torch's own
            self.compiled(torch.zeros(1, 5, 3), torch.ones(1))
        run.forget()

    @precondition(lambda self: self.is_open and self.runs)
    @rule()
    def go_on_elsewhere(self) -> None:
        """Suspend, and resume in a denoiser that has no past."""
        self.resumed = {name for name, run in self.runs.items() if run.step < self.num_steps}
        self.compiled.suspend(self.folder / "run")
        self.stack.close()
        self.compiled = hicache_compile(self.model, self.policy, backend="eager")
        self.stack.enter_context(self.compiled.resume(self.folder / "run"))

    @rule(seed=st.integers(0, 5), num_steps=st.integers(2, 5))
    def in_another_thread(self, seed: int, num_steps: int) -> None:
        run, got, want = WrittenOut(self.model, self.policy, num_steps), [], []

        def work() -> None:
            with torch.no_grad(), self.compiled.trajectory(num_steps):
                for step in range(num_steps):
                    x, t = noise(seed + step, 1), torch.full((1,), 1 - step / num_steps)
                    want.append(run(x, t))
                    got.append(self.compiled(x, t))

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        torch.testing.assert_close(torch.stack(got), torch.stack(want), rtol=1e-4, atol=1e-5)

    @invariant()
    def nothing_is_under_way(self) -> None:
        if hasattr(self, "compiled"):
            assert self.compiled._session.step is None

    def teardown(self) -> None:
        self.stack.close()


Walk.TestCase.settings = settings(
    max_examples=int(os.environ.get("HICACHE_WALKS", "20")),
    stateful_step_count=25,
    deadline=None,
    derandomize="HICACHE_WALKS" not in os.environ,
    phases=[__import__("hypothesis").Phase.generate],
    suppress_health_check=list(HealthCheck),
)
TestWalks = Walk.TestCase
