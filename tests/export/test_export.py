"""The exported denoiser samples as the one it was exported from: ONNX Runtime, ``torch.export``, AOTInductor."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hicache_compile import DMD, HiCache, HiCacheError, Interval, TaylorSeer, hicache_compile
from hicache_compile.demo import digits
from hicache_compile.demo.sampling import load_model
from hicache_compile.export import OnnxDenoiser, export_aoti, export_onnx, export_program, files
from hicache_compile.policy.json_codec import as_policy
from hicache_compile.policy.policy import Policy
from tests.support.full_disk import room
from tests.support.models import ToyDiT, demo_inputs, flux_inputs, random_flux

onnxruntime = pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx")

Arguments = dict[str, Tensor]
Denoise = Callable[[Arguments], Tensor]


def trajectory(
    denoise: Denoise, inputs: Mapping[str, Tensor], steps: int, sample: str, time: str, scale: float
) -> Tensor:
    x = inputs[sample]
    for step in range(steps):
        now = torch.full((len(x),), scale * (1 - step / steps))
        x = x - denoise({**inputs, sample: x, time: now})[:, : x.shape[1]] / steps
    return x


def in_onnxruntime(denoiser: OnnxDenoiser) -> Denoise:
    return lambda arguments: torch.from_numpy(denoiser(**{n: v.numpy() for n, v in arguments.items()})[0])


def in_torch(model: nn.Module) -> Denoise:
    def denoise(arguments: Arguments) -> Tensor:
        with torch.no_grad():
            out = (
                model(**arguments, return_dict=False)
                if not isinstance(model._orig_mod, ToyDiT)
                else [model(**arguments)]
            )
        return out[0]

    return denoise


def dit() -> tuple[nn.Module, Arguments]:
    from diffusers import DiTTransformer2DModel

    torch.manual_seed(0)
    model = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, num_layers=2, sample_size=8, num_embeds_ada_norm=10
    ).eval()
    return model.requires_grad_(False), {"hidden_states": torch.randn(2, 4, 8, 8), "class_labels": torch.tensor([1, 2])}


def wan() -> tuple[nn.Module, Arguments]:
    from diffusers import WanTransformer3DModel

    torch.manual_seed(0)
    model = WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=16, freq_dim=16,
        ffn_dim=32, num_layers=2, rope_max_seq_len=32,
    ).eval()  # fmt: skip
    return model.requires_grad_(False), {
        "hidden_states": torch.randn(2, 4, 2, 8, 8),
        "encoder_hidden_states": torch.randn(2, 6, 16),
    }


def flux() -> tuple[nn.Module, Arguments]:
    return random_flux(1, 2).requires_grad_(False), flux_inputs()


def unet() -> tuple[nn.Module, Arguments]:
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    model = UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, block_out_channels=(16, 32), layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=16, attention_head_dim=2, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    ).eval()  # fmt: skip
    return model.requires_grad_(False), {
        "sample": torch.randn(2, 4, 8, 8),
        "encoder_hidden_states": torch.randn(2, 6, 16),
    }


MODELS: dict[str, tuple[Callable[[], tuple[nn.Module, Arguments]], float]] = {
    "flux": (flux, 1.0),
    "dit": (dit, 1000.0),
    "wan": (wan, 1000.0),
}


def example(inputs: Arguments, scale: float = 1.0, **fixed: Any) -> dict[str, Any]:
    batch = len(inputs["hidden_states"])
    when = torch.full((batch,), scale)
    return {**inputs, "timestep": when.long() if scale > 1 else when, "return_dict": False, **fixed}


def test_a_unet_whose_timestep_is_one_number(tmp_path: Path) -> None:
    model, inputs = unet()
    given = {**inputs, "timestep": torch.tensor(900)}
    manifest = export_onnx(model, HiCache(interval=3), given, tmp_path / "unet.onnx")
    assert manifest.outputs == ("out_sample",)
    denoiser = OnnxDenoiser(tmp_path / "unet.onnx")
    with denoiser.trajectory(4):
        (made,) = denoiser(**given)  # tensors too
    np.testing.assert_allclose(made, model(**given).sample, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "scope", "dynamic"),
    [
        ("flux", "module", "batch"),
        ("flux", "stack", False),
        ("dit", "module", False),
        ("dit", "stack", "batch"),
        ("wan", "module", False),
        ("wan", "stack", "batch"),
    ],
)
def test_onnx_samples_like_torch(name: str, scope: str, dynamic: bool | str, tmp_path: Path) -> None:
    build, scale = MODELS[name]
    model, inputs = build()
    policy, path = HiCache(interval=4, scope=scope), tmp_path / "denoiser.onnx"
    export_onnx(model, policy, example(inputs, scale), path, dynamic=dynamic)
    onnx.checker.check_model(str(path))
    denoiser, compiled = OnnxDenoiser(path), hicache_compile(model, policy, backend="eager")
    grown = {n: torch.cat([v, v[:1]]) if len(v) == 2 else v for n, v in inputs.items()}
    for given in (inputs, grown) if dynamic else (inputs,):

        def step(denoise: Denoise) -> Denoise:
            return lambda a: denoise({**a, "timestep": a["timestep"].long() if scale > 1 else a["timestep"]})

        with denoiser.trajectory(12):
            mine = trajectory(step(in_onnxruntime(denoiser)), given, 12, "hidden_states", "timestep", scale)
        with compiled.trajectory(12):
            theirs = trajectory(step(in_torch(compiled)), given, 12, "hidden_states", "timestep", scale)
        assert compiled.report().forecast == 7
        assert (mine - theirs).norm() / theirs.norm() < 1e-4  # asked by the issue; rounding gives some 1e-7


@pytest.mark.slow
def test_tokens_may_vary(tmp_path: Path) -> None:
    model, inputs = flux()
    policy, path = HiCache(interval=4, scope="stack"), tmp_path / "denoiser.onnx"
    manifest = export_onnx(model, policy, example(inputs), path, dynamic=True)
    (ring,) = manifest.state
    assert ring.shape[0] == 3
    assert ring.shape[3] == 32
    assert all(isinstance(size, str) for size in ring.shape[1:3])
    more = flux_inputs(tokens=36, batch=3)
    denoiser, compiled = OnnxDenoiser(path), hicache_compile(model, policy, backend="eager")
    with denoiser.trajectory(8):
        mine = trajectory(in_onnxruntime(denoiser), more, 8, "hidden_states", "timestep", 1.0)
    with compiled.trajectory(8):
        theirs = trajectory(in_torch(compiled), more, 8, "hidden_states", "timestep", 1.0)
    assert (mine - theirs).norm() / theirs.norm() < 1e-4
    with pytest.raises(HiCacheError, match="argument 'img_ids' has shape"):
        denoiser(**{**{n: v.numpy() for n, v in more.items()}, "timestep": np.ones(3, np.float32),
                    "img_ids": inputs["img_ids"].numpy()})  # fmt: skip


def test_where_sizes_cannot_vary_it_says_so(tmp_path: Path) -> None:
    model, inputs = dit()
    with pytest.raises(HiCacheError, match="must be 'batch' or False for this denoiser"):
        export_onnx(model, HiCache(scope="stack"), example(inputs, 1000.0), tmp_path / "dit.onnx", dynamic=True)


@pytest.mark.slow
def test_the_demo_model_in_onnxruntime(tmp_path: Path) -> None:
    model, inputs = load_model().requires_grad_(False), demo_inputs([1, 2, 3])
    path = tmp_path / "denoiser.onnx"
    manifest = export_onnx(model, HiCache(interval=6), example(inputs), path)
    for policy in (HiCache(interval=6), HiCache(interval=1)):
        denoiser, compiled = OnnxDenoiser(path, policy), hicache_compile(model, policy, backend="eager")
        with denoiser.trajectory(50):
            mine = trajectory(in_onnxruntime(denoiser), inputs, 50, "hidden_states", "timestep", 1.0)
        with compiled.trajectory(50):
            theirs = trajectory(in_torch(compiled), inputs, 50, "hidden_states", "timestep", 1.0)
        assert (mine - theirs).norm() / theirs.norm() < 1e-4
        assert mine.shape == (3, digits.TOKENS, digits.CHANNELS)
        assert compiled.report().decisions() == policy.decisions(50)
    letters = "".join("F" if computing else "." for computing in manifest.plan["computing"])
    assert letters == HiCache(interval=6).decisions(50)


class Toy:
    """The toy model exported once for the quick tests."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "toy.onnx"
        self.inputs = {"x": torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0))}
        self.policy = HiCache(interval=4, warmup=2)
        self.manifest = export_onnx(ToyDiT(), self.policy, {**self.inputs, "t": torch.rand(2)}, self.path)
        self.arguments = {"x": self.inputs["x"].numpy(), "t": np.ones(2, np.float32)}


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    return Toy(tmp_path_factory.mktemp("toy"))


