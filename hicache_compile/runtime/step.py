"""What the step counter counts: contexts (guidance branches) and the step in progress in one of them."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field

from torch.utils._python_dispatch import TorchDispatchMode

from hicache_compile.policy.policy import Policy
from hicache_compile.runtime.replay.replay import GraphCall, Replays
from hicache_compile.runtime.storage.rings import AnchorState

HISTORY = 256


@dataclass(slots=True)
class Context:
    """One sequence of steps: the run itself, or one guidance branch of it."""

    name: str
    policy: Policy
    trajectory: int = -1
    step: int = 0
    last_step: int = -1
    last_time: float | None = None
    ambiguous: bool = False
    history: deque[list[str]] = field(default_factory=lambda: deque(maxlen=HISTORY))
    states: dict[int, AnchorState] = field(default_factory=dict)  # by the graph's place in a call
    replays: Replays = field(default_factory=Replays)
    choices: Counter[tuple[object, str]] = field(default_factory=Counter)  # programs the newest run ran, by graph

    def begin(self, trajectory: int, policy: Policy) -> None:
        """Start over under ``policy``: step 0, no anchors."""
        self.trajectory = trajectory
        self.policy = policy
        self.step = 0
        self.last_step = -1
        self.last_time = None
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
        """The anchors are no longer what they should be: the next step starts over."""
        self.last_time = None
        self.replays.clear()
        for state in self.states.values():
            state.invalidate()


@dataclass(slots=True)
class Step:
    """One denoiser call in progress, which the compiled graphs read to know what to do.

    ``letter``, ``graphs``, ``calls``, ``choices`` and ``syncs`` are written by the graphs: ``.`` once one of them
    forecast, which of them ran, on what, which programs, and how often the host waited for a measurement.
    ``modes`` are the caller's dispatch modes, set aside until a program runs.
    """

    context: Context
    index: int
    num_steps: int | None
    uncached: bool = False
    together: bool = False  # all ranks decide alike
    letter: str = "F"
    graphs: list[object] = field(default_factory=list)
    calls: list[GraphCall] = field(default_factory=list)
    choices: list[tuple[object, str]] = field(default_factory=list)
    syncs: int = 0
    modes: list[TorchDispatchMode] = field(default_factory=list)

    def undo(self) -> None:
        """The call can be made again: forecasts wrote nothing."""
        self.letter, self.syncs = "F", 0
        self.graphs, self.calls, self.choices = [], [], []
        for state in self.context.states.values():
            if state.next_step == self.index + 1:
                state.next_step = self.index
