"""Which run, step and branch a call is of where nobody opens a trajectory: pipelines, schedulers, bare loops."""

from __future__ import annotations

import contextlib
import copy
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, FlowMatchEulerDiscreteScheduler
from torch import Tensor

from hicache_compile import FORA, CompiledDenoiser, HiCache, HiCacheError, hicache_compile, inspect
from tests.support.models import ToyDiT

STEPS = 9
DECISIONS = HiCache(interval=3).decisions(STEPS)


class Conditioned(ToyDiT):
    def forward(self, x: Tensor, t: Tensor, prompt: Tensor, scale: Tensor | None = None) -> Tensor:  # type: ignore[override]
        out = super().forward(x + prompt, t)
        return out if scale is None else out * scale


class Pipeline(DiffusionPipeline):  # type: ignore[misc]
    """Steps its scheduler, or copies of it, or none."""

    def __init__(self, transformer: Any, scheduler: Any = None) -> None:
        super().__init__()
        self.register_modules(transformer=transformer, scheduler=scheduler or FlowMatchEulerDiscreteScheduler())

    @torch.no_grad()
    def __call__(self, loop: Callable[..., Tensor], seed: int = 0) -> Tensor:
        self.scheduler.set_timesteps(STEPS)
        return loop(self, noise(seed))


class Outer(DiffusionPipeline):  # type: ignore[misc]
    """Holds another pipeline."""

    def __init__(self, transformer: Any, scheduler: Any) -> None:
        super().__init__()
        self.register_modules(transformer=transformer, scheduler=scheduler)
        self.inner = Pipeline(transformer, scheduler)

    def __call__(self, loop: Callable[..., Tensor]) -> Tensor:
        return self.inner(loop)


def noise(seed: int = 0) -> Tensor:
    return torch.randn(1, 6, 16, generator=torch.Generator().manual_seed(seed))


def steps_scheduler(pipe: Any, x: Tensor) -> Tensor:
    for t in pipe.scheduler.timesteps:
        x = pipe.scheduler.step(pipe.transformer(x, t[None] / 1000), t, x)[0]
    return x


def steps_a_copy(pipe: Any, x: Tensor) -> Tensor:
    scheduler = copy.deepcopy(pipe.scheduler)
    for t in scheduler.timesteps:
        x = scheduler.step(pipe.transformer(x, t[None] / 1000), t, x)[0]
    return x


def steps_by_itself(pipe: Any, x: Tensor) -> Tensor:
    for t in pipe.scheduler.timesteps:
        x = x - pipe.transformer(x, t[None] / 1000) / STEPS
    return x


@torch.no_grad()
def bare(model: Any, times: list[float], *prompts: Tensor, seed: int = 0) -> Tensor:
    x = noise(seed)
    for time in times:
        outs = [model(x, torch.tensor([time]), prompt) for prompt in prompts] or [model(x, torch.tensor([time]))]
        x = x - sum(outs) / STEPS / len(outs)
    return x


def down(start: float = 1.0, steps: int = STEPS) -> list[float]:
    return [start * (1 - step / steps) for step in range(steps)]


def cached(model: Any = None) -> CompiledDenoiser:
    return hicache_compile(model or ToyDiT(depth=2), HiCache(interval=3), backend="eager")


@pytest.fixture(autouse=True)
def warnings(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[], list[str]]]:
    with caplog.at_level(logging.WARNING, logger="hicache_compile"):
        yield lambda: caplog.messages


