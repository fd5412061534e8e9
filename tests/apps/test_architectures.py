"""``hicache explain`` and ``hicache export``: names, folders, configurations, and inputs of any size."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from hicache_compile import HiCacheError, hicache_compile
from hicache_compile.architectures import KNOWN, Request, example_inputs, resolve
from hicache_compile.architectures.inputs import INPUTS
from hicache_compile.cli import app
from hicache_compile.export import OnnxDenoiser
from tests.support.models import random_flux

# What the published repositories say of themselves, in billions of parameters (DiT: .675 there; diffusers gives every
# block a time embedding of its own).
PARAMETERS = {
    "flux.1-dev": 11.9, "flux.1-schnell": 11.9, "qwen-image": 20.4, "hunyuan-video": 12.8, "wan2.1-14b": 14.3,
    "wan2.1-1.3b": 1.42, "wan2.2-a14b": 14.3, "sd3-medium": 2.03, "sd3.5-large": 8.06, "pixart-sigma": 0.611,
    "dit-xl-2": 0.750, "ltx-video": 1.92,
}  # fmt: skip


@pytest.mark.parametrize("name", KNOWN)
def test_known_architectures_have_the_published_size(name: str) -> None:
    model = resolve(name).without_weights()
    billions = sum(parameter.numel() for parameter in model.parameters()) / 1e9
    assert billions == pytest.approx(PARAMETERS[name], rel=0.02)
    assert next(model.parameters()).device.type == "meta"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pixart-sigma", "flux.1-dev"])
def test_explain_a_full_size_model(name: str) -> None:
    done = CliRunner().invoke(app, ["explain", name, "--json", "--policy", "HiCache", "--policy", "FORA"])
    assert done.exit_code == 0, done.output
    data = json.loads(done.stdout)
    explained = data["explained"]
    known = {"flux.1-dev": (74.38e12, 57), "pixart-sigma": (6.63e12, 28)}
    flops, blocks = known[name]
    assert explained["flops_full"] == pytest.approx(flops, rel=1e-3)
    assert len(explained["blocks"]) == blocks
    assert [row["name"] for row in data["compared"]] == ["HiCache", "FORA"]


SMALL = {
    "FluxTransformer2DModel": {"num_layers": 1, "num_single_layers": 1},
    "QwenImageTransformer2DModel": {"num_layers": 2},
    "HunyuanVideoTransformer3DModel": {"num_layers": 1, "num_single_layers": 1, "num_refiner_layers": 1},
    "WanTransformer3DModel": {"num_layers": 2},
    "SD3Transformer2DModel": {"num_layers": 2, "pos_embed_max_size": 64},
    "PixArtTransformer2DModel": {"num_layers": 2, "caption_channels": 64},
    "DiTTransformer2DModel": {"num_layers": 2},
    "LTXVideoTransformer3DModel": {"num_layers": 2},
}


@pytest.mark.parametrize("cls", INPUTS)
def test_a_bare_configuration_is_explained(cls: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"_class_name": cls, **SMALL[cls]}))
    frames = ["--frames", "9"] if "3D" in cls else []
    size = [] if cls in ("DiTTransformer2DModel", "SD3Transformer2DModel") else ["--height", "128", "--width", "256"]
    dump = ["--dump", str(tmp_path / "dump")]
    done = CliRunner().invoke(app, ["explain", str(path), *size, *frames, *dump, "--json", "--policy", "HiCache"])
    assert done.exit_code == 0, done.output
    explained = json.loads(done.stdout)["explained"]
    assert explained["flops_forecast"] < 0.1 * explained["flops_full"]
    assert (tmp_path / "dump" / "index.html").is_file()


@pytest.fixture
def pipeline(tmp_path: Path) -> Path:
    """A pipeline's folder, as far as it is read."""
    random_flux(1, 2).save_pretrained(tmp_path / "transformer")  # type: ignore[operator]  # of diffusers
    (tmp_path / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    return tmp_path


def test_folders_are_explained_as_tables(pipeline: Path) -> None:
    for path in (pipeline, pipeline / "transformer", pipeline / "transformer" / "config.json"):
        done = CliRunner().invoke(app, ["explain", str(path), "--height", "128", "--steps", "20"])
        assert done.exit_code == 0, done.output
        assert "3 blocks: 1 in transformer_blocks, 2 in single_transformer_blocks" in done.stdout
        assert "HiCache N=7, stack" in done.stdout


def test_a_folder_is_exported(pipeline: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    out = pipeline / "flux.onnx"
    arguments = ["export", str(pipeline), "--out", str(out), "--height", "128", "--steps", "8"]
    done = CliRunner().invoke(app, [*arguments, "--policy", '{"preset": "HiCache", "interval": 3, "scope": "stack"}'])
    assert done.exit_code == 0, done.output
    assert "6 arguments" in done.stdout
    program = str(pipeline / "flux.pt2")
    done = CliRunner().invoke(app, [*arguments, "--out", program, "--format", "pt2", "--json"])
    found = json.loads(done.stdout)
    assert (found["file"], found["arguments"], found["anchors"]) == (program, 6, 3)
    model = resolve(str(pipeline)).with_weights()
    inputs = example_inputs(model, Request(height=128))
    with torch.no_grad():
        expected = model(**inputs)[0]
    given = {name: value.numpy() for name, value in inputs.items() if isinstance(value, torch.Tensor)}
    (mine,) = OnnxDenoiser(out)(**given)
    torch.testing.assert_close(torch.from_numpy(mine), expected, rtol=1e-4, atol=1e-5)
    assert onnxruntime is not None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["explain", "flux.9"],
            "must be a folder of a diffusers model or pipeline, a config.json, or one of flux.1-dev",
        ),
        (["explain", "flux.1-dev", "--height", "100"], "height = 100: must be a multiple of 16"),
        (["explain", "wan2.1-1.3b", "--frames", "10"], "frames = 10: must be 1 more than a multiple of 4"),
        (["explain", "dit-xl-2", "--dtype", "int8"], "explain.dtype = 'int8': must be one of float32"),
        (["explain", "dit-xl-2", "--policy", "HiCash"], "HiCash"),
        (["export", "dit-xl-2", "--out", "x.onnx"], "must be a folder with weights"),
        (["export", "dit-xl-2", "--out", "x.onnx", "--format", "tf"], "export.format = 'tf': must be one of onnx"),
        (["export", "dit-xl-2", "--out", "x.onnx", "--dynamic", "x"], "export.dynamic = 'x': must be one of none"),
    ],
)
def test_errors_name_what_is_allowed(arguments: list[str], message: str) -> None:
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 2
    assert message in " ".join(done.output.split())


@pytest.mark.parametrize(
    ("text", "message"),
    [("no json", "must be the configuration of a diffusers model"), ('{"_class_name": "Nothing"}', "is a Nothing")],
)
def test_other_configurations_are_refused(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(HiCacheError, match=message):
        resolve(str(path))


def test_other_classes_say_what_to_do() -> None:
    from diffusers import UNet2DModel

    with pytest.raises(HiCacheError, match=r"model is a UNet2DModel: must be one of Flux.*compiled\.explain\(\)"):
        example_inputs(UNet2DModel(block_out_channels=(32,), down_block_types=("DownBlock2D",),
                                   up_block_types=("UpBlock2D",)), Request())  # fmt: skip


def test_example_inputs_warm_a_compiled_denoiser_up() -> None:
    model = random_flux(1, 1)
    compiled = hicache_compile(model, "HiCache", backend="eager")
    compiled.warmup(example_inputs(model, Request(height=64, batch=2)))
    assert compiled.report().programs == 2
