"""Real pipelines, saved, loaded and compiled: the scheduler says where a run begins, nothing is read back."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hicache_compile import HiCache, HiCacheError, StepMask, hicache_compile
from hicache_compile.frontend.denoiser import CompiledDenoiser
from hicache_compile.policy.policy import Policy
from tests.pipelines import CASES, PipelineCase, by_name

LOWERED = ("FluxPipeline", "WanPipeline, two transformers")  # by AOT too
ALL = [pytest.param(case, id=case.name.replace(" ", "")) for case in CASES]


def cached(case: PipelineCase, interval: int = 4, backend: str = "eager") -> Any:
    return hicache_compile(case.build(), HiCache(interval=interval), backend=backend)


def decisions(denoiser: CompiledDenoiser) -> dict[str, str]:
    return {context: runs[-1] for context, runs in denoiser.report().history.items()}


@pytest.mark.parametrize("case", ALL)
def test_a_pipeline(case: PipelineCase, tmp_path: Path) -> None:
    from diffusers import DiffusionPipeline

    case.saved(tmp_path)
    pipeline = DiffusionPipeline.from_pretrained(tmp_path)
    expected = case.run(pipeline)
    compiled = hicache_compile(pipeline, HiCache(interval=1), backend="aot_eager" if case.name in LOWERED else "eager")
    assert compiled is pipeline
    assert torch.equal(case.run(compiled), expected)
    denoisers = [getattr(compiled, name) for name in case.denoisers]
    for denoiser in denoisers:
        denoiser.policy = HiCache(interval=3)
    output = case.run(compiled)
    assert torch.isfinite(output).all()
    assert not torch.equal(output, expected)
    for denoiser in denoisers:
        report = denoiser.report()
        assert (report.host_syncs, report.graph_breaks) == (0, 0)
        assert report.computed > 0
        longest = max(decisions(denoiser).values(), key=len)
        assert longest == HiCache(interval=3).decisions(len(longest))
    assert sum(denoiser.report().forecast for denoiser in denoisers) > 0
    folder = tmp_path / "again"
    compiled.save_pretrained(folder)
    assert torch.equal(case.run(DiffusionPipeline.from_pretrained(folder)), expected)


def test_img2img_runs_only_the_steps_it_says() -> None:
    pipeline = cached(by_name("FluxImg2ImgPipeline"))
    by_name("FluxImg2ImgPipeline").run(pipeline)
    assert decisions(pipeline.transformer) == {"default": "FFF..."}  # strength 0.75 of 8 steps
    pipeline.transformer.policy = Policy(StepMask("110100"), HiCache().forecaster)
    by_name("FluxImg2ImgPipeline").run(pipeline)
    assert decisions(pipeline.transformer) == {"default": "FF.F.."}


def test_a_mask_of_another_length_is_an_error() -> None:
    pipeline = cached(by_name("FluxPipeline"))
    pipeline.transformer.policy = Policy(StepMask("1101"), HiCache().forecaster)
    with pytest.raises(HiCacheError, match=r"StepMask.mask is for 4 steps, the trajectory has 8"):
        by_name("FluxPipeline").run(pipeline)


def test_two_transformers_each_start_afresh() -> None:
    case = by_name("WanPipeline, two transformers")
    pipeline = cached(case)
    case.run(pipeline, steps=12)
    first, second = decisions(pipeline.transformer), decisions(pipeline.transformer_2)
    assert first["cond"] == first["uncond"] == HiCache(interval=4).decisions(len(first["cond"]))
    assert second["cond"] == second["uncond"] == HiCache(interval=4).decisions(len(second["cond"]))
    assert len(first["cond"]) + len(second["cond"]) == 12


def test_a_mask_goes_on_in_the_second_transformer() -> None:
    case = by_name("WanPipeline, two transformers")
    pipeline = cached(case)
    mask = "110101101001"
    for denoiser in (pipeline.transformer, pipeline.transformer_2):
        denoiser.policy = Policy(StepMask(mask), HiCache().forecaster)
    case.run(pipeline, steps=12)
    first, second = decisions(pipeline.transformer)["cond"], decisions(pipeline.transformer_2)["cond"]
    letters = mask.replace("1", "F").replace("0", ".")
    assert first == letters[: len(first)]
    assert second == "F" + letters[len(first) + 1 :]


def test_the_second_run_equals_the_first_and_a_fresh_one() -> None:
    case = by_name("FluxPipeline, true CFG")
    pipeline = cached(case)
    first, other, again = case.run(pipeline), case.run(pipeline, seed=1), case.run(pipeline)
    assert torch.equal(first, again)
    assert torch.equal(other, case.run(cached(case), seed=1))
    report = pipeline.transformer.report()
    assert (report.programs, report.recompiles) == (2, 0)


def test_branches_do_not_touch_one_another() -> None:
    """With a guidance scale of one the unconditional branch decides nothing."""
    case = by_name("FluxPipeline, true CFG")
    alone = by_name("FluxPipeline").run(cached(by_name("FluxPipeline")))
    assert torch.allclose(case.run(cached(case), true_cfg_scale=1.0), alone)


def test_guidance_that_ends_in_the_middle() -> None:
    """SD3 calls a third branch, with layers left out, in a part of the run only."""
    case = by_name("StableDiffusion3Pipeline, skipped layers")
    pipeline = cached(case, interval=3)
    case.run(pipeline, steps=10, skip_layer_guidance_start=0.2, skip_layer_guidance_stop=0.8)
    found = decisions(pipeline.transformer)
    assert found["default"] == "FFF..F..F."
    assert 3 <= len(found["default.1"]) < 10
    assert found["default.1"].startswith("F")


def test_unnamed_branches_are_told_by_their_conditioning() -> None:
    """A pipeline without cache contexts, three branches a step, one of them from the third step on."""
    pipeline = cached(by_name("FluxPipeline"), interval=3)
    transformer = pipeline.transformer
    scheduler = pipeline.scheduler
    by_name("FluxPipeline").run(pipeline, steps=2)  # wires the scheduler
    torch.manual_seed(0)
    prompts = [torch.randn(1, 4, 32) for _ in range(3)]
    shared = {"pooled_projections": torch.zeros(1, 32), "img_ids": torch.zeros(16, 3), "txt_ids": torch.zeros(4, 3)}
    x = torch.randn(1, 16, 4)
    scheduler.set_timesteps(9, mu=0.5)
    for step, t in enumerate(scheduler.timesteps):
        calls = prompts if step >= 2 else prompts[:2]
        if step % 2:  # the order does not matter
            calls = calls[::-1]
        with torch.no_grad():
            velocities = [
                transformer(x, encoder_hidden_states=p, timestep=t.expand(1) / 1000, **shared, return_dict=False)[0]
                for p in calls
            ]
        x = scheduler.step(sum(velocities) / len(velocities), t, x, return_dict=False)[0]
    history = transformer.report().history
    assert [history[name][-1] for name in ("default", "default.1", "default.2")] == [
        "FFF..F..F",
        "FFF..F..F",
        "F..F..F",
    ]


def test_calls_that_cannot_be_told_apart_are_computed(caplog: pytest.LogCaptureFixture) -> None:
    pipeline = cached(by_name("FluxPipeline"), interval=3)
    by_name("FluxPipeline").run(pipeline, steps=2)
    scheduler, transformer = pipeline.scheduler, pipeline.transformer
    fixed = {
        "encoder_hidden_states": torch.randn(1, 4, 32),
        "pooled_projections": torch.zeros(1, 32),
        "img_ids": torch.zeros(16, 3),
        "txt_ids": torch.zeros(4, 3),
    }
    scheduler.set_timesteps(6, mu=0.5)
    x = torch.randn(1, 16, 4)
    for t in scheduler.timesteps:
        for _ in range(2):
            with torch.no_grad():
                v = transformer(x, timestep=t.expand(1) / 1000, **fixed, return_dict=False)[0]
        x = scheduler.step(v, t, x, return_dict=False)[0]
    assert set("".join(runs[-1] for runs in transformer.report().history.values() if len(runs[-1]) == 6)) == {"F"}
    assert "conditioned alike" in caplog.text


def test_images_per_prompt_and_batches() -> None:
    case = by_name("FluxPipeline")
    pipeline = cached(case)
    assert case.run(pipeline, num_images_per_prompt=3).shape[0] == 3
    assert case.run(pipeline, prompt=["a cat", "a dog"]).shape[0] == 2
    assert case.run(pipeline).shape[0] == 1
    assert decisions(pipeline.transformer) == {"cond": "FFF...F."}


def test_callbacks_and_an_interrupted_run() -> None:
    case = by_name("FluxPipeline")
    pipeline = cached(case)
    expected = case.run(pipeline)
    seen = []

    def stop(pipe: Any, step: int, t: Tensor, values: dict[str, Tensor]) -> dict[str, Tensor]:
        seen.append(step)
        pipe._interrupt = step == 3
        return values

    case.run(pipeline, callback_on_step_end=stop)
    assert decisions(pipeline.transformer)["cond"] == "FFF."
    assert torch.equal(case.run(pipeline), expected)
    assert len(seen) >= 4


def test_a_run_that_fails_leaves_nothing_behind() -> None:
    case = by_name("FluxPipeline")
    pipeline = cached(case)
    expected = case.run(pipeline)

    def fail(*_: Any) -> None:
        raise KeyError("out of luck")

    with pytest.raises(KeyError):
        case.run(pipeline, callback_on_step_end=fail)
    inputs = {
        "hidden_states": torch.randn(1, 64, 4),
        "encoder_hidden_states": torch.randn(1, 4, 32),
        "pooled_projections": torch.zeros(1, 32),
        "img_ids": torch.zeros(64, 3),
        "txt_ids": torch.zeros(4, 3),
        "timestep": torch.full((1,), 0.5),
    }
    with torch.no_grad():
        bare = pipeline.transformer(**inputs, return_dict=False)[0]
        assert torch.equal(bare, pipeline.transformer._orig_mod(**inputs, return_dict=False)[0])
    assert torch.equal(case.run(pipeline), expected)


def test_a_new_scheduler_is_wired_at_the_next_call() -> None:
    from diffusers import HeunDiscreteScheduler

    case = by_name("StableDiffusionPipeline")
    pipeline = cached(case)
    case.run(pipeline)
    plain = case.build()
    for pipe in (plain, pipeline):
        pipe.scheduler = HeunDiscreteScheduler.from_config(pipe.scheduler.config)
    pipeline.unet.policy = HiCache(interval=1)
    assert torch.equal(case.run(pipeline, steps=4), case.run(plain, steps=4))
    assert decisions(pipeline.unet) == {"default": "F" * 7}  # two calls a step, but for the last
    assert pipeline.unet.report().host_syncs == 0


def test_pipelines_and_schedulers_stay_what_they_were() -> None:
    import copy

    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline

    pipeline = cached(by_name("FluxPipeline"))
    scheduler = pipeline.scheduler
    assert type(scheduler) is FlowMatchEulerDiscreteScheduler
    assert type(pipeline) is FluxPipeline
    assert vars(scheduler).keys() == vars(FlowMatchEulerDiscreteScheduler()).keys()
    assert type(copy.deepcopy(scheduler)) is FlowMatchEulerDiscreteScheduler
    assert FlowMatchEulerDiscreteScheduler.from_config(scheduler.config).config == scheduler.config


def test_two_pipelines_share_one_denoiser() -> None:
    from diffusers import FluxImg2ImgPipeline

    text = cached(by_name("FluxPipeline"))
    picture = FluxImg2ImgPipeline(
        **{k: v for k, v in text.components.items() if not k.startswith(("image_e", "feature"))}
    )
    hicache_compile(picture, HiCache(interval=4))
    assert picture.transformer is text.transformer
    expected = by_name("FluxPipeline").run(text)
    by_name("FluxImg2ImgPipeline").run(picture)
    assert decisions(text.transformer)["default"] == "FFF..."
    assert torch.equal(by_name("FluxPipeline").run(text), expected)
    with pytest.raises(HiCacheError, match="compiled already"):
        hicache_compile(picture, HiCache(interval=5))


def test_two_threads_each_with_a_scheduler_of_its_own() -> None:
    import copy

    case = by_name("FluxPipeline")
    first = cached(case)
    second = type(first)(**{**first.components, "scheduler": copy.deepcopy(first.scheduler)})
    hicache_compile(second, HiCache(interval=4))
    # Encoded once: tokenizers are not made for threads, with or without a cache.
    states, pooled, _ = first.encode_prompt(prompt="a cat", prompt_2=None, max_sequence_length=48)
    prompt = {"prompt": None, "prompt_embeds": states, "pooled_prompt_embeds": pooled}
    expected = [case.run(pipe, seed=seed, **prompt) for seed, pipe in enumerate((first, second))]
    results: dict[int, Tensor] = {}

    def work(seed: int, pipe: Any) -> None:
        results[seed] = case.run(pipe, seed=seed, **prompt)

    threads = [threading.Thread(target=work, args=(seed, pipe)) for seed, pipe in enumerate((first, second))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed, latents in enumerate(expected):
        torch.testing.assert_close(results[seed], latents, rtol=1e-5, atol=1e-6)


def test_a_pipeline_without_a_denoiser_is_refused() -> None:
    from diffusers import DiffusionPipeline

    class Empty(DiffusionPipeline):
        def __init__(self, scheduler: Any) -> None:
            super().__init__()
            self.register_modules(scheduler=scheduler)

    with pytest.raises(HiCacheError, match=r"none of its components .* must have a denoiser"):
        hicache_compile(Empty(by_name("FluxPipeline").build().scheduler), HiCache())


def test_a_batch_of_four_prompts_equals_four_runs_of_one() -> None:
    case = by_name("PixArtSigmaPipeline")
    pipeline = cached(case)
    prompts = ["a cat", "a dog", "a ship", "a tree"]
    noise = torch.randn(4, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    together = case.run(pipeline, prompt=prompts, negative_prompt=[""] * 4, latents=noise)
    apart = [case.run(pipeline, prompt=p, latents=n[None]) for p, n in zip(prompts, noise, strict=True)]
    alone = [
        case.run(pipeline, prompt=p, negative_prompt="", latents=n[None]) for p, n in zip(prompts, noise, strict=True)
    ]
    assert torch.allclose(together, torch.cat(alone), atol=1e-4, rtol=1e-4)
    assert len(apart) == 4
