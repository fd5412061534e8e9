"""interval=1 is the uncached model: bit for bit in eager and aot_eager, to rounding in Inductor."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hicache_compile import HiCache, hicache_compile
from tests.support.models import ToyDiT, flux_inputs, random_flux, sample

SCOPES = ("module", "block", "stack", "output")
STEPS = 6


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_interval_one_is_bit_equal(backend: str, scope: str) -> None:
    model, inputs = random_flux(2, 2), flux_inputs()
    compiled = hicache_compile(model, HiCache(interval=1, scope=scope), backend=backend)
    with compiled.trajectory(STEPS):
        cached = sample(compiled, inputs, STEPS)
    assert compiled.report().decisions() == "F" * STEPS
    assert torch.equal(cached, sample(model, inputs, STEPS))


@pytest.mark.slow
@pytest.mark.parametrize("scope", SCOPES)
def test_interval_one_equals_plain_compile_in_inductor(scope: str) -> None:
    model, inputs = random_flux(1, 2), flux_inputs()
    compiled = hicache_compile(model, HiCache(interval=1, scope=scope), backend="inductor")
    with compiled.trajectory(STEPS):
        cached = sample(compiled, inputs, STEPS)
    plain = sample(torch.compile(model), inputs, STEPS)
    assert float((cached - plain).norm() / plain.norm()) < 1e-5  # float32 rounding, accumulated over the steps


@pytest.mark.slow
@pytest.mark.parametrize("scope", ["module", "stack"])
def test_inductor_forecasts_what_eager_forecasts(scope: str) -> None:
    model, inputs = random_flux(1, 2), flux_inputs()
    samples = []
    for backend in ("eager", "inductor"):
        compiled = hicache_compile(model, HiCache(interval=4, scope=scope), backend=backend)
        with compiled.trajectory(14):
            samples.append(sample(compiled, inputs, 14))
        assert compiled.report().decisions() == "FFF...F...F..."
    assert float((samples[1] - samples[0]).norm() / samples[0].norm()) < 1e-5  # float32 rounding


def test_disabled_is_the_uncached_model() -> None:
    model, inputs = random_flux(1, 1), flux_inputs()
    compiled = hicache_compile(model, HiCache(interval=4), backend="aot_eager")
    with compiled.disabled(), compiled.trajectory(STEPS):
        uncached = sample(compiled, inputs, STEPS)
    assert torch.equal(uncached, sample(model, inputs, STEPS))
    assert compiled.report().state_bytes == 0


def test_half_precision_accumulates_in_float32() -> None:
    """Reuse of a bfloat16 anchor gives that anchor back exactly; the ring has the model's dtype."""
    model = ToyDiT().to(torch.bfloat16)
    x, t = torch.randn(2, 5, 16, dtype=torch.bfloat16), torch.ones(2, dtype=torch.bfloat16)
    compiled = hicache_compile(model, {"preset": "FORA", "interval": 2, "scope": "output"}, backend="aot_eager")
    with compiled.trajectory(2), torch.no_grad():
        first, second = compiled(x, t), compiled(x, t)
    assert torch.equal(first, second)
    assert compiled.report().state_bytes == x.numel() * 2


def test_inference_mode_and_no_grad_can_be_mixed() -> None:
    model, inputs = random_flux(1, 1), flux_inputs()
    compiled = hicache_compile(model, HiCache(interval=3), backend="aot_eager")
    runs = []
    for guard in (torch.inference_mode, torch.no_grad, torch.inference_mode):
        with guard(), compiled.trajectory(8):
            runs.append(sample(compiled, inputs, 8).clone())
    assert torch.equal(runs[0], runs[1])
    assert torch.equal(runs[0], runs[2])


FRESH = """
import sys, torch
from hicache_compile import HiCache, hicache_compile
from tests.support.models import flux_inputs, random_flux, sample
compiled = hicache_compile(random_flux(1, 2), HiCache(interval=3), backend="aot_eager")
for seed in map(int, sys.argv[2:]):
    with compiled.trajectory(10):
        last = sample(compiled, flux_inputs(seed=seed), 10)
torch.save(last, sys.argv[1])
"""


@pytest.mark.slow
def test_the_second_prompt_equals_the_same_prompt_in_a_fresh_process(tmp_path: Path) -> None:
    results = []
    for name, seeds in (("second", ["1", "2"]), ("fresh", ["2"])):
        path = tmp_path / name
        subprocess.run([sys.executable, "-c", FRESH, str(path), *seeds], check=True, cwd=Path(__file__).parents[2])
        results.append(torch.load(path))
    assert torch.equal(*results)
