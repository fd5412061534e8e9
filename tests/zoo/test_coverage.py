"""Every denoiser of diffusers is found, equal at interval 1, near at interval 4, and never compiled again."""

from __future__ import annotations

import inspect
import math

import pytest
import torch
from torch import nn

from tests.coverage import PAGE, examine
from tests.zoo import CASES, Case

COVERED = [pytest.param(case, id=case.title.replace(" ", "")) for case in CASES if not case.reason]


@pytest.mark.slow
@pytest.mark.parametrize("case", COVERED)
def test_a_denoiser_of_diffusers(case: Case) -> None:
    for scope, found in examine(case, ("module", "stack"), backend="eager").items():
        assert found.sites > 0, (scope, found.refused)
        assert found.identical, scope
        assert found.decisions == "FFF...F...F."
        assert math.isfinite(found.error), scope
        assert 0 < found.error < (0.7 if "UNet" in case.name else 0.3), scope
        assert found.recompiles == 0, scope
        assert 0 <= found.flops_forecast < found.flops_full, scope
        assert found.state_bytes > 0, scope
        assert found.graphs == 1, scope


def test_no_class_of_diffusers_is_left_out() -> None:
    from diffusers.models import transformers

    exported = {name for name, cls in inspect.getmembers(transformers, inspect.isclass) if issubclass(cls, nn.Module)}
    assert exported <= {case.name for case in CASES}
    assert all(case.name not in exported or case.reason == "" or len(case.reason) > 40 for case in CASES)


def test_the_page_has_every_denoiser() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert [case.title for case in CASES if case.title not in page] == []
    assert "DIFFERENT" not in page


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("name", ["FluxTransformer2DModel", "WanTransformer3DModel", "HunyuanDiT2DModel"])
def test_one_and_three_blocks_and_an_odd_number_of_tokens(name: str, layers: int) -> None:
    case = next(case for case in CASES if case.name == name)
    found = examine(case, layers=layers, size=1, backend="eager")["module"]
    assert found.identical
    assert found.sites >= layers
    assert found.error < 0.3


@pytest.mark.parametrize("name", ["FluxTransformer2DModel", "SD3Transformer2DModel", "LTXVideoTransformer3DModel"])
def test_bfloat16(name: str) -> None:
    case = next(case for case in CASES if case.name == name)
    for found in examine(case, ("module", "stack"), dtype=torch.bfloat16).values():
        assert found.identical
        assert found.error < 0.3
