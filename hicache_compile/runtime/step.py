"""Contexts (guidance branches), and the step in progress in one of them."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from hicache_compile.internals import TorchDispatchMode
from hicache_compile.passes.graph.choices import Choice
from hicache_compile.passes.work import Stage
from hicache_compile.policy.policy import Policy
from hicache_compile.runtime.deciders.base import Decision
from hicache_compile.runtime.replay.parameters import Parameters
from hicache_compile.runtime.replay.replay import GraphCall, Replays
from hicache_compile.runtime.storage.rings import Rings

HISTORY = 256
Ran = tuple[object, Choice, float]  # a graph, the program it ran, the share of keys that were reused


@dataclass(slots=True)
class Context:
    """One sequence of steps: the run itself, or one guidance branch of it."""

    name: str
    policy: Policy
    trajectory: int = -1
    step: int = 0
    follows: bool = False  # the next call may go on with this run, where the timestep tells
    ambiguous: bool = False
    history: deque[list[str]] = field(default_factory=lambda: deque(maxlen=HISTORY))
    states: dict[int, Rings] = field(default_factory=dict)  # by the graph's place in a call
    replays: Replays = field(default_factory=Replays)
    first_call: Any = None  # the signature of its arguments, for reports; None where they have none
    capture: object = None  # which its last call ran, of those that differ in what they read of data
    choices: Counter[Ran] = field(default_factory=Counter)  # what the newest run ran

    def begin(self, trajectory: int, policy: Policy) -> None:
        """Start over under ``policy``, or what it has for this branch: step 0, no anchors."""
        self.trajectory = trajectory
        self.policy = policy.for_branch(self.name)
        self.step = 0
        self.ambiguous = False
        self.replays.clear()
        self.history.append([])
        self.choices.clear()

    def drop_stale(self, place: int) -> None:
        """Free the rings at ``place`` and those this trajectory has not used."""
        current = {at: state for at, state in self.states.items() if state.trajectory == self.trajectory}
        self.states = {at: state for at, state in current.items() if at != place}

    def letters(self) -> str:
        """The decisions of the newest trajectory."""
        return "".join(self.history[-1]) if self.history else ""

    def invalidate(self) -> None:
        """The anchors are no longer what they should be: the next step starts over, in a run of its own where no other
        signal says which run it is of."""
        self.follows = False
        self.forget_anchors()

    def free(self) -> None:
        """``invalidate``, and free the memory of the anchors."""
        self.invalidate()
        self.states = {}

    def forget_anchors(self) -> None:
        """The step in progress starts over."""
        self.replays.clear()
        for state in self.states.values():
            state.invalidate()

    def resolve(self, letters: list[str], place: int, graph: object, stages: Sequence[Stage], code: int) -> None:
        """Guard ``code - 1`` ended the step at ``place`` of the run ``letters`` (0: none did)."""
        choice = Choice.FULL if not code else stages[code - 1].skip if stages else Choice.FORECAST
        letters[place] = "F" if not code else "." if code == 1 else "s"
        if self.history and letters is self.history[-1]:
            self.choices[graph, choice, 0.0] += 1


@dataclass(slots=True)
class Step:
    """One denoiser call in progress, which the compiled graphs read to know what to do.

    Args:
        context, index: which step it is.
        num_steps: of the run; ``None``: unknown.
        uncached: nothing is cached in this step.
        doubtful: whether it goes on with the run before it is only known later, so it is computed.
        letter: of the newest graph that cached something.
        graphs: those that ran.
        calls: what they ran on, where that can be replayed.
        choices: what they ran.
        syncs: how often the host waited for the device.
        modes: the caller's dispatch modes, set aside until a program runs.
    """

    context: Context
    index: int
    num_steps: int | None
    uncached: bool = False
    doubtful: bool = False
    letter: str = "F"
    graphs: list[object] = field(default_factory=list)
    calls: list[GraphCall] = field(default_factory=list)
    choices: list[Ran] = field(default_factory=list)
    syncs: int = 0
    modes: list[TorchDispatchMode] = field(default_factory=list)

    @property
    def forced(self) -> bool:
        """Whether nothing may be forecast in this step."""
        return self.uncached or self.doubtful or self.context.ambiguous

    @property
    def known_to_skip(self) -> bool:
        """Whether it is forecast, as far as that is known before it is made."""
        policy = self.context.policy
        if policy.guards or policy.layout.groups or policy.layout.partitions or self.forced or not self.index:
            return False
        return not policy.schedule.computes(self.index, self.num_steps)

    def lower(self, graph: Any) -> None:
        """Lower what ``graph``, which was captured for it, needs first."""
        graph.lower(self)

    def compute(self, graph: Any, inputs: Sequence[Any], parameters: Parameters) -> Any:
        """Run ``graph``, a ``CompiledGraph``, for it."""
        return graph.compute(self, inputs, parameters)

    def record(self, graph: object, decision: Decision) -> None:
        """``graph`` made the step as ``decision`` says."""
        self.letter = decision.letter
        if not decision.pending:
            self.choices.append((graph, decision.choice, decision.reused))

    def resolver(self, graph: object, stages: Sequence[Stage]) -> Callable[[int], None]:
        """Writes down which guard ended this step, once that is known."""
        letters = self.context.history[-1]
        return partial(self.context.resolve, letters, len(letters), graph, stages)

    def invalidate(self) -> None:
        """It failed: see ``Context.invalidate``."""
        self.context.invalidate()

    @property
    def has_written(self) -> bool:
        """Whether any anchors are no longer those of the step before."""
        return any(state.next_step != self.index for state in self.context.states.values())

    def start_over(self) -> None:
        """The call is made again, by another capture; anchors that it wrote already are forgotten."""
        written = self.has_written
        self.undo()
        if written:
            self.context.forget_anchors()

    def undo(self) -> None:
        """The call can be made again: forecasts wrote nothing."""
        self.letter, self.syncs = "F", 0
        self.graphs, self.calls, self.choices = [], [], []
        for state in self.context.states.values():
            if state.next_step == self.index + 1:
                state.next_step = self.index
