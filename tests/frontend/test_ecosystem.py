"""Living with peft, torchao, diffusers' hooks, moves between dtypes, copies, and long processes."""

from __future__ import annotations

import copy
import functools
import gc
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

from hicache_compile import HiCache, HiCacheError, hicache_compile
from hicache_compile.frontend.denoiser import CompiledDenoiser
from tests.support.models import ToyDiT, flux_inputs, random_flux, sample

STEPS = 8


@pytest.fixture(autouse=True)
def fresh_dynamo() -> None:
    torch._dynamo.reset()
    counters.clear()


def captures() -> int:
    return int(counters["stats"]["unique_graphs"])


def run(denoiser: nn.Module, dtype: torch.dtype = torch.float32) -> Tensor:
    inputs = {name: value.to(dtype) for name, value in flux_inputs().items()}
    return sample(denoiser, inputs, STEPS)


def lora() -> Any:
    from peft import LoraConfig

    return LoraConfig(r=4, lora_alpha=4, init_lora_weights=False, target_modules=["to_q", "to_k", "to_v"])


class TestLora:
    def test_load_scale_fuse_and_unload(self) -> None:
        compiled = hicache_compile(random_flux(1, 1), HiCache(interval=1), backend="aot_eager")
        base = run(compiled)
        torch.manual_seed(0)
        compiled.add_adapter(lora(), adapter_name="a")
        changed = run(compiled)
        assert torch.equal(changed, run(compiled._orig_mod))
        assert not torch.allclose(changed, base)
        for change in (
            lambda: compiled.set_adapters(["a"], [0.5]),
            lambda: compiled.set_adapters(["a"], [0.7]),
            compiled.disable_lora,
            compiled.enable_lora,
            compiled.fuse_lora,
            compiled.unfuse_lora,
            compiled.unload_lora,
        ):
            change()
            assert torch.equal(run(compiled), run(compiled._orig_mod))
        assert torch.allclose(run(compiled), base, atol=1e-5)

    def test_no_more_captures_than_torch_compile_needs(self) -> None:
        def walk(denoiser: nn.Module, model: Any) -> list[int]:
            found = []
            for change in (
                lambda: None,
                lambda: model.add_adapter(lora(), adapter_name="a"),
                lambda: model.set_adapters(["a"], [0.5]),
                lambda: model.set_adapters(["a"], [0.7]),
                lambda: model.set_adapters(["a"], [0.0]),
            ):
                change()
                run(denoiser)
                found.append(captures())
            return found

        plain = random_flux(1, 1)
        theirs = walk(torch.compile(plain, backend="aot_eager"), plain)
        torch._dynamo.reset()
        counters.clear()
        compiled = hicache_compile(random_flux(1, 1), HiCache(interval=3), backend="aot_eager")
        assert walk(compiled, compiled) == theirs

    def test_hot_swap_drops_anchors_and_compiles_nothing(self, tmp_path: Path) -> None:
        from safetensors.torch import load_file

        donor = random_flux(1, 1)
        torch.manual_seed(1)
        donor.add_adapter(lora(), adapter_name="b")
        donor.save_lora_adapter(tmp_path / "b", adapter_name="b")
        weights = load_file(next((tmp_path / "b").glob("*.safetensors")))
        compiled = hicache_compile(random_flux(1, 1), HiCache(interval=4), backend="aot_eager")
        torch.manual_seed(0)
        compiled.add_adapter(lora(), adapter_name="a")
        inputs = flux_inputs()
        with torch.no_grad(), compiled.trajectory(STEPS):
            for step in range(STEPS):
                if step == 4:
                    before = captures()
                    compiled.load_lora_adapter(weights, adapter_name="a", hotswap=True, prefix=None)
                compiled(**inputs, timestep=torch.full((2,), 1 - step / STEPS))
        assert compiled.report().decisions() == "FFF.F.F."  # step 4 starts over; at 6 the interval is due
        assert captures() == before

    def test_through_a_pipeline(self, tmp_path: Path) -> None:
        from diffusers import FluxPipeline

        from tests.pipelines import by_name

        case = by_name("FluxPipeline")
        donor = case.build()
        torch.manual_seed(1)
        donor.transformer.add_adapter(lora())
        from peft.utils import get_peft_model_state_dict

        FluxPipeline.save_lora_weights(tmp_path, get_peft_model_state_dict(donor.transformer))
        expected = case.run(donor)
        pipeline = hicache_compile(case.build(), HiCache(interval=1), backend="eager")
        base = case.run(pipeline)
        pipeline.load_lora_weights(tmp_path)
        assert torch.allclose(case.run(pipeline), expected, atol=1e-5)
        pipeline.unload_lora_weights()
        assert torch.equal(case.run(pipeline), base)


