"""Modular pipelines for pictures."""

from __future__ import annotations

from typing import Any

from tests.pipelines.cases import PipelineCase
from tests.pipelines.modular import assembled, called, components_of


def _flux() -> dict[str, Any]:
    return {"prompt": "a cat", "height": 16, "width": 16, "max_sequence_length": 8}


CASES: list[PipelineCase] = [
    PipelineCase(
        "FluxModularPipeline", assembled("FluxAutoBlocks", components_of("FluxPipeline")), _flux, call=called()
    ),
]
LEFT_OUT: dict[str, str] = {}
