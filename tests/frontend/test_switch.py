"""The system switch, and the timesteps a scheduler or a caller announces."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from hicache_compile import PAB, FBCache, HiCache, HiCacheError, Policy, config, hicache_compile
from hicache_compile.runtime.following.pipeline_calls import times_from
from tests.support.models import ToyDiT, flux_inputs, random_flux, trace

STEPS = 8


@pytest.mark.parametrize("policy", [HiCache(3), FBCache(1e9), PAB(2, window=None)])
def test_switched_off_is_bit_equal_and_says_so_once(
    policy: Policy, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model, inputs = random_flux(), flux_inputs(batch=1)
    compiled = hicache_compile(model, policy, backend="aot_eager")
    with compiled.trajectory(STEPS):
        cached = trace(compiled, inputs, STEPS)
    monkeypatch.setattr(config, "enabled", False)
    config._say_that_it_is_off.cache_clear()
    for _ in range(2):
        with compiled.trajectory(STEPS):
            mine = trace(compiled, inputs, STEPS)
    assert compiled.report().decisions() == "F" * STEPS
    assert caplog.text.count("caching is switched off") == 1
    plain = torch.compile(model, backend="aot_eager", fullgraph=True)
    assert torch.equal(mine, trace(plain, inputs, STEPS))
    monkeypatch.setattr(config, "enabled", True)
    with compiled.trajectory(STEPS):
        again = trace(compiled, inputs, STEPS)
    assert torch.equal(again, cached)
    assert not torch.equal(again, mine)


@pytest.mark.parametrize(("text", "expected"), [("0", "False"), ("off", "False"), ("1", "True"), ("", "True")])
def test_the_environment_sets_it(text: str, expected: str) -> None:
    code = "import hicache_compile; print(hicache_compile.config.enabled)"
    environ = {**os.environ, "HICACHE_ENABLE": text}
    found = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == expected


def test_a_switch_that_is_none_is_told_by_the_first_step_and_not_by_the_import() -> None:
    code = (
        "import torch, hicache_compile; from torch import nn\n"
        "made = hicache_compile.hicache_compile(nn.Linear(2, 2), 'FORA', backend='eager')\n"
        "try:\n  with torch.no_grad(), made.trajectory(1): made(torch.ones(1, 2))\n"
        "except hicache_compile.HiCacheError as error: print(error)"
    )
    environ = {**os.environ, "HICACHE_ENABLE": "maybe"}
    found = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True)
    assert found.stdout.startswith("HICACHE_ENABLE = 'maybe': must be one of 1, true")


def test_timesteps_of_a_caller_decide_windows() -> None:
    """Attention is broadcast strictly between 450 and 930, whatever steps those are."""
    compiled = hicache_compile(ToyDiT(), PAB(2, window=(450, 930), mlp=None), backend="eager")
    x = torch.randn(2, 6, 16)

    def run(times: list[float] | None) -> str:
        with compiled.trajectory(6, times), torch.no_grad():
            for step in range(6):
                compiled(x, torch.full((2,), 1 - step / 6))
        return compiled.report().decisions()

    assert run(None) == "F.F.FF"  # 1000, 833, 667, 500, 333, 167
    assert run([1000, 990, 980, 970, 940, 500]) == "FFFFF."
    assert run([900, 800, 700, 600, 500, 460]) == "F.F.F."
    for wrong, message in (([1.0], "1 of them, must be 6"), (["a"] * 6, "one or more numbers")):
        with pytest.raises(HiCacheError, match=message), compiled.trajectory(6, wrong):  # type: ignore[arg-type]
            pass


def test_timesteps_of_a_scheduler_decide_windows() -> None:
    from diffusers import DiffusionPipeline

    class Pipeline(DiffusionPipeline):
        def __init__(self, transformer: ToyDiT, scheduler: FlowMatchEulerDiscreteScheduler) -> None:
            super().__init__()
            self.register_modules(transformer=transformer, scheduler=scheduler)

        def __call__(self) -> None: ...

    scheduler = FlowMatchEulerDiscreteScheduler(shift=7.0)  # stays long at high timesteps
    pipeline = hicache_compile(Pipeline(ToyDiT(), scheduler), PAB(2, window=(450, 930), mlp=None), backend="eager")
    scheduler.set_timesteps(6)
    times = times_from(scheduler.timesteps, 0)
    assert times == [float(time) for time in scheduler.timesteps]
    x = torch.randn(2, 6, 16)
    with torch.no_grad():
        for time in scheduler.timesteps:
            out = pipeline.transformer(x, torch.full((2,), float(time) / 1000))
            x = scheduler.step(out, time, x, return_dict=False)[0]
    expected = "".join("." if step % 2 and 450 < time < 930 else "F" for step, time in enumerate(times))
    assert pipeline.transformer.report().decisions() == expected
    assert set(expected) == {"F", "."}
