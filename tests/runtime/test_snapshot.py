"""A run that was suspended goes on as if it had not been: here, in another denoiser, in another process."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hicache_compile import (
    PAB,
    Chipmunk,
    CompiledDenoiser,
    DiCache,
    DiTango,
    FBCache,
    FBCacheTeaCache,
    Handle,
    Hermite,
    HiCache,
    HiCacheError,
    Policy,
    hicache_compile,
    inspect,
)
from tests.support.models import ToyDiT, flux_inputs, random_flux

STEPS, HALF = 12, 5
POLICY = HiCache(interval=4, warmup=2)


def compiled(**options: Any) -> CompiledDenoiser:
    return hicache_compile(ToyDiT(), POLICY, backend="aot_eager", **options)


def walk(denoiser: Callable[..., Tensor], x: Tensor, steps: range) -> Tensor:
    with torch.no_grad():
        for step in steps:
            for name in ("cond", "uncond"):
                with inspect(denoiser).cache_context(name):
                    x = x - denoiser(x, torch.full((2,), 1 - step / STEPS)) / STEPS
    return x


NOISE = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0))


def whole() -> Tensor:
    denoiser = compiled()
    with denoiser.trajectory(STEPS):
        return walk(denoiser, NOISE, range(STEPS))


def suspended(path: Path, **options: Any) -> Tensor:
    denoiser = compiled(**options)
    with denoiser.trajectory(STEPS):
        x = walk(denoiser, NOISE, range(HALF))
        denoiser.suspend(path)
    return x


@pytest.mark.parametrize("options", [{}, {"offload": True}], ids=["device", "offloaded"])
def test_another_denoiser_goes_on(options: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    x = suspended(path, **options)
    other = compiled(**options)
    other.policy = "FORA"  # the run keeps its own
    with other.resume(path):
        x = walk(other, x, range(HALF, STEPS))
    if options:
        torch.testing.assert_close(x, whole())
    else:
        torch.testing.assert_close(x, whole(), rtol=0, atol=0)
    assert other.report().decisions("uncond") == "FF...F...F.."
    assert list(tmp_path.iterdir()) == [path]


def test_through_torch_compile(tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    x = suspended(path)
    torch.compiler.reset()
    other = torch.compile(ToyDiT(), backend="hicache", options={"policy": POLICY, "backend": "aot_eager"})
    with inspect(other).resume(path):
        x = walk(other, x, range(HALF, STEPS))
    torch.testing.assert_close(x, whole(), rtol=0, atol=0)


ELSEWHERE = """
import sys, torch, tests.conftest  # as many threads as here: sums depend on them
from pathlib import Path
from tests.runtime.test_snapshot import HALF, STEPS, compiled, walk
folder = Path(sys.argv[1])
denoiser = compiled()
with denoiser.resume(folder / "run.safetensors"):
    torch.save(walk(denoiser, torch.load(folder / "x.pt"), range(HALF, STEPS)), folder / "y.pt")
