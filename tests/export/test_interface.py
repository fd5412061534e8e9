"""What whoever runs an export gives and gets: arguments that no step reads, the loop of the documentation."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from hicache_compile import HiCache, HiCacheError, hicache_compile
from hicache_compile.export import OnnxDenoiser, export_onnx, export_program
from tests.support.models import ToyDiT

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")


class Unread(ToyDiT):
    """Its signature has a tensor that it does not read."""

    def forward(self, x: Tensor, t: Tensor, text: Tensor | None = None) -> Tensor:  # type: ignore[override]
        return super().forward(x, t)


def test_arguments_that_no_step_reads_may_be_given(tmp_path: Path) -> None:
    inputs = {"x": torch.randn(1, 16, 16), "t": torch.ones(1), "text": torch.randn(1, 3)}
    model = Unread().eval()
    manifest = export_onnx(model, HiCache(interval=1), inputs, tmp_path / "toy.onnx", num_steps=2)
    assert ([port.name for port in manifest.arguments], manifest.unread) == (["x", "t"], ("text",))
    denoiser = OnnxDenoiser(tmp_path / "toy.onnx")
    with torch.no_grad(), denoiser.trajectory(2):
        found = [denoiser(**inputs)[0], denoiser(x=inputs["x"], t=inputs["t"])[0]]
        for each in found:
            torch.testing.assert_close(torch.from_numpy(np.asarray(each)), model(**inputs), rtol=1e-5, atol=1e-5)
    with pytest.raises(HiCacheError, match="none missing, image unknown; must be x, t"), denoiser.trajectory(2):
        denoiser(**inputs, image=inputs["x"])


def test_what_a_denoiser_returns_must_hold_tensors_that_torch_sees(tmp_path: Path) -> None:
    @dataclass
    class Output:
        sample: Tensor

    class Wrapped(ToyDiT):
        def forward(self, x: Tensor, t: Tensor) -> Output:  # type: ignore[override]
            return Output(super().forward(x, t))

    inputs = {"x": torch.randn(1, 16, 16), "t": torch.ones(1)}
    with pytest.raises(HiCacheError, match="returns Output, in which torch sees no tensor: must return tensors"):
        export_program(Wrapped().eval(), HiCache(), inputs, tmp_path / "toy.pt2")


@pytest.mark.parametrize("dynamic", [False, "batch", True])
def test_the_loop_of_the_documentation_runs_at_other_sizes(dynamic: bool | str, tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "export.md").read_text(encoding="utf-8")
    loop = next(
        block for block in re.findall(r"```py\n(.*?)```", page, re.DOTALL) if "aoti" not in block and "zeros" in block
    )
    torch.manual_seed(0)
    model, steps = ToyDiT().eval(), 8
    policy, path = HiCache(interval=3), tmp_path / "toy.pt2"
    example = {"x": torch.randn(2, 11, 16), "t": torch.ones(2)}
    manifest = export_program(model, policy, example, path, num_steps=steps, dynamic=dynamic)
    assert manifest.arguments[0].shape[-1] == 16
    rows, tokens = (3, 11) if dynamic == "batch" else (3, 9) if dynamic else (2, 11)
    arguments = [torch.randn(rows, tokens, 16), torch.rand(rows)]
    graph = torch.export.load(path).module()
    told = json.loads(manifest.to_json())
    made: list[Tensor] = []

    def kept(*given: Tensor) -> tuple[Tensor, ...]:
        outputs: tuple[Tensor, ...] = graph(*given)
        made.append(outputs[0])
        return outputs

    names = {"torch": torch, "manifest": told, "plan": told["plan"], "arguments": arguments, "graph": kept}
    with torch.no_grad():
        exec(loop, names)
        compiled = hicache_compile(model, HiCache(interval=3), backend="eager")
        with compiled.trajectory(steps):
            for each in made:
                torch.testing.assert_close(each, compiled(*arguments), rtol=1e-4, atol=1e-5)
    assert len(made) == steps