class TestWeights:
    def test_layerwise_casting_in_one_graph(self) -> None:
        model = random_flux(1, 1).to(torch.bfloat16)
        model.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.bfloat16)
        expected = run(model, torch.bfloat16)
        compiled = hicache_compile(model, HiCache(interval=1), backend="aot_eager")
        assert torch.equal(run(compiled, torch.bfloat16), expected)
        compiled.policy = HiCache(interval=3)
        run(compiled, torch.bfloat16)
        report = compiled.report()
        assert (report.graph_breaks, report.recompiles, report.programs) == (0, 0, 2)
        assert next(model.transformer_blocks[0].attn.to_q.parameters()).dtype == torch.float8_e4m3fn

    def test_layerwise_casting_afterwards(self) -> None:
        compiled = hicache_compile(random_flux(1, 1).to(torch.bfloat16), HiCache(interval=3), backend="aot_eager")
        run(compiled, torch.bfloat16)
        compiled.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.bfloat16)
        run(compiled, torch.bfloat16)
        assert compiled.report().graph_breaks == 0

    def test_int8_weights(self) -> None:
        quantization = pytest.importorskip("torchao.quantization")
        model = random_flux(1, 1)
        quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
        expected = run(model)
        compiled = hicache_compile(model, HiCache(interval=1), backend="aot_eager")
        assert torch.equal(run(compiled), expected)
        compiled.policy = HiCache(interval=3)
        cached = run(compiled)
        assert (cached - expected).norm() / expected.norm() < 0.02
        assert compiled.report().graph_breaks == 0

    def test_to_another_dtype_and_back(self) -> None:
        compiled = hicache_compile(random_flux(1, 1), HiCache(interval=3), backend="aot_eager")
        first = run(compiled)
        compiled.to(torch.bfloat16)
        assert compiled.dtype == torch.bfloat16
        assert torch.isfinite(run(compiled, torch.bfloat16)).all()
        compiled._orig_mod.load_state_dict(random_flux(1, 1).state_dict())
        compiled.to(torch.float32)
        compiled.load_state_dict(random_flux(1, 1).state_dict())
        assert torch.equal(run(compiled), first)


class TestCopies:
    def test_deepcopy_is_a_denoiser_of_its_own(self) -> None:
        compiled = hicache_compile(random_flux(1, 1), HiCache(interval=3), backend="eager")
        expected = run(compiled)
        other = copy.deepcopy(compiled)
        assert isinstance(other, CompiledDenoiser)
        assert other._orig_mod is not compiled._orig_mod
        other.policy = HiCache(interval=1)
        assert compiled.policy == HiCache(interval=3)
        assert torch.equal(run(compiled), expected)
        assert other.report().history == {}

    def test_copy_has_the_weights_and_anchors_of_its_own(self) -> None:
        compiled = hicache_compile(random_flux(1, 1), HiCache(interval=3), backend="eager")
        expected = run(compiled)
        other = copy.copy(compiled)
        assert all(mine is theirs for mine, theirs in zip(other.parameters(), compiled.parameters(), strict=True))
        other.policy = HiCache(interval=1)
        assert not torch.equal(run(other), expected)
        assert torch.equal(run(compiled), expected)

    def test_pickle_says_what_to_do_instead(self) -> None:
        compiled = hicache_compile(ToyDiT(), HiCache(), backend="eager")
        for write in (pickle.dumps, lambda module: torch.save(module, "/dev/null")):
            with pytest.raises(HiCacheError, match="cannot be pickled: must be saved as the module it wraps"):
                write(compiled)

    def test_save_pretrained(self, tmp_path: Path) -> None:
        from diffusers import FluxTransformer2DModel

        compiled = hicache_compile(random_flux(1, 1), HiCache(interval=1), backend="eager")
        compiled.save_pretrained(tmp_path)
        loaded = FluxTransformer2DModel.from_pretrained(tmp_path).eval()
        assert torch.equal(run(loaded), run(compiled))


class TestShapes:
    @pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
    def test_dynamic_resolution_compiles_once(self, backend: str) -> None:
        compiled = hicache_compile(ToyDiT(), HiCache(interval=3), backend=backend, dynamic=True)
        for tokens in (8, 12, 20, 8):
            x = torch.randn(2, tokens, 16)
            with torch.no_grad(), compiled.trajectory(6):
                for step in range(6):
                    compiled(x, torch.full((2,), 1 - step / 6))
            assert compiled.report().decisions() == "FFF..F"
        assert captures() == 1
        assert compiled.report().programs == 2

    def test_another_batch_and_another_number_of_steps(self) -> None:
        compiled = hicache_compile(ToyDiT(), HiCache(interval=3), backend="aot_eager", dynamic=False)
        for batch, steps in ((1, 6), (3, 9), (1, 12), (3, 6)):
            with torch.no_grad(), compiled.trajectory(steps):
                for step in range(steps):
                    compiled(torch.randn(batch, 8, 16), torch.full((batch,), 1 - step / steps))
            assert compiled.report().decisions() == HiCache(interval=3).decisions(steps)
        assert captures() == 2

    def test_inference_mode(self) -> None:
        compiled = hicache_compile(ToyDiT(), HiCache(interval=3), backend="aot_eager")
        results = []
        for mode in (torch.no_grad, torch.inference_mode):
            x = torch.randn(1, 8, 16, generator=torch.Generator().manual_seed(0))
            with mode(), compiled.trajectory(6):
                for step in range(6):
                    x = x - compiled(x, torch.full((1,), 1 - step / 6)) / 6
            results.append(x.clone())
        assert torch.equal(results[0], results[1])


