"""Where a trajectory starts and ends, what belongs to it, and what happens when it is disturbed."""

from __future__ import annotations

import logging
import threading

import pytest
import torch

from hicache_compile import (
    CompiledDenoiser,
    HiCache,
    HiCacheError,
    Interval,
    Policy,
    Reuse,
    StepMask,
    TaylorSeer,
    hicache_compile,
)
from tests.support.models import ToyDiT

STEPS = 9


@pytest.fixture
def compiled() -> CompiledDenoiser:
    return hicache_compile(ToyDiT(depth=2), HiCache(interval=3, order=1, warmup=2), backend="eager")


def noise(seed: int = 0, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 5, 16, generator=torch.Generator().manual_seed(seed))


def times(batch: int = 2, steps: int = STEPS) -> list[torch.Tensor]:
    return [torch.full((batch,), 1 - step / steps) for step in range(steps)]


@torch.no_grad()
def run(model: torch.nn.Module, x: torch.Tensor, steps: int = STEPS) -> torch.Tensor:
    for time in times(len(x), steps):
        x = x - model(x, time) / steps
    return x


def alone(x: torch.Tensor, policy: Policy | None = None, steps: int = STEPS) -> torch.Tensor:
    """The trajectory from ``x`` with a denoiser of its own."""
    fresh = hicache_compile(ToyDiT(depth=2), policy or HiCache(interval=3, order=1, warmup=2), backend="eager")
    with fresh.trajectory(steps):
        return run(fresh, x, steps)


def test_runs_do_not_see_each_other(compiled: CompiledDenoiser) -> None:
    for seed in (1, 2):
        with compiled.trajectory(STEPS):
            assert torch.equal(run(compiled, noise(seed)), alone(noise(seed)))
    assert compiled.report().decisions() == "FF..F..F."
    assert compiled.report().decisions(trajectory=-2) == "FF..F..F."


@torch.no_grad()
def test_interleaved_contexts_equal_separate_runs(compiled: CompiledDenoiser) -> None:
    states = {"cond": noise(1), "uncond": noise(2)}
    with compiled.trajectory(STEPS):
        for time in times():
            for name, x in states.items():
                with compiled.cache_context(name):
                    states[name] = x - compiled(x, time) / STEPS
    assert torch.equal(states["cond"], alone(noise(1)))
    assert torch.equal(states["uncond"], alone(noise(2)))
    report = compiled.report()
    assert report.decisions("cond") == report.decisions("uncond") == "FF..F..F."
    assert (report.computed, report.forecast) == (8, 10)