def test_an_argument_that_is_handed_back_is_an_output(tmp_path: Path) -> None:
    class HandingBack(ToyDiT):
        def forward(self, x: Tensor, t: Tensor) -> Any:
            return super().forward(x, t), x

    arguments = {"x": torch.randn(2, 5, 16), "t": torch.rand(2)}
    path = tmp_path / "toy.onnx"
    manifest = export_onnx(HandingBack(), HiCache(interval=3), arguments, path)
    assert [*manifest.outputs] == ["sample_0", "sample_1"]
    denoiser = OnnxDenoiser(path)
    with denoiser.trajectory(3):
        made, given = denoiser(**{name: value.numpy() for name, value in arguments.items()})
    np.testing.assert_allclose(made, ToyDiT()(**arguments).detach(), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(given, arguments["x"])


class Named(ToyDiT):
    """Its arguments have names that the exported graph has too; one tensor may be given twice."""

    def forward(self, sample: Tensor, timestep: Tensor, position: Tensor, weights: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(sample + position, timestep) * weights


def test_names_that_are_there_twice_and_tensors(tmp_path: Path) -> None:
    scale = torch.randn(2, 5, 16)
    example = {"sample": torch.randn(2, 5, 16), "timestep": torch.rand(2), "position": scale, "weights": scale}
    manifest = export_onnx(Named(), HiCache(interval=3), example, tmp_path / "toy.onnx")
    assert [port.name for port in manifest.arguments] == ["sample", "timestep", "position_", "weights_"]
    assert manifest.outputs == ("out_sample",)
    given = {**example, "weights": torch.randn(2, 5, 16)}
    denoiser = OnnxDenoiser(tmp_path / "toy.onnx")
    arrays = dict(zip((port.name for port in manifest.arguments), (x.numpy() for x in given.values()), strict=True))
    with denoiser.trajectory(3):
        (made,) = denoiser(**arrays)
    np.testing.assert_allclose(made, Named()(**given).detach(), rtol=1e-4, atol=1e-5)


def test_the_graph_has_one_if_and_names(toy: Toy) -> None:
    graph = onnx.load(str(toy.path)).graph
    assert [node.op_type for node in graph.node].count("If") == 1
    names = [entry.name for entry in graph.input]
    assert names == ["x", "t", "computing", "position", "weights", *(f"anchors_{i}" for i in range(6))]
    assert [entry.name for entry in graph.output] == ["sample", *(f"next_anchors_{i}" for i in range(6))]
    branches = {a.name: Counter(n.op_type for n in a.g.node) for n in graph.node for a in n.attribute if a.g.node}
    heavy = {name: ops["MatMul"] + ops["Gemm"] for name, ops in branches.items()}
    assert heavy["else_branch"] < heavy["then_branch"] / 2


def test_one_branch_runs_a_step(toy: Toy, tmp_path: Path) -> None:
    options = onnxruntime.SessionOptions()
    options.enable_profiling = True
    options.profile_file_prefix = str(tmp_path / "profile")
    denoiser = OnnxDenoiser(toy.path, session_options=options)
    with denoiser.trajectory(6):
        for _ in range(6):
            denoiser(**toy.arguments)
    events = json.loads(Path(denoiser.session.end_profiling()).read_text())
    runs = Counter(
        event["args"]["op_name"] for event in events if event.get("cat") == "Node" and "op_name" in event["args"]
    )
    assert runs["If"] == 6
    attentions = runs["Softmax"] or runs["FusedMatMul"]
    assert attentions == 3 * 3  # three blocks in the three full steps of FF...F


def test_guidance_branches_and_runs_are_apart(toy: Toy) -> None:
    denoiser = OnnxDenoiser(toy.path)

    def run(names: tuple[str, ...]) -> dict[str, list[np.ndarray[Any, Any]]]:
        seen: dict[str, list[np.ndarray[Any, Any]]] = {name: [] for name in names}
        with denoiser.trajectory(6):
            for step in range(6):
                for name in names:
                    with denoiser.cache_context(name):
                        x = toy.arguments["x"] * (1 if name == "cond" else -1)
                        seen[name] += denoiser(x=x, t=np.full(2, 1 - step / 6, np.float32))
        return seen

    both, alone = run(("cond", "uncond")), run(("cond",))
    np.testing.assert_array_equal(both["cond"], alone["cond"])


def test_another_policy_within_the_rings(toy: Toy) -> None:
    policy = TaylorSeer(interval=3, order=1, warmup=1)
    denoiser, compiled = OnnxDenoiser(toy.path, policy), hicache_compile(ToyDiT(), policy, backend="eager")
    with denoiser.trajectory(9):
        mine = trajectory(in_onnxruntime(denoiser), toy.inputs, 9, "x", "t", 1.0)
    with compiled.trajectory(9):
        theirs = trajectory(in_torch(compiled), toy.inputs, 9, "x", "t", 1.0)
    torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)
    with pytest.raises(HiCacheError, match="needs 5 anchors: must be at most 3"):
        OnnxDenoiser(toy.path, HiCache(order=4))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": np.zeros((2, 6, 16), np.float32)}, r"argument 'x' has shape \[2, 6, 16\]: must be \[2, 5, 16\]"),
        ({"x": np.zeros((2, 5, 16))}, "argument 'x' is float64: must be float32"),
        ({"t": None}, "arguments: t missing, none unknown; must be x, t"),
        ({"y": np.zeros(1)}, "arguments: none missing, y unknown"),
    ],
)
def test_bad_arguments_change_nothing(toy: Toy, change: dict[str, Any], message: str) -> None:
    denoiser = OnnxDenoiser(toy.path)
    bad = {name: value for name, value in {**toy.arguments, **change}.items() if value is not None}
    with denoiser.trajectory(4):
        first = denoiser(**toy.arguments)
        with pytest.raises(HiCacheError, match=message):
            denoiser(**bad)
        for _ in range(3):
            denoiser(**toy.arguments)
        with pytest.raises(HiCacheError, match="the trajectory has 4 steps"):
            denoiser(**toy.arguments)
    np.testing.assert_array_equal(denoiser(**toy.arguments), first)


