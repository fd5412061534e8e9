"""Host time between the call and the first kernel of a step, on a very narrow FLUX with 57 blocks.

Every program is replaced by an empty one, so only guards, flattening, dispatch and the collection of inputs remain.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import fx

from hicache_compile import HiCache, hicache_compile
from hicache_compile.benchmarks.models import Flux
from hicache_compile.benchmarks.record import environment
from hicache_compile.passes.graph.graphs import output_node
from hicache_compile.passes.graph.shapes import concrete

FLUX_57 = Flux(layers=19, single_layers=38, heads=2, head_dim=16, image_tokens=16, text_tokens=8)


def _nothing(program: fx.GraphModule, *_: object) -> Callable[..., Any]:
    shapes = [concrete(node.meta["example_value"].shape, {}) for node in output_node(program.graph).args[0]]  # type: ignore[union-attr]
    outputs = [torch.zeros(shape) for shape in shapes]
    return lambda *inputs: outputs


def measure(
    shape: Flux = FLUX_57, scopes: tuple[str, ...] = ("module", "stack"), rounds: int = 8
) -> Iterator[Callable[[], dict[str, Any]]]:
    """Microseconds per step of plain ``torch.compile`` and of ours, alternating: medians, and the first step of a
    run; then the same after a prompt of another length, which makes that size symbolic."""
    for scope in scopes:
        for lengths in (1, 2):
            yield partial(at_scope, shape, scope, rounds, lengths)


@torch.no_grad()
def at_scope(shape: Flux, scope: str, rounds: int, lengths: int = 1) -> dict[str, Any]:
    """The line of one ``scope``, from ``rounds`` runs of ours and as many steps of plain ``torch.compile``.

    ``lengths``: of the prompts that are seen before: 1 or 2.
    """
    model = shape.model()
    arguments = {
        "hidden_states": shape.noise(),
        "timestep": torch.ones(1),
        **shape.branches()["cond"],
        "return_dict": False,
    }

    text = ("encoder_hidden_states", "txt_ids")
    shorter = {
        name: value.narrow(-2, 0, value.shape[-2] // 2) if name in text else value for name, value in arguments.items()
    }

    def steps(denoiser: Callable[..., Any], count: int) -> list[float]:
        seconds = []
        for _ in range(count):
            began = time.perf_counter()
            denoiser(**arguments)
            seconds.append(1e6 * (time.perf_counter() - began))
        return seconds

    plain = torch.compile(model, backend=lambda program, inputs: _nothing(program))
    if lengths > 1:
        plain(**shorter)
    steps(plain, 3)
    with mock.patch("hicache_compile.runtime.program_set.lower", _nothing):
        ours = hicache_compile(model, HiCache(interval=7, scope=scope), backend="eager")
        if lengths > 1:
            with ours.trajectory(1):
                ours(**shorter)
        with ours.trajectory(50):
            steps(ours, 50)
        mine: list[float] = []
        first: list[float] = []
        theirs: list[float] = []
        for _ in range(rounds):
            with ours.trajectory(50):
                run = steps(ours, 50)
            first.append(run[0])
            mine += run
            theirs += steps(plain, 50)
    return {
        "measured": "host time of a step",
        "blocks": shape.layers + shape.single_layers,
        "inputs": len(list(model.parameters())) + 6,
        "scope": scope,
        "lengths": lengths,
        "plain_us": statistics.median(theirs),
        "ours_us": statistics.median(mine),
        "first_step_us": statistics.median(first),
        "ours_over_plain": statistics.median(mine) / statistics.median(theirs),
        "run_over_plain": sum(mine) / sum(theirs),
        **environment(),
    }
