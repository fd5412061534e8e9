"""One request: a future of what the pipeline returns."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import CancelledError, Future
from typing import Any

from hicache_compile.policy.policy import Policy
from hicache_compile.serving.progress import Progress


class Request(Future[Any]):
    """What ``Batcher.submit`` returns.

    Args:
        call: the arguments of the pipeline's call.
        policy: of its run; ``None``: that of the denoiser.
        on_step: told of each step, from another thread.
        entry: the name of the policy in the pack that it was picked from; ``""``: it is of none.

    ``number``: how many were made before it.
    """

    _numbers = itertools.count()

    def __init__(
        self,
        call: Mapping[str, Any],
        policy: Policy | None,
        on_step: Callable[[Progress], None] | None,
        entry: str = "",
    ) -> None:
        super().__init__()
        self.entry, self.number = entry, next(self._numbers)
        self.call, self.policy, self.on_step = dict(call), policy, on_step
        self.nbytes = 0  # of its anchors so far
        self._steps: dict[str, list[str]] = {}
        self._telling = False
        self._stopped = threading.Event()
        self._when_stopped: list[Callable[[], None]] = []

    @property
    def decisions(self) -> str:
        """A letter for each step so far, of the guidance branch that was called first."""
        return "".join(next(iter(self._steps.values()), []))

    @property
    def stopped(self) -> bool:
        """Whether it was cancelled, though its thread may not have noticed."""
        return self._stopped.is_set()

    def cancel(self) -> bool:
        """Take it from the queue, or stop it at its next step; ``False`` where it is done already."""
        if self.done() and not super().cancelled():
            return False
        self._stopped.set()
        super().cancel()
        for tell in list(self._when_stopped):
            tell()
        return True

    def cancelled(self) -> bool:
        """Whether it was cancelled before it ran, or stopped while it did."""
        return super().cancelled() or (self.done() and isinstance(self.exception(), CancelledError))

    def when_stopped(self, tell: Callable[[], None]) -> None:
        """Call ``tell`` when it is cancelled."""
        self._when_stopped.append(tell)

    def made(self, progress: Progress) -> None:
        """A step was made in its thread: of it, or of a run that ``on_step`` makes."""
        if self._telling:
            return
        self._steps.setdefault(progress.context, []).append(progress.decision)
        if self.on_step is not None:
            self._telling = True
            try:
                self.on_step(progress)
            finally:
                self._telling = False
