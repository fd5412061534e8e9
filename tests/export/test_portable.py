"""Denoisers that read data on the host, and constants that they make, in exported programs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hicache_compile import HiCache, HiCacheError
from hicache_compile.export import export_program
from tests.support.models import ToyDiT
from tests.zoo import CASES
from tests.zoo.case import GRIDS, first_tensor


def first_step(path: Path, manifest: Any, given: dict[str, Tensor]) -> Tensor:
    """The sample of the program's first step."""
    state = [torch.zeros(port.shape, dtype=getattr(torch, port.dtype)) for port in manifest.state]
    plan = manifest.plan
    controls = [
        torch.tensor(plan["computing"][0]),
        torch.tensor([plan["position"][0]]),
        torch.tensor(plan["weights"][0]),
    ]
    program = torch.export.load(path).module()
    with torch.no_grad():
        return program(*(given[port.name] for port in manifest.arguments), *controls, *state)[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "ZImageTransformer2DModel",
        "Lumina2Transformer2DModel",
        "HunyuanVideoTransformer3DModel",
        "HunyuanImageTransformer2DModel",
        "HunyuanVideo15Transformer3DModel",
        "HunyuanVideoFramepackTransformer3DModel",
    ],
)
def test_a_denoiser_of_diffusers(name: str, tmp_path: Path) -> None:
    case = next(case for case in CASES if case.name == name)
    arguments = case.arguments(case.noise(), 0.5, *GRIDS[0])
    path = tmp_path / "denoiser.pt2"
    manifest = export_program(case.build(2), HiCache(interval=3), arguments, path, num_steps=9)
    given = {}
    for key, value in arguments.items():
        for place, each in enumerate(value if isinstance(value, list) else [value]):
            given[f"{key}_{place}" if isinstance(value, list) else key] = each
    with torch.no_grad():
        expected = first_tensor(case.build(2)(**arguments))
    torch.testing.assert_close(first_step(path, manifest, given), expected)


class Reads(ToyDiT):
    """Takes the tokens that a mask picks, and as many more as the first number says."""

    def forward(self, x: Tensor, t: Tensor, valid: Tensor, more: Tensor) -> Tensor:
        prompt = x[:, valid]
        repeated = prompt.repeat(1, 1 + int(more[0]), 1)
        table = torch.tensor([0.5, 2.0])
        return super().forward(torch.cat([repeated * table[1], x], dim=1), t)[:, repeated.shape[1] :]


def arguments(valid: int = 2, more: int = 1) -> dict[str, Tensor]:
    return {
        "x": torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0)),
        "t": torch.ones(2),
        "valid": torch.arange(5) < valid,
        "more": torch.tensor([more]),
    }


def test_what_was_read_is_checked_by_the_program(tmp_path: Path) -> None:
    path, model = tmp_path / "denoiser.pt2", Reads()
    manifest = export_program(model, HiCache(interval=3), arguments(), path, num_steps=9)
    with torch.no_grad():
        torch.testing.assert_close(first_step(path, manifest, arguments()), model(**arguments()))
        other = {**arguments(), "valid": torch.arange(5) > 2}  # as many tokens, others
        torch.testing.assert_close(first_step(path, manifest, other), model(**other))
    for changed in ({"valid": 3}, {"more": 2}):
        with pytest.raises(RuntimeError, match=r"differs from what it read when exported|Runtime assertion failed"):
            first_step(path, manifest, arguments(**changed))


def test_more_than_a_program_can_check_is_refused(tmp_path: Path) -> None:
    class ReadsAll(ToyDiT):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return super().forward(x * sum(x[0, :, 0].tolist()), t)

    with pytest.raises(HiCacheError, match=r"reads 9 values of one tensor on the host: must read no more than 8"):
        export_program(ReadsAll(), HiCache(), {"x": torch.ones(2, 9, 16), "t": torch.ones(2)}, tmp_path / "a.pt2")


@pytest.mark.slow
def test_onnx_runtime_picks_the_same_tokens(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    from hicache_compile.export import OnnxDenoiser, export_onnx

    model = Reads()
    export_onnx(model, HiCache(interval=3), arguments(), tmp_path / "a.onnx", num_steps=9)
    denoiser = OnnxDenoiser(tmp_path / "a.onnx")
    with denoiser.trajectory(num_steps=9), torch.no_grad():
        for valid in (torch.arange(5) < 2, torch.tensor([False, True, False, False, True])):
            given = {**arguments(), "valid": valid}
            (found,) = denoiser(**{port.name: given[port.name].numpy() for port in denoiser.manifest.arguments})
            torch.testing.assert_close(torch.from_numpy(found), model(**given))


@pytest.mark.slow
def test_what_onnx_does_not_have_is_named(tmp_path: Path) -> None:
    from hicache_compile.export import export_onnx

    pytest.importorskip("onnx")
    case = next(case for case in CASES if case.name == "ZImageTransformer2DModel")
    given = case.arguments(case.noise(), 0.5, *GRIDS[0])
    with pytest.raises(HiCacheError, match=r"export_onnx.model: must be in ops .* No ONNX function found for .*index"):
        export_onnx(case.build(2), HiCache(interval=3), given, tmp_path / "a.onnx")


def test_code_that_cannot_be_traced_is_named(tmp_path: Path) -> None:
    class Opaque(nn.Module):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return torch.frombuffer(bytearray(x.numpy().tobytes()), dtype=x.dtype).view_as(x)

    with pytest.raises(HiCacheError, match=r"export.model cannot be captured as one graph: must be one; "):
        export_program(Opaque(), HiCache(), {"x": torch.ones(2, 9, 16), "t": torch.ones(2)}, tmp_path / "a.pt2")