def test_bad_state_is_refused(toy: Toy) -> None:
    denoiser = OnnxDenoiser(toy.path)
    value = onnxruntime.OrtValue.ortvalue_from_numpy
    rings = [value(np.zeros(port.shape, np.float32)) for port in toy.manifest.state]
    weights = np.zeros(3, np.float32)
    control = {"computing": True, "position": 0, "weights": weights}
    with pytest.raises(HiCacheError, match="state has 5 tensors: must be 6"):
        denoiser.step(toy.arguments, control, rings[1:])
    with pytest.raises(HiCacheError, match=r"state 'anchors_0' has shape \[3, 2, 4, 16\]: must be \[3, 2, 5, 16\]"):
        denoiser.step(toy.arguments, control, [value(np.zeros((3, 2, 4, 16), np.float32)), *rings[1:]])
    with pytest.raises(HiCacheError, match="state 'anchors_0' is float64: must be float32"):
        denoiser.step(toy.arguments, control, [value(np.zeros((3, 2, 5, 16))), *rings[1:]])


def test_other_files_are_refused(toy: Toy, tmp_path: Path) -> None:
    bare = onnx.load(str(toy.path))
    del bare.metadata_props[:]
    onnx.save(bare, str(tmp_path / "bare.onnx"))
    with pytest.raises(HiCacheError, match="it has no manifest"):
        OnnxDenoiser(tmp_path / "bare.onnx")
    with pytest.raises(HiCacheError, match="must be a file of export_onnx"):
        OnnxDenoiser(tmp_path / "nothing.onnx")


