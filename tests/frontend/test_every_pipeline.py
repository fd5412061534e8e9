"""Every pipeline class of diffusers: cached, without a recompile, and as far from the truth as the method itself is."""

from __future__ import annotations

import diffusers
import pytest

from tests.pipelines.cases import PipelineCase
from tests.pipelines.table import ALL, FAILING, LEFT_OUT, PAGE, UNLIKE, examine

ROUNDING = 1e-3  # of the error of the method: ours is in float32, and a later step makes more of it


@pytest.mark.parametrize("case", [pytest.param(case, id=case.name.replace(" ", "")) for case in ALL])
def test_it_is_cached(case: PipelineCase) -> None:
    if case.name in FAILING:
        pytest.xfail(FAILING[case.name])
    row = examine(case)
    assert row["identical"]
    assert row["twice"]
    assert row["recompiles"] == 0
    assert row["forecast"] > 0
    if "apart" in row and case.name not in UNLIKE:
        assert row["apart"] <= max(1e-5, ROUNDING * row["reference_error"])


def test_none_is_forgotten() -> None:
    names = {name for name in dir(diffusers) if name.endswith("Pipeline")}
    known = {case.name.partition(",")[0] for case in ALL} | set(LEFT_OUT)
    abstract = {"DiffusionPipeline", "ModularPipeline"}
    assert names - known - abstract == set()
    assert known <= set(dir(diffusers))


def test_the_page_has_every_case() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert [case.name for case in ALL if f"| {case.name} |" not in page] == []
    assert "DIFFERENT" not in page
