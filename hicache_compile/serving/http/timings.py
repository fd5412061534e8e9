"""How long things take here: running medians of full steps, and of whole pictures."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Hashable
from dataclasses import dataclass
from statistics import median

REMEMBERED = 128  # of each kind
KINDS = 64
ENOUGH = 3  # full steps of a picture, for a median of its own
FULL = "F"


@dataclass(frozen=True, slots=True)
class Timing:
    """Of one picture, in seconds.

    ``whole``: from acceptance to the picture. ``first_step``: from acceptance to the end of the first step; ``None``
    where there was none. ``uncached``: what all its steps would take in full; ``None`` before a full step like
    its own was measured.
    """

    whole: float
    first_step: float | None
    uncached: float | None

    def as_data(self) -> dict[str, float | None]:
        """For JSON, to the millisecond."""
        values = {"seconds": self.whole, "first_step_seconds": self.first_step, "uncached_seconds": self.uncached}
        return {name: None if value is None else round(value, 3) for name, value in values.items()}


class Clock:
    """The steps of one picture, each as long as since the one before it in the same guidance branch.

    Args:
        began: when the picture was accepted.
    """

    def __init__(self, began: float) -> None:
        self.began = began
        self.first: float | None = None
        self.full: list[float] = []
        self._context, self._last = "", began

    def step(self, number: int, context: str, decision: str, now: float) -> bool:
        """Note the step; returns whether it is one of the branch that is followed, which is the first seen.

        A picture that is made again begins at step 0 again.
        """
        if self.first is None:
            self.first, self._context = now - self.began, context
        elif context != self._context:
            return False
        elif number > 0 and decision == FULL:
            self.full.append(now - self._last)
        self._last = now
        return True


class Timings:
    """Medians over the latest pictures. Call it from one thread."""

    def __init__(self) -> None:
        self._full: OrderedDict[Hashable, deque[float]] = OrderedDict()
        self._pictures: deque[float] = deque(maxlen=REMEMBERED)

    def note(self, alike: Hashable, clock: Clock, seconds: float) -> None:
        """Remember a picture that took ``seconds``.

        ``alike``: equal for those whose full steps take equally long; the kind not seen for longest is forgotten.
        """
        self._pictures.append(seconds)
        self._full.setdefault(alike, deque(maxlen=REMEMBERED)).extend(clock.full)
        self._full.move_to_end(alike)
        if len(self._full) > KINDS:
            self._full.popitem(last=False)

    def uncached(self, alike: Hashable, steps: int, clock: Clock) -> float | None:
        """Seconds that ``steps`` full steps take; ``None`` before there was one of this kind.

        Those of the picture itself are asked where it had some, since they shared the machine with as many others.
        """
        known = clock.full if len(clock.full) >= ENOUGH else self._full.get(alike)
        return steps * median(known) if known else None

    def picture(self) -> float:
        """Seconds of a picture; 1 before there was any."""
        return median(self._pictures) if self._pictures else 1.0
