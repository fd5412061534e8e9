"""The race: all contenders sample the same trajectory and alternate after one interval of steps.

A drift of the machine's speed affects all of them equally, and within a turn the CPU caches are as warm as when
sampling alone. Only denoiser calls are timed.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hicache_compile.benchmarks.contenders import Contender, Prepared
from hicache_compile.benchmarks.models import Arguments
from hicache_compile.benchmarks.scenarios import Scenario
from hicache_compile.internals import dynamo_config
from hicache_compile.policy.progress import progress

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Racer:
    """A contender that could be prepared, its sample, and the seconds of each step of each trajectory."""

    contender: Contender
    prepared: Prepared
    x: Tensor
    seconds: list[list[float]] = field(default_factory=list)
    compiling: float = 0.0
    peak_bytes: int | None = None  # of the GPU, including the weights


@dataclass(frozen=True, slots=True)
class Race:
    """The result: the participants, and the reasons of the contenders that failed."""

    scenario: Scenario
    racers: list[Racer]
    refused: dict[str, str]
    parameters: int


# The models share their code objects, and Dynamo counts recompiles per code object.
@dynamo_config.patch(recompile_limit=4096, accumulated_recompile_limit=4096)  # type: ignore[untyped-decorator]
@torch.no_grad()
def race(scenario: Scenario, contenders: Sequence[Contender], rounds: int) -> Race:
    """Run ``contenders`` through ``scenario`` for ``rounds`` trajectories, after one that compiles."""
    shape = scenario.shape
    original, branches = shape.model(), shape.branches()
    racers: list[Racer] = []
    refused: dict[str, str] = {}
    torch.compiler.reset()
    for contender in progress(contenders, what=f"{scenario.name}, compiling", unit="contender"):
        began = time.perf_counter()
        try:
            racer = Racer(contender, contender.prepare(shape.twin(original), scenario), shape.noise())
            _trajectory([racer], scenario, branches)
            if racer.x.is_cuda:
                torch.cuda.reset_peak_memory_stats()
                _trajectory([racer], scenario, branches)
                racer.peak_bytes = torch.cuda.max_memory_allocated()
        except Exception as error:  # a failing peer is a result
            log.warning("%s: %s", contender.name, error)
            refused[contender.name] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            continue
        racer.compiling = time.perf_counter() - began
        racer.seconds.clear()
        racers.append(racer)
    with progress(total=rounds * scenario.steps * len(racers), what=f"{scenario.name}, in turns", unit="step") as bar:
        for _ in range(rounds):
            _trajectory(racers, scenario, branches, bar.update)
    return Race(scenario, racers, refused, sum(parameter.numel() for parameter in original.parameters()))


def _trajectory(
    racers: Sequence[Racer],
    scenario: Scenario,
    branches: dict[str, Arguments],
    on_step: Callable[[], object] = lambda: None,
) -> None:
    with ExitStack() as stack:
        for racer in racers:
            stack.enter_context(racer.prepared.run())
            racer.x = scenario.shape.noise()
            racer.seconds.append([])
        for start in range(0, scenario.steps, scenario.interval):
            for racer in racers:
                for step in range(start, min(start + scenario.interval, scenario.steps)):
                    _step(racer, scenario, branches, step)
                    on_step()


def _step(racer: Racer, scenario: Scenario, branches: dict[str, Arguments], step: int) -> None:
    """One Euler step, with guidance if there are two branches."""
    prepared = racer.prepared
    prepared.before(step)
    now = scenario.shape.time_scale * (1 - step / scenario.steps)
    when = torch.full((len(racer.x),), now, device=racer.x.device, dtype=racer.x.dtype)
    found: list[Tensor] = []
    seconds = 0.0
    for name, arguments in branches.items():
        with prepared.context(name):
            _wait(racer.x)
            began = time.perf_counter()
            output = prepared.denoiser(hidden_states=racer.x, timestep=when, **arguments, return_dict=False)
            _wait(racer.x)
            seconds += time.perf_counter() - began
        found.append(output[0])
    racer.seconds[-1].append(seconds)
    velocity = found[0] if len(found) == 1 else found[1] + 4.0 * (found[0] - found[1])
    racer.x = racer.x - velocity / scenario.steps


def _wait(x: Tensor) -> None:
    if x.is_cuda:
        torch.cuda.synchronize()
