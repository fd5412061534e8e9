"""How a modular pipeline is built from the components of a plain one, and called."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tests.pipelines.cases import CASES


def assembled(blocks: str, components: Callable[[], dict[str, Any]]) -> Callable[[], Any]:
    """Makes the modular pipeline of ``blocks``, a class in ``diffusers.modular_pipelines``, from ``components``.

    What its blocks make from a configuration, such as guiders, is theirs unless it is given.
    """

    def build() -> Any:
        import diffusers.modular_pipelines as modular

        pipeline = getattr(modular, blocks)().init_pipeline()
        given = components()
        known = {name: value for name, value in given.items() if name in pipeline.components and value is not None}
        pipeline.update_components(**known)
        return pipeline

    return build


def called(output: str = "latents") -> Callable[..., Tensor]:
    """A call that asks a modular pipeline for ``output``."""

    def call(pipeline: Any, **arguments: Any) -> Tensor:
        found = pipeline(**arguments, output=output)
        return found if isinstance(found, Tensor) else torch.as_tensor(found)

    return call


def components_of(name: str) -> Callable[[], dict[str, Any]]:
    """The components of the plain pipeline of one of ``CASES``."""
    case = next(case for case in CASES if case.name == name)
    return lambda: dict(case.build().components)
