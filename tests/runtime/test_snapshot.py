"""A run that was suspended goes on as if it had not been: here, in another denoiser, in another process."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hicache_compile import CompiledDenoiser, Handle, HiCache, HiCacheError, hicache_compile, inspect
from tests.support.models import ToyDiT

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
from tests.test_snapshot import HALF, STEPS, compiled, walk
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


def resumed(handle: Handle, path: Path) -> Any:
    return handle.resume(path)


def test_another_shape_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    suspended(path)
    denoiser = compiled()
    with denoiser.resume(path), pytest.raises(HiCacheError, match="the anchors of context 'cond' are of another graph"):
        walk(denoiser, torch.randn(2, 7, 16), range(HALF, STEPS))


def broken(path: Path, how: str) -> None:
    from safetensors import safe_open

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
            tensors["0/1/0"] = tensors["0/1/0"][1:].contiguous()
        else:
            del tensors["0/1/0"]
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