class TestPipelines:
    @pytest.mark.parametrize("loop", [steps_scheduler, steps_a_copy, steps_by_itself])
    @pytest.mark.parametrize("scheduler", [FlowMatchEulerDiscreteScheduler(), DDIMScheduler(), None])
    def test_its_runs_are_followed(self, loop: Any, scheduler: Any, warnings: Callable[[], list[str]]) -> None:
        pipe = hicache_compile(Pipeline(ToyDiT(depth=2), scheduler), HiCache(interval=3), backend="eager")
        for seed in (0, 1):
            pipe(loop, seed)
        assert pipe.transformer.report().history == {"default": [DECISIONS] * 2}
        assert not warnings()

    def test_a_pipeline_in_a_pipeline(self) -> None:
        pipe = hicache_compile(Outer(ToyDiT(depth=2), DDIMScheduler()), HiCache(interval=3), backend="eager")
        assert pipe.inner.transformer is pipe.transformer
        pipe(steps_scheduler)
        assert pipe.transformer.report().decisions() == DECISIONS

    @pytest.mark.parametrize("compiled_too", [True, False])
    @pytest.mark.parametrize("at", [(0,), (3, 4), (STEPS - 2,)])
    def test_a_preview_in_a_step_of_another_pipeline(
        self, at: tuple[int, ...], compiled_too: bool, warnings: Callable[[], list[str]]
    ) -> None:
        """Each is what it is alone, also after a preview that fails."""
        alone = hicache_compile(Pipeline(ToyDiT(depth=2)), HiCache(interval=3), backend="eager")
        expected = [alone(steps_scheduler, seed) for seed in (0, 5)]
        pipe = hicache_compile(Pipeline(ToyDiT(depth=2)), HiCache(interval=3), backend="eager")
        other = Pipeline(pipe.transformer)
        preview = hicache_compile(other, HiCache(interval=3), backend="eager") if compiled_too else other
        previews: list[Tensor] = []

        def fails(pipe: Any, x: Tensor) -> Tensor:
            for t in pipe.scheduler.timesteps[:4]:
                x = pipe.scheduler.step(pipe.transformer(x, t[None] / 1000), t, x)[0]
            raise ValueError("a preview")

        def loop(pipe: Any, x: Tensor) -> Tensor:
            for step, t in enumerate(pipe.scheduler.timesteps):
                x = pipe.scheduler.step(pipe.transformer(x, t[None] / 1000), t, x)[0]
                if step in at:
                    previews.append(preview(steps_scheduler, 5))
                    with contextlib.suppress(ValueError):
                        preview(fails, 6)
            return x

        for _ in range(2):
            assert torch.equal(pipe(loop, 0), expected[0])
        assert all(torch.equal(made, expected[1]) for made in previews)
        assert len(previews) == 2 * len(at)
        assert pipe.transformer.report().history == {"default": [DECISIONS] * 2}
        assert pipe.transformer.report().state_bytes == alone.transformer.report().state_bytes
        assert not warnings()

    def test_what_is_called_after_a_pipeline_gave_up_is_another_run(self) -> None:
        """The scheduler still shows the run it was set to."""
        model = ToyDiT(depth=2)
        pipe = hicache_compile(Pipeline(model), HiCache(interval=3), backend="eager")

        def fails(pipe: Any, x: Tensor) -> Tensor:
            for t in pipe.scheduler.timesteps[:5]:
                x = pipe.scheduler.step(pipe.transformer(x, t[None] / 1000), t, x)[0]
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            pipe(fails)
        times = down(0.4)
        assert torch.equal(bare(pipe.transformer, times, seed=3), bare(cached(model), times, seed=3))

    @pytest.mark.parametrize("way", ["copied", "by hand", "torch.compile"])
    def test_one_that_nobody_compiled_is_followed_too(self, way: str, warnings: Callable[[], list[str]]) -> None:
        """A copy, one that was given a compiled denoiser: a run that ended early is no part of the next."""

        def fails(pipe: Any, x: Tensor) -> Tensor:
            for t in pipe.scheduler.timesteps[:4]:
                x = pipe.scheduler.step(pipe.transformer(x, t[None] / 1000), t, x)[0]
            raise KeyboardInterrupt

        def from_the_middle(pipe: Any, x: Tensor) -> Tensor:
            for t in pipe.scheduler.timesteps[4:]:
                x = pipe.scheduler.step(pipe.transformer(x, t[None] / 1000), t, x)[0]
            return x

        policy = HiCache(interval=3, cooldown=1)  # asks for the length of a run
        alone = hicache_compile(Pipeline(ToyDiT(depth=2)), policy, backend="eager")
        expected = alone(from_the_middle)
        pipe = Pipeline(ToyDiT(depth=2))
        if way == "copied":
            pipe = copy.deepcopy(hicache_compile(pipe, policy, backend="eager"))
        elif way == "by hand":
            pipe.transformer = hicache_compile(pipe.transformer, policy, backend="eager")
        else:
            options = {"policy": policy, "backend": "eager"}
            pipe.transformer = torch.compile(pipe.transformer, backend="hicache", options=options)
        with pytest.raises(KeyboardInterrupt):
            pipe(fails)
        assert torch.equal(pipe(from_the_middle), expected)
        pipe(steps_scheduler)
        history = inspect(pipe.transformer).report().history["default"]
        assert history == ["FFF.", alone.transformer.report().decisions(), policy.decisions(STEPS)]
        assert not warnings()

    @pytest.mark.parametrize("after", [0, 1, 3])
    def test_a_prompt_that_changes_in_mid_run_begins_a_branch(self, after: int) -> None:
        prompts = noise(1), noise(2)

        def loop(pipe: Any, x: Tensor) -> Tensor:
            for step, t in enumerate(pipe.scheduler.timesteps):
                prompt = prompts[step > after]
                x = pipe.scheduler.step(pipe.transformer(x, t[None] / 1000, prompt), t, x)[0]
            return x

        policy = FORA(interval=4)
        pipe = hicache_compile(Pipeline(Conditioned(depth=2)), policy, backend="eager")
        pipe(loop)
        known = max(after, 1)  # that it changed after the first step, the third shows
        decisions = policy.decisions(STEPS)
        first, second = pipe.transformer.report().history.values()
        assert (first, second) == ([decisions[: known + 1]], ["F" + decisions[known + 2 :]])

    def test_a_prompt_that_changes_in_every_step_is_one_branch(self) -> None:
        def loop(pipe: Any, x: Tensor) -> Tensor:
            for step, t in enumerate(pipe.scheduler.timesteps):
                x = pipe.scheduler.step(pipe.transformer(x, t[None] / 1000, noise(step)), t, x)[0]
            return x

        pipe = hicache_compile(Pipeline(Conditioned(depth=2)), HiCache(interval=3), backend="eager")
        pipe(loop)
        assert pipe.transformer.report().history == {"default": [DECISIONS]}

    def test_branches_that_others_took_the_place_of_are_freed(self) -> None:
        def loop(pipe: Any, x: Tensor) -> Tensor:
            pipe.scheduler.set_timesteps(6 * STEPS)
            for step, t in enumerate(pipe.scheduler.timesteps):
                if step % STEPS == 0:
                    edited = noise(step)
                for prompt in (edited, *([kept] if step < 4 or step > 2 * STEPS else [])):  # guidance off for a while
                    out = pipe.transformer(x, t[None] / 1000, prompt)
                x = pipe.scheduler.step(out, t, x)[0]
                most.append(pipe.transformer.report().state_bytes)
            return x

        most: list[int] = []
        kept = noise(1)
        pipe = hicache_compile(Pipeline(Conditioned(depth=2)), HiCache(interval=3), backend="eager")
        pipe(loop)
        assert max(most) <= 3 * cached_bytes()  # that which is edited, its successor, and the other branch
        assert pipe.transformer.report().state_bytes == 2 * cached_bytes()

    def test_a_compiled_denoiser_is_said_to_be_one(self) -> None:
        pipe = Pipeline(torch.compile(ToyDiT(depth=2), backend="eager"))
        with pytest.raises(HiCacheError, match=r"its transformer is compiled by torch.compile already"):
            hicache_compile(pipe, HiCache(interval=3), backend="eager")