def test_threads_do_not_share_anchors(compiled: CompiledDenoiser) -> None:
    results: dict[int, torch.Tensor] = {}

    def work(seed: int) -> None:
        with compiled.trajectory(STEPS):
            results[seed] = run(compiled, noise(seed))

    with compiled.trajectory(STEPS):
        run(compiled, noise(0))  # captures, before there is a second thread
    threads = [threading.Thread(target=work, args=(seed,)) for seed in (1, 2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed in (1, 2, 3):
        assert torch.equal(results[seed], alone(noise(seed)))


def test_an_exception_in_the_middle_leaves_the_next_run_clean(compiled: CompiledDenoiser) -> None:
    def interrupted() -> None:
        with compiled.trajectory(STEPS):
            run(compiled, noise(5), 4)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    with compiled.trajectory(STEPS):
        assert torch.equal(run(compiled, noise(1)), alone(noise(1)))


def test_a_failing_step_is_not_counted_and_starts_over(compiled: CompiledDenoiser) -> None:
    with compiled.trajectory(STEPS), torch.no_grad():
        for time in times()[:4]:
            compiled(noise(1), time)
        with pytest.raises(Exception, match=r"shape|size|match"):
            compiled(torch.zeros(2, 5, 7), times()[4])
        compiled(noise(1), times()[4])
    assert compiled.report().decisions() == "FF..F"


def test_infinities_of_one_run_do_not_reach_the_next() -> None:
    """The ring is deeper than the anchors of the first forecast: rows without one must hold nothing."""
    policy = HiCache(interval=3, order=3, warmup=2)
    compiled = hicache_compile(ToyDiT(depth=2), policy, backend="eager")
    with compiled.trajectory(STEPS):
        run(compiled, torch.full((2, 5, 16), float("inf")))
    with compiled.trajectory(STEPS):
        assert torch.equal(run(compiled, noise(1)), alone(noise(1), policy))


def test_changed_weights_start_over() -> None:
    model = ToyDiT(depth=2)
    compiled = hicache_compile(model, Policy(StepMask("100000000"), Reuse()), backend="eager")
    with compiled.trajectory(STEPS), torch.no_grad():
        for index, time in enumerate(times()):
            if index == 3:
                model.layers[0].proj.weight.mul_(2)
            if index == 6:
                model.layers[0].proj.weight = torch.nn.Parameter(torch.zeros(16, 16))
            compiled(noise(1), time)
    assert compiled.report().decisions() == "F..F..F.."


def test_another_shape_in_the_middle_starts_over() -> None:
    compiled = hicache_compile(ToyDiT(depth=2), Policy(StepMask("100000000"), Reuse()), backend="eager", dynamic=False)
    with compiled.trajectory(STEPS), torch.no_grad():
        for index in range(STEPS):
            batch = 3 if 3 <= index < 6 else 2
            compiled(noise(1, batch), torch.full((batch,), 1 - index / STEPS))
    assert compiled.report().decisions() == "F..F..F.."


def test_a_new_policy_takes_effect_at_the_next_trajectory(compiled: CompiledDenoiser) -> None:
    with compiled.trajectory(STEPS):
        run(compiled, noise(1), 2)
        compiled.policy = TaylorSeer(interval=2, warmup=1)
        run(compiled, noise(1), 2)
    assert compiled.report().decisions() == "FF.."
    with compiled.trajectory(STEPS):
        result = run(compiled, noise(1))
    assert compiled.report().decisions() == "F.F.F.F.F"
    assert torch.equal(result, alone(noise(1), TaylorSeer(interval=2, warmup=1)))


def test_a_deeper_policy_in_between_changes_nothing(compiled: CompiledDenoiser) -> None:
    """Rings grow for it; the first policy, whose plan is known already, then runs on the deeper rings."""
    policy, deeper = compiled.policy, HiCache(interval=3, order=3, warmup=4)
    for each in (policy, deeper, policy):
        compiled.policy = each
        with compiled.trajectory(STEPS):
            assert torch.equal(run(compiled, noise(1)), alone(noise(1), each))


def test_reset_frees_memory_and_history(compiled: CompiledDenoiser) -> None:
    with compiled.trajectory(STEPS):
        run(compiled, noise(1))
    assert compiled.report().state_bytes > 0
    compiled.reset()
    assert compiled.report().state_bytes == 0
    with pytest.raises(HiCacheError, match=r"there was no run yet"):
        compiled.report().decisions()
    with compiled.trajectory(STEPS):
        assert torch.equal(run(compiled, noise(1)), alone(noise(1)))


def test_disabled_steps_count_but_leave_no_anchors(compiled: CompiledDenoiser) -> None:
    with compiled.trajectory(STEPS), torch.no_grad():
        for index, time in enumerate(times()):
            if index in (2, 3):
                with compiled.disabled():
                    assert torch.equal(compiled(noise(1), time), ToyDiT(depth=2)(noise(1), time))
            else:
                compiled(noise(1), time)
    assert compiled.report().decisions() == "FFFFF..F."  # starts over at step 4, and at 7 the interval is due


def test_more_calls_than_steps_is_an_error(compiled: CompiledDenoiser) -> None:
    with pytest.raises(HiCacheError, match=r"the trajectory has 3 steps.*cache_context"), compiled.trajectory(3):
        run(compiled, noise(1), 4)


@pytest.mark.parametrize("num_steps", [0, -1, 2.5, "9", None, True])
def test_a_bad_length_is_an_error(compiled: CompiledDenoiser, num_steps: object) -> None:
    with pytest.raises(HiCacheError, match=r"trajectory.num_steps = .*: must be an integer >= 1"):
        compiled.trajectory(num_steps).__enter__()  # type: ignore[arg-type]  # that is the test


def test_a_length_the_mask_is_not_for_is_an_error() -> None:
    compiled = hicache_compile(ToyDiT(), Policy(StepMask("1010"), Reuse()), backend="eager")
    with pytest.raises(HiCacheError, match=r"for 4 steps, the trajectory has 5"):
        compiled.trajectory(5).__enter__()


def test_trajectories_do_not_nest(compiled: CompiledDenoiser) -> None:
    with compiled.trajectory(3), pytest.raises(HiCacheError, match=r"a trajectory of 3 steps is open already"):
        compiled.trajectory(4).__enter__()


def test_a_context_needs_a_name(compiled: CompiledDenoiser) -> None:
    with pytest.raises(HiCacheError, match=r"cache_context.name = '': must be a non-empty string"):
        compiled.cache_context("").__enter__()


class TestWithoutATrajectory:
    """Calls with no trajectory open: the timestep tells where one starts."""

    def test_a_timestep_that_goes_back_up_starts_a_new_one(self, compiled: CompiledDenoiser) -> None:
        for seed in (1, 2):
            assert torch.equal(run(compiled, noise(seed)), alone(noise(seed)))
        assert compiled.report().decisions(trajectory=-2) == compiled.report().decisions() == "FF..F..F."

    @torch.no_grad()
    def test_a_timestep_that_stands_still_is_never_forecast(
        self, compiled: CompiledDenoiser, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Two guidance branches called in turn without contexts must not read each other's anchors."""
        with caplog.at_level(logging.WARNING):
            for time in times():
                for seed in (1, 2):
                    assert torch.equal(compiled(noise(seed), time), ToyDiT(depth=2)(noise(seed), time))
        assert "came twice in a row in context 'default'" in caplog.text
        assert set(compiled.report().decisions()) == {"F"}

    @torch.no_grad()
    def test_time_that_runs_upwards_is_followed(self, compiled: CompiledDenoiser) -> None:
        for seed in (1, 2):
            x = noise(seed)
            for time in reversed(times()):
                x = x - compiled(x, time) / STEPS
        assert compiled.report().history == {"default": ["FF..F..F."] * 2}

    def test_without_a_timestep_it_is_an_error(self) -> None:
        class Timeless(ToyDiT):
            def forward(self, x: torch.Tensor, noise_level: torch.Tensor) -> torch.Tensor:
                return super().forward(x, noise_level)

        compiled = hicache_compile(Timeless(), HiCache(interval=3), backend="eager")
        with pytest.raises(
            HiCacheError, match=r"needs an argument named timestep, timesteps, t, sigma, sigmas, time or r"
        ):
            compiled(noise(), torch.ones(2))
        with compiled.trajectory(STEPS):
            run(compiled, noise())
        assert compiled.report().decisions() == "FFF..F..F"

    def test_a_cooldown_needs_to_know_the_length(self) -> None:
        compiled = hicache_compile(ToyDiT(), Policy(Interval(3, cooldown=2), Reuse()), backend="eager")
        with pytest.raises(HiCacheError, match=r"Interval.cooldown = 2: must be 0 when the length"):
            compiled(noise(), torch.ones(2))
        with compiled.trajectory(STEPS):
            run(compiled, noise())
        assert compiled.report().decisions() == "FFF..F.FF"