"""


def test_another_process_goes_on(tmp_path: Path) -> None:
    torch.save(suspended(tmp_path / "run.safetensors"), tmp_path / "x.pt")
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", ELSEWHERE, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=root)
    assert done.returncode == 0, done.stderr
    torch.testing.assert_close(torch.load(tmp_path / "y.pt"), whole(), rtol=0, atol=0)


def test_other_weights_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    suspended(path)
    model = ToyDiT()
    nn.init.zeros_(model.head.weight)
    with (
        pytest.raises(HiCacheError, match="must be of a denoiser with these weights"),
        resumed(hicache_compile(model, POLICY, backend="aot_eager"), path),
    ):
        pass


def with_adapter(scale: float, on: bool = True) -> CompiledDenoiser:
    from peft import LoraConfig

    torch.manual_seed(1)
    model = random_flux(1, 1)
    model.add_adapter(LoraConfig(r=4, init_lora_weights=False, target_modules=["to_q"]), adapter_name="a")
    model.set_adapters(["a"], [scale])
    if not on:
        model.disable_lora()
    return hicache_compile(model, POLICY, backend="eager")


@pytest.mark.parametrize(("scale", "on", "fits"), [(1.0, True, True), (0.5, True, False), (1.0, False, False)])
def test_other_adapters_in_force_are_other_weights(scale: float, on: bool, fits: bool, tmp_path: Path) -> None:
    path, first, second = tmp_path / "run.safetensors", with_adapter(1.0), with_adapter(scale, on)
    with first.trajectory(STEPS), torch.no_grad():
        first(**flux_inputs(batch=1), timestep=torch.ones(1))
        first.suspend(path)
    refused = pytest.raises(HiCacheError, match="must be of a denoiser with these weights")
    with nullcontext() if fits else refused, resumed(second, path):
        pass


def test_another_sparsity_is_refused(tmp_path: Path) -> None:
    path, inputs = tmp_path / "run.safetensors", flux_inputs(batch=1)

    def sparse(keys: float) -> CompiledDenoiser:
        sparsity = Chipmunk(top_keys=keys, group=16, mlp_block=16, first_dense=1)
        return hicache_compile(random_flux(1, 1), POLICY, backend="eager", sparsity=sparsity)

    first, second = sparse(0.5), sparse(0.25)
    with first.trajectory(STEPS), torch.no_grad():
        first(**inputs, timestep=torch.ones(1))
        first.suspend(path)
    with second.resume(path), torch.no_grad(), pytest.raises(HiCacheError, match="are of another graph"):
        second(**inputs, timestep=torch.full((1,), 0.9))


def resumed(handle: Handle, path: Path) -> Any:
    return handle.resume(path)


@pytest.mark.parametrize("then", ["goes on", "is suspended again"])
def test_weights_changed_before_the_first_step_start_the_run_over(tmp_path: Path, then: str) -> None:
    def changed(denoiser: CompiledDenoiser) -> None:
        with torch.no_grad():
            denoiser.layers[0].proj.weight.mul_(0.5)

    path, alone, denoiser = tmp_path / "run.safetensors", compiled(), compiled()
    with alone.trajectory(STEPS):
        x = walk(alone, NOISE, range(3))
        alone.suspend(path)
        changed(alone)
        want = walk(alone, x, range(3, STEPS))
    with denoiser.resume(path):
        changed(denoiser)
        if then == "goes on":
            got = walk(denoiser, x, range(3, STEPS))
        else:
            denoiser.suspend(path)
    if then == "is suspended again":
        with denoiser.resume(path):
            got = walk(denoiser, x, range(3, STEPS))
    assert denoiser.report().decisions("cond") == alone.report().decisions("cond")
    assert alone.report().decisions("cond").startswith("FF.F")
    torch.testing.assert_close(got, want, rtol=0, atol=0)


def test_another_shape_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    suspended(path)
    denoiser = compiled()
    with denoiser.resume(path), pytest.raises(HiCacheError, match="the anchors of context 'cond' are of another graph"):
        walk(denoiser, torch.randn(2, 7, 16), range(HALF, STEPS))


def test_another_shape_after_a_step_without_the_cache_starts_over(tmp_path: Path) -> None:
    """Such a step leaves no anchors, so there are none of another shape to go on with."""
    path, alone, denoiser = tmp_path / "run.safetensors", compiled(), compiled()

    def end(one: CompiledDenoiser) -> Tensor:
        with one.disabled():
            walk(one, NOISE, range(HALF, HALF + 1))
        return walk(one, NOISE.repeat(1, 2, 1), range(HALF + 1, STEPS))

    with alone.trajectory(STEPS):
        walk(alone, NOISE, range(HALF))
        alone.suspend(path)
        want = end(alone)
    with denoiser.resume(path):
        got = end(denoiser)
    assert denoiser.report().decisions("cond") == alone.report().decisions("cond") == "FF...FF..F.."
    torch.testing.assert_close(got, want, rtol=0, atol=0)


HOST, GRAPH, OFFLOADED = {"backend": "eager"}, {"backend": "cond_eager"}, {"backend": "eager", "offload": True}


@pytest.mark.parametrize(
    ("policy", "first", "then", "said"),
    [
        (POLICY, HOST, OFFLOADED, "are of another graph"),
        (POLICY, OFFLOADED, HOST, "are of another graph"),
        (FBCache(0.2), GRAPH, HOST, "the decisions of the run are kept in another way"),
        (FBCache(0.2), GRAPH, GRAPH, ""),
    ],
)
def test_another_way_to_keep_a_run_is_refused(
    policy: Policy, first: dict[str, Any], then: dict[str, Any], said: str, tmp_path: Path
) -> None:
    """What a graph decided before the run was suspended is known after it."""
    path, alike = tmp_path / "run.safetensors", {"decide_together": False, "together": True}
    denoiser, other = (hicache_compile(ToyDiT(), policy, **alike, **options) for options in (first, then))
    with denoiser.trajectory(STEPS):
        x = walk(denoiser, NOISE, range(HALF))
        denoiser.suspend(path)
    with pytest.raises(HiCacheError, match=said) if said else nullcontext(), other.resume(path):
        walk(other, x, range(HALF, STEPS))
    if not said:
        assert other.report().decisions("cond")[:HALF] == denoiser.report().decisions("cond")
        assert "?" not in other.report().decisions("cond")


def broken(path: Path, how: str) -> None:
    if how == "text":
        path.write_text("no snapshot")
    elif how == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    elif how == "none":
        path.unlink()
    else:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
        tensors = load_file(path)
        if how == "foreign":
            metadata = {}
        elif how == "shape":
            tensors["0/1/anchors:0"] = tensors["0/1/anchors:0"][1:].contiguous()
        else:
            del tensors["0/1/anchors:0"]
        save_file(tensors, path, metadata=metadata)


@pytest.mark.parametrize("how", ["text", "cut", "none", "foreign", "shape", "missing"])
def test_a_corrupt_file_changes_nothing(how: str, tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    suspended(path)
    broken(path, how)
    denoiser = compiled()
    with denoiser.trajectory(STEPS):
        walk(denoiser, NOISE, range(STEPS))
    before = denoiser.report()
    with pytest.raises(HiCacheError, match="snapshot"), denoiser.resume(path):
        pass
    assert denoiser.report() == before
    with denoiser.trajectory(STEPS):
        torch.testing.assert_close(walk(denoiser, NOISE, range(STEPS)), whole(), rtol=0, atol=0)


def test_only_between_steps_of_a_trajectory(tmp_path: Path) -> None:
    denoiser = compiled()
    with pytest.raises(HiCacheError, match="must be called between two steps of an open"):
        denoiser.suspend(tmp_path / "run.safetensors")
    suspended(tmp_path / "run.safetensors")
    open_already = pytest.raises(HiCacheError, match="while a trajectory of 3 steps is open")
    with denoiser.trajectory(3), open_already, denoiser.resume(tmp_path / "run.safetensors"):
        pass


def as_format_3(path: Path) -> None:
    """Rewrite a snapshot in the format before: rings by their count, memory by name, decisions by old names."""
    with safe_open(path, framework="pt") as file:
        described = json.loads(file.metadata()["hicache_compile"])
    tensors = load_file(path)
    described["format"] = 3
    for index, context in enumerate(described["contexts"]):
        for state in context["states"]:
            prefix, kept = f"{index}/{state['place']}", state.pop("kept")
            rings = [(slot, shape) for role, _, slot, shape in kept if role == "anchors"]
            state["shapes"] = [shape for _, shape in rings]
            state["memory"] = {f"memory:{name}": shape for role, name, _, shape in kept if role == "memory"}
            state["standing"] = standing_of(state.pop("state"), state["signature"][-1])
            state["offloaded"] = state.pop("host") is not None
            moved = [tensors.pop(f"{prefix}/anchors:{slot}") for slot, _ in rings]
            tensors |= {f"{prefix}/{count}": ring for count, ring in enumerate(moved)}
    save_file(tensors, path, metadata={"hicache_compile": json.dumps(described)})


def standing_of(state: dict[str, Any], depth: int) -> dict[str, Any]:
    """What format 3 says of a decider: nothing where the step index decides alone."""
    course: dict[str, Any] = dict(state["decider"])
    if "rules" in course:  # guards
        course |= course.pop("tracks")[""]
        course["watched"] = course.pop("rules")
        del course["step"]
    elif "run" in course:  # guards in the graph
        names = {name: name.replace("remembered:", "watched_").replace("run", "course") for name in course}
        padded = {names[name]: values + [0.0] * (4 - len(values)) for name, values in course.items()}
        course = {"course": padded.pop("course"), **padded}
    elif "tracks" in course:
        course = {}
    return {"depth": depth, "start": state["start"], **({"course": course} if course else {})}


FORMAT_3: dict[str, tuple[Policy, dict[str, Any]]] = {
    "schedule": (POLICY, {}),
    "schedule, offloaded": (POLICY, {"offload": True}),
    "schedule, cond": (POLICY, {"backend": "cond_eager"}),
    "kinds": (PAB(2, window=None), {}),
    "guards": (FBCacheTeaCache(0.3, 0.4, forecaster=Hermite(1)), {}),
    "guards in the graph": (FBCacheTeaCache(0.35, 0.3), {"backend": "cond_eager"}),
    "guard with weights": (DiCache(0.3), {}),
    "partitions": (DiTango(0.5, 2, 2), {}),
    "sparse": (HiCache(3), {"sparsity": Chipmunk(full_every=3, group=16, mlp_block=16, first_dense=1)}),
    "sparse guards": (FBCache(0.2), {"sparsity": Chipmunk(full_every=3, group=16, mlp_block=16, first_dense=1)}),
}


@pytest.mark.parametrize("name", FORMAT_3)
def test_the_format_before_is_read(name: str, tmp_path: Path) -> None:
    """FLUX has slots that no forecast reads, so the rings are not counted as the slots are."""
    policy, options = FORMAT_3[name]
    model, inputs, path = random_flux(1, 2), flux_inputs(batch=1), tmp_path / "run.safetensors"
    first, second = (hicache_compile(model, policy, **{"backend": "eager", **options}) for _ in range(2))

    def steps(denoiser: nn.Module, x: Tensor, places: range) -> Tensor:
        for step in places:
            time = torch.full((1,), 1 - step / STEPS)
            with torch.no_grad():
                out = denoiser(**{**inputs, "hidden_states": x}, timestep=time, return_dict=False)[0]
            x = x - out / STEPS
        return x

    with first.trajectory(STEPS):
        x = steps(first, inputs["hidden_states"], range(HALF))
        first.suspend(path)
        expected = steps(first, x, range(HALF, STEPS))
    as_format_3(path)
    with second.resume(path):
        x = steps(second, x, range(HALF, HALF + 3))
        second.suspend(path)  # from here on in the format of today
    with second.resume(path):
        assert torch.equal(steps(second, x, range(HALF + 3, STEPS)), expected)
    decisions = first.report().decisions()
    assert second.report().decisions()[-(STEPS - HALF - 3) :] == decisions[-(STEPS - HALF - 3) :]
    assert set(decisions[HALF:]) - set("FS")


def test_other_formats_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    suspended(path)
    with safe_open(path, framework="pt") as file:
        described = json.loads(file.metadata()["hicache_compile"])
    save_file(load_file(path), path, metadata={"hicache_compile": json.dumps({**described, "format": 2})})
    with pytest.raises(HiCacheError, match="format = 2: must be 5"), compiled().resume(path):
        pass
