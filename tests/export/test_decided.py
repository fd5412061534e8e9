"""Graphs that decide by themselves, exported: guards, kinds, rows of weights; decisions and samples are those of the
compiled denoiser."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hicache_compile import (
    PAB,
    AdaCache,
    DiCache,
    EasyCache,
    FBCache,
    Free,
    Guard,
    HiCache,
    HiCacheError,
    Policy,
    Reuse,
    SeaCache,
    SenCache,
    SpeCa,
    TeaCache,
    hicache_compile,
)
from hicache_compile.export import OnnxDenoiser, export_onnx
from hicache_compile.policy.guards import Arithmetic, Measure, Numbers, Probe, Signal
from hicache_compile.policy.guards.arithmetic import Number, Truth
from tests.support.models import ToyDiT

pytest.importorskip("onnxruntime")
STEPS = 10


@dataclass(frozen=True, slots=True)
class Patient(Guard):
    """A guard of one's own: skip while the largest change so far is below ``most``."""

    most: float = 0.1
    remembers: ClassVar[Mapping[str, float]] = {"largest": 0.0}

    @property
    def probe(self) -> Probe:
        return Probe(Measure.CHANGE, Signal.MODULATED)

    def ask(self, m: Arithmetic, p: Numbers, s: Numbers, step: Number, seen: Sequence[Number]) -> tuple[Truth, Numbers]:
        largest = m.maximum(s.largest, seen[0])
        return largest < p.most, s.replace(largest=largest)

    def after_full(self, m: Arithmetic, p: Numbers, s: Numbers, step: Number, seen: Sequence[Number]) -> Numbers:
        return s.replace(largest=0.0)


POLICIES = {
    "teacache": TeaCache(0.3, coefficients=(1.0, 0.0)),
    "fbcache": FBCache(0.1),
    "easycache": EasyCache(0.3, warmup=2),
    "dicache": DiCache(0.2),
    "adacache": AdaCache(),
    "speca": SpeCa(),
    "seacache": SeaCache(0.6, grid=(2, 3)),
    "sencache": SenCache(0.15, (1.0, 2.0), (0.1, 0.4)),
    "own guard": Policy(Free(), Reuse(), "stack", (Patient(0.15),)),
    "pab": PAB(2, 3, 4, window=None, warmup=1),
}


def sampled(denoise: object, x: Tensor) -> Tensor:
    for step in range(STEPS):
        time = torch.full((len(x),), 1 - step / STEPS)
        if isinstance(denoise, nn.Module):
            with torch.no_grad():
                x = x - denoise(x, time) / STEPS
        else:
            x = x - torch.from_numpy(denoise(x=x.numpy(), t=np.asarray(time))[0]) / STEPS  # type: ignore[operator]
    return x


@pytest.mark.slow
@pytest.mark.parametrize("policy", [HiCache(interval=3), FBCache(0.1)], ids=["HiCache", "FBCache"])
def test_anchors_in_int8(policy: Policy, tmp_path: Path) -> None:
    model, x = ToyDiT(), torch.randn(1, 6, 16, generator=torch.Generator().manual_seed(1))
    path, example = tmp_path / "toy.onnx", {"x": x, "t": torch.ones(1)}
    manifest = export_onnx(model, policy, example, path, num_steps=STEPS, anchors="int8")
    assert {port.dtype for port in manifest.state if port.name.startswith("anchors")} == {"int8"}
    compiled = hicache_compile(model, policy, backend="eager", anchors="int8")
    denoiser = OnnxDenoiser(path)
    with compiled.trajectory(STEPS), denoiser.trajectory(STEPS):
        expected, found = sampled(compiled, x), sampled(denoiser, x)
    assert "." in compiled.report().decisions()
    assert (found - expected).norm() / expected.norm() < 1e-6
    with pytest.raises(HiCacheError, match=r"export_onnx.anchors = 'float8_e4m3fn': must be another dtype"):
        export_onnx(model, policy, example, path, anchors="float8_e4m3fn")


@pytest.mark.slow
@pytest.mark.parametrize("name", POLICIES)
def test_an_exported_graph_decides_as_the_denoiser_does(name: str, tmp_path: Path) -> None:
    model, x = ToyDiT(), torch.randn(1, 6, 16, generator=torch.Generator().manual_seed(1))
    path = tmp_path / "toy.onnx"
    export_onnx(model, POLICIES[name], {"x": x, "t": torch.ones(1)}, path, num_steps=STEPS)
    compiled = hicache_compile(model, POLICIES[name], backend="eager")
    with compiled.trajectory(STEPS):
        expected = sampled(compiled, x)
    denoiser = OnnxDenoiser(path, POLICIES[name] if name == "own guard" else None)
    with denoiser.trajectory(STEPS):
        found = sampled(denoiser, x)
    assert set(compiled.report().decisions()) != {"F"}
    assert denoiser.decisions["default"] == compiled.report().decisions()
    assert (found - expected).norm() / expected.norm() < 1e-5


def test_a_policy_of_another_graph_is_refused(tmp_path: Path) -> None:
    model, path = ToyDiT(2), tmp_path / "toy.onnx"
    export_onnx(model, HiCache(interval=3, scope="stack"), {"x": torch.randn(1, 6, 16), "t": torch.ones(1)}, path)
    for other, what in ((TeaCache(0.1), "guards"), (PAB(), "scope"), (HiCache(), "scope")):
        with pytest.raises(HiCacheError, match=rf"OnnxDenoiser\.policy has {what}"):
            OnnxDenoiser(path, policy=other)