class TestLoopsOfOnesOwn:
    def test_branches_are_told_by_their_conditioning(self, warnings: Callable[[], list[str]]) -> None:
        compiled = cached(Conditioned(depth=2))
        for _ in range(2):
            bare(compiled, down(), noise(1), noise(2))
        history = compiled.report().history
        assert set(history) == {"default", "default.1"}
        assert history["default.1"] == [DECISIONS] * 2
        assert not warnings()

    def test_a_report_is_of_all_branches_of_a_run(self) -> None:
        model = cached(Conditioned())
        for _ in range(2):
            bare(model, down(), noise(7), noise(8))
        report = model.report()
        assert report.computed + report.forecast == 2 * STEPS
        bare(model, down(), noise(9))
        report = model.report()
        assert report.computed + report.forecast == STEPS

    @pytest.mark.parametrize("fixed", [dataclass, dataclass(slots=True)])
    def test_what_an_object_holds_tells_branches(
        self, fixed: Callable[[type], type], warnings: Callable[[], list[str]]
    ) -> None:
        class Prompt:
            embeds: Tensor

        prompt = fixed(Prompt)

        class Opening(Conditioned):
            def forward(self, x: Tensor, t: Tensor, prompt: Any) -> Tensor:  # type: ignore[override]
                return super().forward(x, t, prompt.embeds)

        model = cached(Opening())
        x, embeds = noise(), (noise(7), noise(8))
        with torch.no_grad():
            for time in down():
                for each in embeds:
                    x = x - model(x, torch.tensor([time]), prompt(each)) / STEPS  # made anew in every call
        assert [runs[-1] for runs in model.report().history.values()] == [DECISIONS] * 2
        assert not warnings()

    def test_times_that_go_back_and_forth(self, warnings: Callable[[], list[str]]) -> None:
        model = cached()
        churned = [time * factor for time in down() for factor in (1.0, 1.2)]
        bare(model, churned[1:])
        assert "." not in model.report().decisions()
        assert sum("keep going back after a call or two" in text for text in warnings()) == 1

    @pytest.mark.parametrize("prompt", [1, 2], ids=["same prompt", "another prompt"])
    @pytest.mark.parametrize("given_up_after", [1, 4])
    def test_a_run_that_starts_lower_is_another_one(self, prompt: int, given_up_after: int) -> None:
        """Where it is told by the sample alone, that is said."""
        model = Conditioned(depth=2)
        compiled = cached(model)
        bare(compiled, down()[:given_up_after], noise(1))
        times = down(down()[given_up_after])
        alone = bare(cached(model), times, noise(prompt), seed=5)
        assert torch.equal(bare(compiled, times, noise(prompt), seed=5), alone)

    def test_prompts_made_anew_in_every_step_are_compared_by_value(self) -> None:
        compiled = cached(Conditioned(depth=2))
        x = noise()
        with torch.no_grad():
            for time in down():
                x = x - compiled(x, torch.tensor([time]), noise(1)) / STEPS
        assert compiled.report().history == {"default": [DECISIONS]}

    def test_a_prompt_written_over_is_another_one(self) -> None:
        model, prompt = Conditioned(depth=2), noise(1)
        compiled = cached(model)
        bare(compiled, down()[:4], prompt)
        prompt.copy_(noise(2))
        times = down(0.5)
        assert torch.equal(bare(compiled, times, prompt, seed=0), bare(cached(model), times, prompt, seed=0))

    def test_requests_in_turn(self) -> None:
        """The second begins while the first is under way: its anchors are its own."""
        compiled = cached(Conditioned(depth=2))
        expected = [bare(cached(Conditioned(depth=2)), down(), noise(seed + 1), seed=seed) for seed in (0, 1)]
        xs, prompts = [noise(0), noise(1)], [noise(1), noise(2)]
        with torch.no_grad():
            for step in range(STEPS + 2):
                for request, late in enumerate((0, 2)):
                    if 0 <= step - late < STEPS:
                        time = torch.tensor([down()[step - late]])
                        xs[request] = xs[request] - compiled(xs[request], time, prompts[request]) / STEPS
        for x, alone in zip(xs, expected, strict=True):
            assert (x - alone).norm() / alone.norm() < 1e-3
        assert compiled.report().history.keys() == {"default", "default.1"}

    def test_names_and_anchors_do_not_pile_up(self) -> None:
        compiled = cached(Conditioned(depth=2))
        for seed in range(12):
            bare(compiled, down(1 - seed / 20)[:4], noise(seed), seed=seed)
        kept = compiled.report().state_bytes
        assert len(compiled.report().history) <= 4
        assert kept <= 4 * cached_bytes()

    def test_a_residual_that_changes_in_every_step_is_no_branch(self) -> None:
        """One step is computed anew: until the second call it may be another run."""
        compiled = cached(Conditioned(depth=2))
        x, prompt = noise(), noise(1)
        with torch.no_grad():
            for step, time in enumerate(down()):
                x = x - compiled(x, torch.tensor([time]), prompt, torch.full((1, 1, 16), 1 + step / 9)) / STEPS
        assert "".join(compiled.report().history["default"]) == "F" + HiCache(interval=3).decisions(STEPS - 1)


