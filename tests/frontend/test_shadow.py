"""A pipeline compiled with a pack: what is picked, what runs in the shadow, and that it finds another model."""

from __future__ import annotations

import copy
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from hicache_compile import HiCache, HiCacheError, Interval, Pack, Policy, Reuse, Shadow, Uncached, hicache_compile
from hicache_compile.frontend.dynamo_backend import inspect
from hicache_compile.frontend.shadow import pictures_of
from hicache_compile.policy.packs import Entry, Signature
from tests.frontend.test_ecosystem import lora
from tests.pipelines import by_name

CASE = by_name("FluxPipeline")
SLOW = HiCache(interval=2, scope="stack")
FAST = Policy(Interval(4, 1), Reuse(), "stack")


HOW = {"prompt": "a cat", "height": 16, "width": 16, "num_inference_steps": 6, "output_type": "pt"}


def call(pipeline: Any, seed: int | None = 0) -> Tensor:
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    return pipeline(**HOW, generator=generator).images


def error(found: Tensor, wanted: Tensor) -> float:
    found, wanted = found * 2 - 1, wanted * 2 - 1
    return float((found - wanted).norm() / wanted.norm())


@pytest.fixture(scope="module")
def measured() -> Pack:
    """Errors of 19 runs of the two policies, by hand."""
    pipeline = CASE.build()
    full = [call(pipeline, seed) for seed in range(19)]
    compiled = hicache_compile(pipeline, FAST, backend="eager")
    errors = {}
    for policy in (FAST, SLOW):
        compiled.transformer.policy = policy
        errors[policy] = tuple(error(call(compiled, seed), full[seed]) for seed in range(19))
    signature = Signature.of(compiled.transformer, compiled.scheduler)
    entries = Entry("fast", FAST, errors[FAST], 1.0, 4.0, 2), Entry("slow", SLOW, errors[SLOW], 2.0, 1.5, 4)
    assert entries[1].bound < entries[0].bound
    return Pack(entries, 6, 3.0, "a machine", signature)


def compiled_with(pack: Any, **promise: float) -> Any:
    return hicache_compile(CASE.build(), pack, backend="eager", **promise)


