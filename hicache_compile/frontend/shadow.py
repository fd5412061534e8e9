"""Runs in the shadow: of many calls of a pipeline one is made again in full, later: is the promise kept?"""

from __future__ import annotations

import logging
import math
import threading
from collections import deque
from collections.abc import Hashable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from hicache_compile.errors import HiCacheError, whole_number
from hicache_compile.frontend.pipeline import denoisers_of, is_pipeline
from hicache_compile.frontend.watched_callback import length_of, watched
from hicache_compile.policy.packs import Contract, ContractReport

log = logging.getLogger(__name__)

AFTER_A_CHANGE = 20  # calls that are all kept once the weights were changed (a LoRA)
ROUNDED = 0.02  # errors below are measured too large by a tenth and more where pictures have 8 bits
WAITING = 32  # calls kept at most; the oldest go


@dataclass(frozen=True, slots=True)
class _Kept:
    """A call that was made with the cache: what it was given, the random state it drew from, its pictures
    ``[B, ...]``, the policy and the weights it was made with."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    noise: list[torch.Tensor]
    pictures: torch.Tensor
    policy: str
    weights: int


class Shadow:
    """A pipeline that was compiled with a pack, called through this, watches over its promise.

    Every ``every``-th call is kept, and ``check`` makes it again without the cache, over the same noise: when nothing
    else is to be done, or on request. Errors are given to the contract; where they break the promise the policy steps
    back, with a warning. Calls under another policy (``promising``), of another length than the pack, or that a
    callback steered are not kept.

    Args:
        pipeline: what ``hicache_compile(pipe, "pack.json", max_error=...)`` returned.
        every: of so many calls one is kept; all of the next 20 once a method of the denoiser changed its weights.

    Raises:
        HiCacheError: no denoiser of ``pipeline`` has a contract, or ``every`` is no integer >= 1.
    """

    def __init__(self, pipeline: Any, every: int = 20) -> None:
        whole_number("Shadow", "every", every, 1)
        self._denoisers = denoisers_of(pipeline) if is_pipeline(pipeline) else []
        contracts = [one.contract for one in self._denoisers if one.contract is not None]
        if not contracts:
            raise HiCacheError(
                f"Shadow.pipeline = {type(pipeline).__name__}: must be compiled with a pack as policy: "
                'hicache_compile(pipe, "pack.json", max_error=...)'
            )
        self.pipeline = pipeline
        self.every = every
        self.contract: Contract = contracts[0]
        self._calls = 0
        self._weights = self._changes()
        self._all_until = 0
        self._waiting = deque[_Kept](maxlen=WAITING)
        self._lock = threading.Lock()  # a call and a check use one pipeline

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the pipeline, and return what it returns."""
        with self._lock:
            if self._weights != (changes := self._changes()):
                self._weights, self._all_until = changes, self._calls + AFTER_A_CHANGE
            wanted = self._calls % self.every == 0 or self._calls < self._all_until
            self._calls += 1
            if not wanted or not self._as_promised(args, kwargs):
                return self.pipeline(*args, **kwargs)
            given = tuple(map(_copied, args)), {key: _copied(value) for key, value in kwargs.items()}
            noise = _states()
            seen, callbacks = watched(kwargs, self._attributes)
            made = self.pipeline(*args, **seen)
            if any(each.steered for each in callbacks):
                return made
            try:
                pictures = pictures_of(made, self.contract.promised)
            except HiCacheError as error:  # the caller gets what it asked for
                log.warning("a call is not checked: %s", error)
                return made
            self._waiting.append(_Kept(*given, noise, pictures, self.contract.entry.name, changes))
            return made

    @property
    def waiting(self) -> int:
        """How many calls are kept to be checked."""
        return len(self._waiting)

    def check(self, most: int | None = None) -> list[float]:
        """Make the kept calls again in full, at most ``most`` of them; returns the relative error (2-norm) of each of
        their pictures. A call under a policy that was stepped back from, or with other weights, is dropped.

        Callbacks of a call are not called again. The generators and the global random state of the caller are as they
        were afterwards.
        """
        found: list[float] = []
        made = 0
        while self._waiting and (most is None or made < most):
            with self._lock:
                kept = self._waiting.popleft()
                if (kept.policy, kept.weights) != (self.contract.entry.name, self._changes()):
                    continue
                made += 1
                for error in self._errors(kept):
                    found.append(error)
                    if self.contract.observe(error) is not None:
                        self._step_back(kept.policy)
                        break
        return found

    def report(self) -> ContractReport:
        """How the promise has been kept so far."""
        return self.contract.report()

    def _as_promised(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether a call now is one of those that the promise is of."""
        policy = self.contract.entry.policy
        mine = all(one._session.next_policy == one._fitted(policy) for one in self._denoisers)
        return mine and length_of(self.pipeline, args, kwargs) in (None, self.contract.pack.steps)

    def _errors(self, kept: _Kept) -> list[float]:
        again = {key: value for key, value in kept.kwargs.items() if not key.startswith("callback")}
        with ExitStack() as stack:
            stack.enter_context(_drawing_from(kept.noise))
            for denoiser in self._denoisers:
                stack.enter_context(denoiser.disabled())
            full = pictures_of(self.pipeline(*kept.args, **again))
        off, size = ((values.flatten(1).norm(dim=1)) for values in (kept.pictures - full, full))
        return (off / size.clamp_min(1e-12)).tolist()

    def _step_back(self, before: str) -> None:
        entry = self.contract.entry
        log.warning(
            "the promise of max_error %.4g is broken by policy %r: it steps back to %r. Measure this model again: "
            "hicache eval --pack",
            self.contract.promised,
            before,
            entry.name,
        )
        for denoiser in self._denoisers:
            denoiser.policy = entry.policy

    def _attributes(self) -> Hashable:
        return tuple(one._session.shared.changes() for one in self._denoisers)

    def _changes(self) -> int:
        return sum(one._session.shared.parameters_epoch for one in self._denoisers)


def pictures_of(made: Any, promised: float = math.inf) -> torch.Tensor:
    """What a pipeline returned, one picture or clip a row, ``[B, ...]``, as float32 in [-1, 1], on the CPU.

    Raises:
        HiCacheError: it returned no pictures (``output_type="latent"``), or pictures of 8 bits, whose rounding is too
            much for errors as small as ``promised``.
    """
    named = next(iter(made.values())) if hasattr(made, "values") else None
    found = made[0] if isinstance(made, tuple | list) else named
    if promised < ROUNDED and isinstance(found, list):
        raise HiCacheError(
            f"Shadow: pictures of 8 bits are rounded, which is too much for a promise below {ROUNDED}: call the "
            "pipeline with output_type 'np' or 'pt'"
        )
    values = _as_tensor(found)
    if values is None or values.dim() < 4 or not -1e-3 <= values.min() <= values.max() <= 1 + 1e-3:
        raise HiCacheError(
            "Shadow: the pipeline must return pictures, to hold them against those in full: call it with output_type "
            "'pil', 'np' or 'pt'"
        )
    return values * 2 - 1


def _as_tensor(found: Any) -> torch.Tensor | None:
    """Pictures in [0, 1], as they are, or lists of pictures of 8 bits."""
    if isinstance(found, torch.Tensor | np.ndarray):
        return torch.as_tensor(found).detach().float().cpu()
    if isinstance(found, list | tuple) and found:
        parts = [part for part in map(_as_tensor, found) if part is not None]
        return torch.stack(parts) if len(parts) == len(found) else None
    return torch.as_tensor(np.array(found)).float() / 255 if hasattr(found, "getpixel") else None


def _copied(value: Any) -> Any:
    """What a call is given, as it is now: its caller may draw from generators and write into tensors and pictures."""
    if isinstance(value, torch.Generator):
        return value.clone_state()
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if isinstance(value, np.ndarray) or hasattr(value, "getpixel"):
        return value.copy()
    if type(value) in (list, tuple):
        return type(value)(map(_copied, value))
    return {key: _copied(one) for key, one in value.items()} if type(value) is dict else value


def _states() -> list[torch.Tensor]:
    """The global random state, of the CPU and of each CUDA device."""
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if torch.cuda.is_available() else ())]


@contextmanager
def _drawing_from(states: list[torch.Tensor]) -> Iterator[None]:
    """Inside, the global random state is ``states``."""
    with torch.random.fork_rng():
        torch.set_rng_state(states[0])
        if states[1:]:
            torch.cuda.set_rng_state_all(states[1:])
        yield