def cached_bytes() -> int:
    """Bytes of the anchors of one run."""
    compiled = cached(Conditioned(depth=2))
    bare(compiled, down(), noise(1))
    return compiled.report().state_bytes


class TestTimeThatRunsUpwards:
    """In a loop of one's own, whose runs nobody announces."""

    @staticmethod
    def sampled(model: Any, x: Tensor, times: list[float]) -> Tensor:
        with torch.no_grad():
            for time in times:
                x = x - 0.1 * model(x, torch.full((1,), time))
        return x

    def test_the_first_run_is_as_those_after_it(self) -> None:
        denoiser = hicache_compile(ToyDiT(), FORA(interval=3, scope="stack"), backend="eager")
        up = [step / 10 for step in range(10)]
        made = [self.sampled(denoiser, noise(0), up) for _ in range(3)]
        assert torch.equal(made[0], made[1])
        assert torch.equal(made[0], made[2])
        assert denoiser.report().history["default"] == ["FF.F..F..F"] * 3  # the second step may be a lone preview's end

    def test_sampling_follows_an_inversion(self) -> None:
        denoiser = hicache_compile(ToyDiT(), FORA(interval=3, scope="stack"), backend="eager")
        down = [1 - step / 10 for step in range(10)]
        self.sampled(denoiser, noise(0), [step / 10 for step in range(10)])
        alone = hicache_compile(ToyDiT(), FORA(interval=3, scope="stack"), backend="eager")
        for seed in (1, 2):
            assert torch.equal(self.sampled(denoiser, noise(seed), down), self.sampled(alone, noise(seed), down))
        assert denoiser.report().history["default"][-2:] == ["F..F..F..F"] * 2
