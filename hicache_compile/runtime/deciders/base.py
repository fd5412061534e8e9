"""What a decider is: it turns a policy into decisions, step by step, and says what each program reads."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from hicache_compile.passes.graph.choices import Choice
from hicache_compile.passes.graph.inputs import StateInput

Resolve = Callable[[int], None]  # told which guard ended a step (0: none did), once that is known
Inputs = Mapping[StateInput, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Decision:
    """What a step does.

    Args:
        choice: the program that ends the step.
        letter: as the report shows it.
        reads: guards whose measurement is read after the step.
        reused: the share of all keys that were reused (DiTango).
        pending: the graph decides; what it decided is read later.
    """

    choice: Choice
    letter: str
    reads: tuple[int, ...] = ()
    reused: float = 0.0
    pending: bool = False


def letter_of(choice: Choice) -> str:
    """The letter of a step of ``choice`` in reports."""
    if choice.forecasts:
        return "t" if choice.tokens else "p" if choice.partial else "."
    return "S" if choice.is_sparse else "F"


class Ask(NamedTuple):
    """A probe to run in the middle of a step; ``reads``: whether the host reads what it measured for ``guard``."""

    probe: Choice
    guard: int
    reads: bool


Measured = list[Any]  # what a probe measured, as plain numbers
Asking = Generator[Ask, Measured, Decision]


class Decider(ABC):
    """The decisions of one captured graph in one run of one context.

    Args:
        num_steps: length of the run; ``None``: unknown.
        start: the step at which nothing is remembered yet.
    """

    shareable = False  # whether contexts whose steps are alike may share one
    spans_ranks = False  # measurements are means over the ranks, each of which holds a part of the tokens

    def __init__(self, num_steps: int | None, start: int) -> None:
        self.num_steps = num_steps
        self.start = start
        self.nonfinite = 0  # measurements that could not be decided by

    @abstractmethod
    def choices(self, num_steps: int) -> Iterable[Choice]:
        """Every program that a run of ``num_steps`` may need."""

    @abstractmethod
    def decide(self, step: int, forced: bool) -> Decision | Asking:
        """What ``step`` does; a generator where probes have to run first. ``forced``: it is computed."""

    @abstractmethod
    def inputs(self, step: int, decision: Decision, device: torch.device, dtype: torch.dtype) -> Inputs:
        """What the program of ``step`` reads besides the denoiser's inputs and what is kept."""

    def after(self, step: int, decision: Decision, measured: Mapping[int, Measured]) -> None:
        """``step`` was made; ``measured``: by the guards in ``decision.reads``."""

    def take(self, after: Inputs, resolve: Resolve) -> None:
        """Keep what a program without side effects returned; ``resolve`` is told what a pending decision was."""

    def settle(self) -> bool:
        """Resolve the decisions that are pending; whether there were any."""
        return False

    def smallest(self) -> Mapping[int, float]:
        """By the number of a guard the smallest number that was held against its threshold so far."""
        return {}

    def carry_over(self, before: Decider | None) -> None:
        """Take over the pending decisions of the run before."""

    def known(self, step: int) -> Sequence[int]:
        """How many anchors were written before ``step``, by group."""
        return [0]

    def state_dict(self) -> dict[str, Any]:
        """Everything that later decisions depend on, as plain data."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what ``state_dict`` returned."""
