"""FLOPs and bytes: what is reported equals what is counted independently."""

from __future__ import annotations

import json

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from hicache_compile import CompiledDenoiser, HiCache, TaylorSeer, hicache_compile
from tests.support.models import flux_inputs, random_flux, sample

STEPS = 50


@pytest.fixture(scope="module")
def flux_dev() -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    """The full-size FLUX.1-dev on the meta device, at 1024x1024: 4096 image and 512 text tokens."""
    from diffusers import FluxTransformer2DModel

    with torch.device("meta"):
        inputs = {
            "hidden_states": torch.empty(1, 4096, 64),
            "encoder_hidden_states": torch.empty(1, 512, 4096),
            "pooled_projections": torch.empty(1, 768),
            "timestep": torch.empty(1),
            "guidance": torch.empty(1),
            "img_ids": torch.empty(4096, 3),
            "txt_ids": torch.empty(512, 3),
        }
        return FluxTransformer2DModel(guidance_embeds=True).eval(), inputs


def counted(compiled: CompiledDenoiser, inputs: dict[str, torch.Tensor]) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        compiled(**inputs, return_dict=False)
    return counter.get_total_flops()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Using `torch.compile")  # FlopCounterMode hooks every module
def test_flux_dev_costs_what_the_papers_say(flux_dev: tuple[torch.nn.Module, dict[str, torch.Tensor]]) -> None:
    model, inputs = flux_dev
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(**inputs, return_dict=False)
    uncached = counter.get_total_flops()
    assert round(uncached / 1e12, 2) == 74.38
    assert round(STEPS * uncached / 1e12, 1) == 3719.2
    for interval, full_steps in ((5, 12), (6, 10), (7, 9), (8, 8), (9, 8)):
        assert HiCache(interval=interval).decisions(STEPS).count("F") == full_steps
    compiled = hicache_compile(model, HiCache(interval=9), backend="eager")
    with compiled.trajectory(14):
        spent = sum(counted(compiled, inputs) for _ in range(14))
    report = compiled.report()
    assert report.decisions() == "FFF........F.."
    assert report.flops_full == uncached
    assert report.flops_speedup == pytest.approx(14 * uncached / spent, rel=1e-3)


def test_slots_of_flux_dev(flux_dev: tuple[torch.nn.Module, dict[str, torch.Tensor]]) -> None:
    model, inputs = flux_dev
    compiled = hicache_compile(model, TaylorSeer(interval=2, order=1, warmup=1), backend="eager")
    with compiled.trajectory(1), torch.no_grad():
        compiled(**inputs, return_dict=False)
    guarded = compiled.graphs["guarded"]
    assert sum("slot" in node.meta for node in guarded.graph.nodes) == 114
    # 38 text slots are never read by a forecast, and of the single blocks only the image rows are.
    assert compiled.report().state_bytes == 2 * (2 * 19 + 38) * 4096 * 3072 * 4


@pytest.mark.parametrize("scope", ["module", "block", "stack", "output"])
def test_small_flux_flops_match_an_independent_count(scope: str) -> None:
    model, inputs, steps = random_flux(2, 3), flux_inputs(), 12
    one_call = {**inputs, "timestep": torch.ones(2), "return_dict": False}
    with torch.device("meta"):
        reference = random_flux(2, 3)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        reference(**{k: v.to("meta") if isinstance(v, torch.Tensor) else v for k, v in one_call.items()})
    compiled = hicache_compile(model, HiCache(interval=4, scope=scope), backend="eager")
    with compiled.trajectory(steps):
        sample(compiled, inputs, steps)
    report = compiled.report()
    assert report.flops_full == counter.get_total_flops()
    assert 0 < report.flops_forecast < 0.05 * report.flops_full
    expected = steps * report.flops_full / (5 * report.flops_full + 7 * report.flops_forecast)
    assert report.flops_speedup == pytest.approx(expected, rel=1e-12)
    assert json.loads(report.to_json())["flops_full"] == report.flops_full


@pytest.mark.parametrize(("first", "last", "streams"), [(0, 0, ["image"]), (1, 1, ["image", "text"])])
def test_stack_scope_holds_the_streams_and_nothing_else(first: int, last: int, streams: list[str]) -> None:
    tokens = {"image": 16, "text": 4}
    policy = {"preset": "HiCache", "interval": 3, "order": 2, "scope": "stack"}
    from hicache_compile import Hermite, Interval, Policy

    compiled = hicache_compile(random_flux(2, 3), policy, backend="eager")
    compiled.policy = Policy(Interval(3), Hermite(2), "stack", first=first, last=last)
    with compiled.trajectory(8):
        sample(compiled, flux_inputs(), 8)
    held = [
        ring for context in compiled._session.contexts.values() for s in context.states.values() for ring in s.rings
    ]
    assert sorted(tuple(ring.shape) for ring in held) == sorted((3, 2, tokens[stream], 32) for stream in streams)
    assert compiled.report().state_bytes == sum(ring.numel() * ring.element_size() for ring in held)
