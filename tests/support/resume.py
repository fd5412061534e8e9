"""A run that is suspended in one denoiser and resumed in another is the run that was never interrupted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hicache_compile import Policy, hicache_compile
from tests.support.models import flux_inputs, random_flux, trace

STEPS, SUSPENDED = 12, 5


def assert_it_goes_on(policy: Policy, backend: str, folder: Path, **options: Any) -> None:
    model, inputs = random_flux(1, 2), flux_inputs(batch=1)
    whole, first, second = (hicache_compile(model, policy, backend=backend, **options) for _ in range(3))
    with whole.trajectory(STEPS):
        expected = trace(whole, inputs, STEPS)

    def steps(denoiser: nn.Module, x: Tensor, places: range) -> Tensor:
        for step in places:
            time = torch.full((1,), 1 - step / STEPS)
            with torch.no_grad():
                out = denoiser(**{**inputs, "hidden_states": x}, timestep=time, return_dict=False)[0]
            x = x - out / STEPS
        return x

    with first.trajectory(STEPS):
        x = steps(first, inputs["hidden_states"], range(SUSPENDED))
        first.suspend(folder / "run.safetensors")
    with second.resume(folder / "run.safetensors"):
        x = steps(second, x, range(SUSPENDED, STEPS))
    assert torch.equal(x, expected[-1])
    decisions = whole.report().decisions()
    assert second.report().decisions()[SUSPENDED:] == decisions[SUSPENDED:]
    assert set(decisions[SUSPENDED:]) != {"F"}
