"""Draw the same pictures uncached and cached in several ways, in turns, and compare speed and quality.

All advance by one step after another, so that a machine which is slower for a while is so for all of them.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from hicache_compile.demo.contestants import Contestant
from hicache_compile.demo.emoji.drawing import Drawing, Drawn
from hicache_compile.demo.sampling import psnr
from hicache_compile.inspection.report import Report
from hicache_compile.runtime.replay.frames import ENTRIES

ROUNDS = 3
MOST_CLOCK = 1.03  # times the FLOPs that the clock may save: noise


@dataclass(frozen=True, slots=True)
class Result:
    """One contestant's run.

    ``psnr`` (dB over a range of 2, mean over pictures) and ``relative_error`` (2-norm) are against the uncached
    pictures of the same noise. ``clock_speedup``: the time of the uncached steps divided by the time of these, without
    compilation; of each step the median over rounds. ``report``: of what this library compiled.
    """

    name: str
    group: str
    decisions: str
    flops_speedup: float
    clock_speedup: float
    psnr: float
    relative_error: float
    pictures: torch.Tensor
    report: Report | None

    @property
    def computed(self) -> int:
        """The steps that were not forecast."""
        return len(self.decisions) - self.decisions.count(".")

    @property
    def faulty(self) -> bool:
        """Whether the clock saves more than the FLOPs, which cannot be: the machine was slower in the meantime."""
        return self.clock_speedup > MOST_CLOCK * self.flops_speedup

    def as_data(self) -> dict[str, Any]:
        """The row as plain data; what is counted has the field names of ``report()``."""
        own = {name: getattr(self, name) for name in FIELDS}
        return own | {name: getattr(self.report, name, None) for name in COUNTED}


FIELDS = ("name", "group", "computed", "flops_speedup", "clock_speedup", "psnr", "relative_error", "decisions")
COUNTED = ("state_bytes", "programs", "recompiles", "graph_breaks")


def steps_of(drawing: Drawing, contestants: Sequence[Contestant]) -> int:
    """The number of steps ``compare`` makes: of each a run that compiles, and one in every round."""
    return (1 + ROUNDS) * drawing.num_steps * len(contestants)


@ENTRIES()  # type: ignore[untyped-decorator]  # hooks make Dynamo compile one piece of code often
def compare(
    drawing: Drawing, contestants: Sequence[Contestant], on_step: Callable[[], object] = lambda: None
) -> list[Result]:
    """The results of ``contestants``, of which the first is uncached; ``on_step`` is called after each step."""
    for contestant in contestants:
        for _ in contestant.by_steps(drawing):  # compiles
            on_step()
    rounds: list[tuple[Drawn, ...]] = []
    for _ in range(ROUNDS):
        turns = [_told(contestant.by_steps(drawing), on_step) for contestant in contestants]
        *_, ended = zip(*turns, strict=True)
        rounds.append(ended)
    seconds = [_median([drawn.step_seconds for drawn in drawns]) for drawns in zip(*rounds, strict=True)]
    pictures = [drawing.pictures(drawn.latents) for drawn in rounds[0]]
    return [
        _result(contestant, seconds[0] / spent, drawn, pictures[0])
        for contestant, spent, drawn in zip(contestants, seconds, pictures, strict=True)
    ]


def _told(steps: Iterator[Drawn], on_step: Callable[[], object]) -> Iterator[Drawn]:
    for drawn in steps:
        on_step()
        yield drawn


def _median(rounds: Sequence[Sequence[float]]) -> float:
    """The seconds of all steps, each the median over ``rounds``."""
    return sum(map(statistics.median, zip(*rounds, strict=True)))


def _result(contestant: Contestant, clock_speedup: float, found: torch.Tensor, reference: torch.Tensor) -> Result:
    return Result(
        name=contestant.name,
        group=contestant.group,
        decisions=contestant.decisions,
        flops_speedup=contestant.flops_speedup,
        clock_speedup=clock_speedup,
        psnr=float(psnr(found, reference).mean()),
        relative_error=float((found - reference).norm() / reference.norm()),
        pictures=found,
        report=contestant.report,
    )