def test_a_promise_picks_the_policy(measured: Pack, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    measured.save(tmp_path / "pack.json")
    loose = measured.entries[0].bound * 1.01
    pipeline = compiled_with(str(tmp_path / "pack.json"), max_error=loose)
    assert pipeline.transformer.policy == FAST
    call(pipeline)
    assert pipeline.transformer.report().decisions() == "F...F."
    with pipeline.transformer.promising(max_error=measured.entries[1].bound):
        call(pipeline)
        assert pipeline.transformer.report().decisions() == "FFF.F."
        assert pipeline.transformer.run(6).policy == SLOW
    assert pipeline.transformer.run(6).policy == FAST
    call(pipeline)
    assert pipeline.transformer.report().decisions() == "F...F."
    assert compiled_with(measured, max_seconds=2.5).transformer.policy == SLOW
    assert "every step is computed" not in caplog.text
    assert compiled_with(measured, max_error=1e-9).transformer.policy == Uncached()
    assert "no policy of the pack keeps the promise" in caplog.text
    caplog.clear()
    with pipeline.transformer.promising(max_error=1e-9):
        pass
    assert "no policy of the pack keeps the promise" in caplog.text


def test_what_does_not_fit_a_pack_is_refused_and_nothing_is_changed(measured: Pack) -> None:
    pipeline = CASE.build()
    before = pipeline.transformer
    other = replace(measured, signature=Signature("FluxTransformer2DModel 000000000000", ""))
    for pack, promise, message in (
        (measured, {}, "pack: max_error or max_seconds must be given"),
        ("HiCache", {"max_error": 0.1}, r"hicache_compile.max_error = 0.1: must be given with a pack as policy"),
        (other, {"max_error": 1.0}, r"pack.model: measured on FluxTransformer2DModel 000000000000, this is Flux"),
        (
            replace(measured, signature=Signature("", "DDIMScheduler 1")),
            {"max_error": 1.0},
            "pack.scheduler: measured on DDIMScheduler 1, this is FlowMatchEulerDiscreteScheduler",
        ),
    ):
        with pytest.raises(HiCacheError, match=message):
            hicache_compile(pipeline, pack, backend="eager", **promise)  # type: ignore[arg-type]
        assert pipeline.transformer is before
    compiled = hicache_compile(CASE.build(), "HiCache", backend="eager")
    with (
        pytest.raises(HiCacheError, match="must be compiled with a pack"),
        compiled.transformer.promising(1),
    ):
        pass
    with pytest.raises(HiCacheError, match=r"Shadow\.pipeline = FluxPipeline: must be compiled with a pack"):
        Shadow(compiled)


def test_the_shadow_measures_what_it_says(measured: Pack) -> None:
    """Against the uncached pipeline by hand; the caller's generator and random state are as without it."""
    plain = CASE.build()
    pipeline = compiled_with(measured, max_error=10.0)
    watched = Shadow(pipeline, every=2)
    found = [call(watched, seed) for seed in range(4)]
    assert watched.waiting == 2
    torch.manual_seed(3)
    state = torch.get_rng_state()
    errors = watched.check()
    assert torch.equal(torch.get_rng_state(), state)
    assert errors == pytest.approx([error(found[seed], call(plain, seed)) for seed in (0, 2)], rel=1e-4)
    assert min(errors) > 0
    assert watched.report().checked == 2
    assert watched.check() == []


def test_what_the_caller_writes_into_later_is_as_it_was(measured: Pack) -> None:
    watched = Shadow(hicache_compile(CASE.build(), measured, max_error=1, backend="eager"), 1)
    latents = torch.randn(1, 64, 4, generator=torch.Generator().manual_seed(0))
    found = watched(**HOW, latents=latents).images
    wanted = CASE.build()(**HOW, latents=latents.clone()).images
    latents.zero_()
    assert watched.check() == pytest.approx([error(found, wanted)], rel=1e-3)


def test_noise_from_the_global_state_is_drawn_again(measured: Pack) -> None:
    pipeline = compiled_with(measured, max_error=10.0)
    watched = Shadow(pipeline, every=1)
    torch.manual_seed(5)
    made = call(watched, None)
    plain = CASE.build()
    torch.manual_seed(5)
    full = call(plain, None)
    assert watched.check() == pytest.approx([error(made, full)], rel=1e-4)


def test_a_lora_is_found_and_the_policy_steps_back(measured: Pack, caplog: pytest.LogCaptureFixture) -> None:
    """With one call in 1000 kept: once the weights changed, all of the next 20 are."""
    pipeline = compiled_with(measured, max_error=measured.entries[0].bound)
    watched = Shadow(pipeline, every=1000)

    def runs(count: int) -> None:
        for seed in range(count):
            call(watched, 100 + seed)
            watched.check()

    runs(3)
    assert watched.report().checked == 1
    torch.manual_seed(0)
    pipeline.transformer.add_adapter(lora(), adapter_name="a")
    for module in pipeline.transformer.modules():  # a large one: the model draws something else
        if hasattr(module, "lora_B"):
            module.lora_B["a"].weight.data *= 8
    with caplog.at_level(logging.WARNING):
        runs(20)
    report = watched.report()
    assert report.stepped_back[0] == "fast"
    assert report.checked <= 21
    assert "the promise of max_error" in caplog.text
    assert pipeline.transformer.policy == pipeline.transformer.contract.entry.policy != FAST


def test_pictures_in_every_form_are_the_same_numbers() -> None:
    values = torch.rand(2, 3, 4, 5)
    arrays = values.permute(0, 2, 3, 1).numpy()
    from PIL import Image

    pictures = [Image.fromarray((one * 255).round().astype("uint8")) for one in arrays]
    for form in (values, arrays, pictures, [pictures]):
        found = pictures_of((form,))
        flat = found.flatten(0, 1) if found.dim() == 5 else found  # one clip of two frames
        flat = flat if flat.shape[1] == 3 else flat.permute(0, 3, 1, 2)
        torch.testing.assert_close(flat, values * 2 - 1, atol=2 / 255, rtol=0)
    with pytest.raises(HiCacheError, match="pictures of 8 bits are rounded"):
        pictures_of((pictures,), 0.01)
    for wrong in (torch.randn(2, 16, 4), np.full((1, 2, 2, 3), 3.0)):
        with pytest.raises(HiCacheError, match="must return pictures"):
            pictures_of((wrong,))


def test_calls_that_the_promise_is_not_of_are_not_checked(measured: Pack) -> None:
    """Another promise, another policy, another number of steps, weights that are others by now."""
    pipeline = compiled_with(measured, max_error=measured.entries[0].bound)
    watched = Shadow(pipeline, every=1)
    with pipeline.transformer.promising(max_error=measured.entries[1].bound):
        call(watched)
    pipeline.transformer.policy = "FORA"
    call(watched)
    pipeline.transformer.policy = FAST
    watched(**{**HOW, "num_inference_steps": 4})
    watched(**{name: value for name, value in HOW.items() if name != "num_inference_steps"})  # 28
    watched(**{**HOW, "sigmas": [1.0, 0.6, 0.3]})
    assert watched.waiting == 0
    call(watched)
    assert watched.waiting == 1
    torch.manual_seed(0)
    pipeline.transformer.add_adapter(lora(), adapter_name="a")
    assert watched.check() == []
    assert watched.report().checked == 0


def written(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    tensors["latents"].mul_(0.9)
    return tensors


def set_on(pipeline: Any) -> dict[str, Tensor]:
    pipeline._guidance_scale += 1.0
    return {}


STEERS: dict[str, Any] = {
    "hands out": lambda pipeline, step, time, tensors: {"latents": tensors["latents"] * 0.9},
    "writes": lambda pipeline, step, time, tensors: written(tensors),
    "sets an attribute": lambda pipeline, step, time, tensors: set_on(pipeline),
}


@pytest.mark.parametrize("callback", STEERS.values(), ids=STEERS)
def test_a_call_that_its_callback_steers_is_not_checked(measured: Pack, callback: Any) -> None:
    watched = Shadow(compiled_with(measured, max_error=10.0), every=1)
    watched(**HOW, callback_on_step_end=callback)
    assert watched.waiting == 0
    watched(**HOW, callback_on_step_end=lambda pipeline, step, time, tensors: tensors)
    assert watched.waiting == 1


def test_a_promise_is_of_all_denoisers_of_a_pipeline() -> None:
    errors = [tuple(size + 0.001 * run for run in range(19)) for size in (0.2, 0.01)]
    entries = Entry("fast", FAST, errors[0], 1.0, 4.0, 3), Entry("slow", SLOW, errors[1], 2.0, 1.5, 6)
    pack = Pack(entries, 12, 3.0, "a machine")
    pipeline = hicache_compile(by_name("WanPipeline, two transformers").build(), pack, max_error=0.5, backend="eager")
    how = {"prompt": "a cat", "height": 16, "width": 16, "num_frames": 9, "max_sequence_length": 16}
    with pipeline.transformer_2.promising(max_error=0.05):
        pipeline(**how, num_inference_steps=12, output_type="latent")
    first, second = (one.report().decisions("cond") for one in (pipeline.transformer, pipeline.transformer_2))
    assert first + second == SLOW.decisions(len(first)) + SLOW.decisions(len(second))
    assert pipeline.transformer._session.own_policy is None


def test_watching_never_fails_a_call_nor_calls_back_again(measured: Pack, caplog: pytest.LogCaptureFixture) -> None:
    watched = Shadow(compiled_with(measured, max_error=10.0), every=1)
    steps: list[int] = []

    def back(pipeline: Any, step: int, time: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        steps.append(step)
        return tensors

    generators = [torch.Generator().manual_seed(1), torch.Generator().manual_seed(2)]
    both = {**HOW, "prompt": ["a cat", "a dog"], "generator": generators, "callback_on_step_end": back}
    watched(**both)
    states = [one.get_state() for one in generators]
    assert len(watched.check()) == 2  # an error for each picture
    assert steps == list(range(6))
    assert all(torch.equal(one.get_state(), state) for one, state in zip(generators, states, strict=True))
    assert watched(**{**HOW, "output_type": "latent"}).images.dim() == 3
    assert "a call is not checked" in caplog.text
    assert watched.waiting == 0


def test_a_contract_belongs_to_one_denoiser(measured: Pack) -> None:
    pipeline = compiled_with(measured, max_error=measured.entries[0].bound)
    copied = copy.deepcopy(pipeline.transformer)
    for _ in range(5):
        pipeline.transformer.contract.observe(1e3)
    assert copied.contract.entry.name == "fast"
    other = CASE.build()
    other.transformer = copied
    with pytest.raises(HiCacheError, match="is compiled already"):
        hicache_compile(other, measured, max_error=1e3, backend="eager")
    for more in ({"anchors": "int8"}, {"memory_budget": "1GiB"}, {"sparsity": {}}):
        with pytest.raises(HiCacheError, match="must be None with a pack, measured without it"):
            hicache_compile(CASE.build(), measured, max_error=1.0, backend="eager", **more)  # type: ignore[arg-type]


def test_the_entry_of_torch_compile_takes_packs(measured: Pack) -> None:
    options = {"policy": measured, "max_error": measured.entries[0].bound, "backend": "eager"}
    model = torch.compile(CASE.build().transformer, backend="hicache", options=options)
    assert inspect(model).policy == FAST
    with pytest.raises(HiCacheError, match=r"no-such-pack\.json"):
        hicache_compile(CASE.build(), "no-such-pack.json", max_error=0.1, backend="eager")
