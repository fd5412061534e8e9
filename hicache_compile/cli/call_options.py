"""The options that commands hand to a pipeline's call, in one place."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, get_type_hints

from hicache_compile.cli import shared

OPTIONS = {
    "height": shared.Height,
    "width": shared.Width,
    "num_frames": shared.Frames,
    "guidance_scale": shared.GuidanceScale,
    "true_cfg_scale": shared.TrueCfgScale,
    "negative_prompt": shared.NegativePrompt,
    "max_sequence_length": shared.MaxSequenceLength,
}
CALL = "call"  # the parameter of a command that takes them
Call = Mapping[str, Any]
NOTHING_GIVEN: Call = MappingProxyType({})


def with_call_options(command: Callable[..., None]) -> Callable[..., None]:
    """``command`` with ``OPTIONS`` in place of its parameter ``call``: those of them that a user set, by name."""
    hints = get_type_hints(command, include_extras=True)
    parameters: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(command).parameters.items():
        if name == CALL:
            options = OPTIONS.items()
            parameters += [parameter.replace(name=option, annotation=kind, default=None) for option, kind in options]
        else:
            parameters.append(parameter.replace(annotation=hints[name]))

    @functools.wraps(command)
    def run(**given: Any) -> None:
        command(**{name: value for name, value in given.items() if name not in OPTIONS}, **{CALL: _set(given)})

    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # what typer reads
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def _set(given: dict[str, Any]) -> dict[str, Any]:
    return {name: given[name] for name in OPTIONS if given[name] is not None}