def test_damaged_files_are_refused(toy: Toy, tmp_path: Path) -> None:
    path = tmp_path / "damaged.onnx"
    for damaged in (toy.path.read_bytes()[:2000], b"", b"version https://git-lfs.github.com/spec/v1"):
        path.write_bytes(damaged)
        with pytest.raises(HiCacheError, match=r"must be a file that ONNX Runtime can run with \['CPU"):
            OnnxDenoiser(path)
    changes: dict[str, Callable[[dict[str, Any]], Any]] = {
        "KeyError: 'state'": lambda manifest: manifest.pop("state"),
        "'depth'": lambda manifest: manifest.pop("depth"),
        "'comment'": lambda manifest: manifest.update(comment="mine"),
        "manifest.depth = 'x'": lambda manifest: manifest.update(depth="x"),
        "TypeError": lambda manifest: manifest.update(arguments=["x"]),
    }
    for message, change in changes.items():
        model = onnx.load(str(toy.path))
        (entry,) = model.metadata_props
        manifest = json.loads(entry.value)
        change(manifest)
        entry.value = json.dumps(manifest)
        onnx.save(model, str(path))
        with pytest.raises(HiCacheError, match=message):
            OnnxDenoiser(path)


def test_what_onnxruntime_has_no_operator_for_is_said(tmp_path: Path) -> None:
    example = {"x": torch.randn(2, 5, 16).bfloat16(), "t": torch.rand(2).bfloat16()}
    export_onnx(ToyDiT().bfloat16(), HiCache(interval=3), example, tmp_path / "toy.onnx")
    with pytest.raises(HiCacheError, match="Could not find an implementation for"):
        OnnxDenoiser(tmp_path / "toy.onnx")


