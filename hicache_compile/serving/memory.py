"""Whether there is room for the anchors of one more request."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Hashable, Iterable, Sequence

from hicache_compile.frontend.denoiser import CompiledDenoiser
from hicache_compile.policy.policy import Policy
from hicache_compile.serving.request import Request

log = logging.getLogger(__name__)

# Arguments on which the shapes in the denoiser depend, and so the bytes of a request.
_SIZES = ("height", "width", "num_frames", "num_images_per_prompt", "num_videos_per_prompt")


class Memory:
    """What requests take, learned from those before them.

    Args:
        budget: bytes; ``None``: any number.
        policy: of requests that bring none.
    """

    def __init__(self, budget: int | None, policy: Callable[[], Policy]) -> None:
        self._budget, self._policy = budget, policy
        self._known: dict[Hashable, int] = {}
        self._lock = threading.Lock()

    def has_room(self, requests: Iterable[Request]) -> bool:
        """Whether all of ``requests`` can be under way at once; not while it is unknown what one of them takes."""
        if self._budget is None:
            return True
        wanted = [self._bytes_of(request) for request in requests]
        return None not in wanted and sum(each or 0 for each in wanted) <= self._budget

    def learn(self, request: Request, denoisers: Sequence[CompiledDenoiser]) -> bool:
        """Look at what ``request``, whose thread this is, keeps; returns whether it is more than before."""
        sessions = [denoiser._session for denoiser in denoisers]
        contexts = [context for session in sessions for context in session.contexts.values()]
        nbytes = sum(state.nbytes for context in contexts for state in context.states.values())
        if nbytes <= request.nbytes:
            return False
        with self._lock:
            if self._budget is not None and nbytes > self._budget >= max(self._known.values(), default=0):
                log.warning(
                    "memory_budget = %s bytes: a request keeps %s, so requests are made one at a time",
                    f"{self._budget:,}",
                    f"{nbytes:,}",
                )
            request.nbytes = nbytes
            kind = self._kind(request)
            self._known[kind] = max(self._known.get(kind, 0), nbytes)
        return True

    def _bytes_of(self, request: Request) -> int | None:
        known = self._known.get(self._kind(request))
        return max(request.nbytes, known) if known is not None else request.nbytes or None

    def _kind(self, request: Request) -> Hashable:
        policy = request.policy or self._policy()
        return policy.layout, *(str(request.call.get(name)) for name in _SIZES)