@pytest.mark.slow
def test_a_thousand_trajectories_leave_memory_flat() -> None:
    import psutil

    compiled = hicache_compile(ToyDiT(), HiCache(interval=3), backend="aot_eager")
    process = psutil.Process()
    x, seen = torch.randn(1, 64, 16), []
    for trajectory in range(1000):
        with torch.no_grad(), compiled.trajectory(5):
            for step in range(5):
                compiled(x, torch.full((1,), 1 - step / 5))
        if trajectory % 100 == 99:
            gc.collect()
            seen.append(process.memory_info().rss)
    assert max(seen[2:]) - min(seen[2:]) < 8 << 20
    assert (compiled.report().recompiles, captures()) == (0, 1)
    assert len(compiled.report().history["default"]) <= 256


def test_a_pipeline_made_from_a_compiled_one_is_cached() -> None:
    """diffusers' ``from_pipe`` compares classes exactly, so the denoiser is named; ``AutoPipeline`` does not."""
    from diffusers import AutoPipelineForImage2Image, FluxImg2ImgPipeline

    from tests.pipelines import by_name

    case = by_name("FluxPipeline")
    pipe = hicache_compile(case.build(), HiCache(interval=3), backend="eager")
    picture = case.run(pipe, steps=2)
    for made in (
        FluxImg2ImgPipeline.from_pipe(pipe, transformer=pipe.transformer),
        AutoPipelineForImage2Image.from_pipe(pipe),
    ):
        assert made.transformer is pipe.transformer
        image = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
        made("a cat", image=image, strength=1.0, num_inference_steps=8, height=16, width=16, output_type="latent")
        assert pipe.transformer.report().decisions() == "FFF..F.."
    assert picture is not None


def test_a_loop_may_be_compiled_around_it() -> None:
    model = ToyDiT(depth=2).eval()
    compiled = hicache_compile(model, HiCache(interval=3), backend="eager")

    def sampling(denoiser: nn.Module, x: Tensor) -> Tensor:
        with torch.no_grad():
            for step in range(STEPS):
                x = x - denoiser(x, torch.full((1,), 1 - step / STEPS)) / STEPS
        return x

    x = torch.randn(1, 6, 16)
    expected = sampling(hicache_compile(model, HiCache(interval=3), backend="eager"), x)
    whole = torch.compile(sampling, backend="eager")
    for _ in range(2):
        assert torch.equal(whole(compiled, x), expected)
    report = compiled.report()
    assert report.history["default"] == ["FFF..F.."] * 2
    assert (report.programs, report.recompiles) == (2, 0)


class Skip:
    def __call__(self, hidden: Tensor, *_: Tensor) -> Tensor:
        return hidden * 1.0


def skipping(hook: Skip) -> Any:
    return functools.partial(lambda module, *args: hook(*args), hook)


def test_hooks_that_are_made_anew_in_each_step_are_not_compiled_for_ever(caplog: pytest.LogCaptureFixture) -> None:
    """As by a guider that skips a layer in one of the calls of a step."""
    model = ToyDiT(depth=2).eval()
    compiled = hicache_compile(model, HiCache(interval=3), backend="eager")
    block: Any = model.layers[1]
    made: list[Skip] = []  # kept: where the next has the address of the last, Dynamo takes one for the other

    def sampled(denoiser: nn.Module) -> Tensor:
        x = torch.randn(1, 6, 16, generator=torch.Generator().manual_seed(0))
        for step in range(STEPS):
            time = torch.full((1,), 1 - step / STEPS)
            whole = denoiser(x, time)
            made.append(Skip())
            block.forward = skipping(made[-1])
            with compiled.cache_context("skipped"):
                skipped = denoiser(x, time)
            del block.forward
            x = x - (2 * whole - skipped) / STEPS
        return x

    programs = []
    with torch.no_grad():
        for _ in range(4):
            found = sampled(compiled)
            programs.append(compiled.report().programs)
        assert programs[-1] == programs[-2]
        assert "the same graph was captured in the same steps of several runs, 5 times in all" in caplog.text
        assert "." in compiled.report().decisions()
        compiled.policy = HiCache(interval=1)
        torch.testing.assert_close(sampled(compiled), sampled(model))
    assert found.isfinite().all()