EXAMPLE = {"x": torch.zeros(2, 5, 16), "t": torch.zeros(2)}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"policy": "HiCash"}, "HiCash"),
        ({"example_inputs": torch.zeros(1)}, "export.example_inputs is a Tensor: must be a dict"),
        ({"example_inputs": {"x": torch.zeros(2, 5, 16)}}, "missing a required argument: 't'; must be the arguments"),
        ({"example_inputs": {**EXAMPLE, "y": 1}}, "unexpected keyword argument 'y'; must be the arguments of one call"),
        ({"dynamic": "tokens"}, "export.dynamic = 'tokens': must be True, False or 'batch'"),
        (
            {"example_inputs": {"x": torch.zeros(1, 5, 16), "t": torch.zeros(1)}, "dynamic": "batch"},
            "have a batch of 1",
        ),
        ({"dynamic": 1}, "export.dynamic = 1: must be True, False or 'batch'"),
        (
            {"policy": Policy(Interval(3), DMD())},
            "the host does not see the anchors: use a forecaster that goes by steps",
        ),
        ({"num_steps": 0}, "export.num_steps = 0: must be an integer >= 1"),
        ({"model": nn.Linear(16, 16), "example_inputs": [torch.zeros(1, 16)]}, "export.policy: must cache something"),
        ({"model": 3}, "export.model = int: must be a torch.nn.Module"),
    ],
)
def test_bad_exports_write_nothing(arguments: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / "none.onnx"
    given: dict[str, Any] = {
        "model": ToyDiT(), "policy": HiCache(), "example_inputs": {"x": torch.zeros(2, 5, 16), "t": torch.zeros(2)}
    }  # fmt: skip
    with pytest.raises(HiCacheError, match=message):
        export_onnx(**{**given, **arguments}, path=path)
    assert not path.exists()


def test_published_values_are_those_of_the_model(tmp_path: Path) -> None:
    """As in ``hicache_compile``: FLUX's table for a FLUX, and a warning where nothing is published."""
    inputs = {**flux_inputs(batch=1), "timestep": torch.ones(1)}
    model = random_flux(1, 1)
    model.guidance_embeds = True  # a FLUX.1-dev by this
    compiled = hicache_compile(model, "MagCache", backend="eager").policy
    program = export_program(model, "MagCache", inputs, tmp_path / "m.pt2", num_steps=20)
    assert as_policy(program.policy) == compiled


@pytest.mark.parametrize("export", [export_program, export_onnx, export_aoti])
@pytest.mark.parametrize("name", ["", "folder", "x" * 300])
def test_a_place_that_cannot_be_written_is_told_before_the_work(
    export: Callable[..., Any], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "folder").mkdir()
    monkeypatch.setattr(files, "capture_call", None)  # nothing gets as far
    with pytest.raises(HiCacheError, match=r"cannot be written|must be a path"):
        export(ToyDiT(), HiCache(), EXAMPLE, tmp_path / name if name else "")


@pytest.mark.slow
@pytest.mark.parametrize("export", [export_program, export_onnx])
def test_on_a_full_disk_what_was_there_stays(export: Callable[..., Any], tmp_path: Path) -> None:
    export(ToyDiT(), HiCache(interval=3), EXAMPLE, tmp_path / "denoiser.pt2")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with room(9000), pytest.raises(HiCacheError, match="cannot be written"):
        export(ToyDiT(), HiCache(interval=5), EXAMPLE, tmp_path / "denoiser.pt2")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


WITHOUT_US = """
import json, sys, torch
path, kind = sys.argv[1:3]
manifest = json.load(open(path + ".json"))
plan = manifest["plan"]
inputs = torch.load(path + ".inputs")
graph = torch.export.load(path).module() if kind == "program" else torch._inductor.aoti_load_package(path)
state = [torch.zeros(port["shape"]) for port in manifest["state"]]
x = inputs["hidden_states"]
steps = len(plan["computing"])
with torch.no_grad():
    for step in range(steps):
        given = {**inputs, "hidden_states": x, "timestep": torch.full((len(x),), 1 - step / steps)}
        arguments = [given[port["name"]] for port in manifest["arguments"]]
        control = [torch.tensor(plan["computing"][step]), torch.tensor([plan["position"][step]]),
                   torch.tensor(plan["weights"][step])]
        sample, *state = graph(*arguments, *control, *state)
        x = x - sample / steps
assert "hicache_compile" not in sys.modules
torch.save(x, path + ".sample")
"""


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "export"), [("program", export_program), ("package", export_aoti)])
def test_a_process_without_this_library_samples_the_same_digits(
    kind: str, export: Callable[..., Any], tmp_path: Path
) -> None:
    model, inputs = load_model().requires_grad_(False), demo_inputs([4, 5])
    policy, path = HiCache(interval=6, scope="stack"), tmp_path / "denoiser.pt2"
    export(model, policy, example(inputs), path, num_steps=20)
    torch.save(inputs, f"{path}.inputs")
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_US, str(path), kind], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    compiled = hicache_compile(model, policy, backend="eager")
    with compiled.trajectory(20):
        expected = trajectory(in_torch(compiled), inputs, 20, "hidden_states", "timestep", 1.0)
    mine = torch.load(f"{path}.sample")
    assert (mine - expected).norm() / expected.norm() < 1e-5


def test_a_package_has_a_suffix(tmp_path: Path) -> None:
    with pytest.raises(HiCacheError, match=r"must end in \.pt2"):
        export_aoti(ToyDiT(), Policy, {}, tmp_path / "denoiser.so")
