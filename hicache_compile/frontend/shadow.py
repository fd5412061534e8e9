"""Runs in the shadow: of many calls of a pipeline one is made again in full, later: is the promise kept?"""

from __future__ import annotations

import copy
import logging
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from hicache_compile.errors import HiCacheError, whole_number
from hicache_compile.frontend.denoiser import CompiledDenoiser
from hicache_compile.policy.packs import Contract, ContractReport

log = logging.getLogger(__name__)

AFTER_A_CHANGE = 20  # calls that are all kept once the weights were changed (a LoRA)
WAITING = 8  # calls kept at most; the oldest go


@dataclass(frozen=True, slots=True)
class _Kept:
    """A call that was made with the cache: what it was given, the noise it drew from, its pictures ``[B, ...]``."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    noise: list[torch.Tensor]
    pictures: torch.Tensor
    policy: str


class Shadow:
    """A pipeline that was compiled with a pack, called through this, watches over its promise.

    Every ``every``-th call is kept, and ``check`` makes it again without the cache, over the same noise: when nothing
    else is to be done, or on request. Errors are given to the contract; where they break the promise the policy steps
    back, with a warning.

    Args:
        pipeline: what ``hicache_compile(pipe, "pack.json", max_error=...)`` returned.
        every: of so many calls one is kept; all of the next 20 once a method of the denoiser changed its weights.

    Raises:
        HiCacheError: no denoiser of ``pipeline`` has a contract, or ``every`` is no integer >= 1.
    """

    def __init__(self, pipeline: Any, every: int = 20) -> None:
        whole_number("Shadow", "every", every, 1)
        components = getattr(pipeline, "components", {}).values()
        self._denoisers = [one for one in components if isinstance(one, CompiledDenoiser)]
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

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the pipeline, and return what it returns."""
        if self._weights != (changes := self._changes()):
            self._weights, self._all_until = changes, self._calls + AFTER_A_CHANGE
        wanted = self._calls % self.every == 0 or self._calls < self._all_until
        self._calls += 1
        if not wanted:
            return self.pipeline(*args, **kwargs)
        given = {key: _copied(value) for key, value in kwargs.items()}
        noise = _states()
        made = self.pipeline(*args, **kwargs)
        self._waiting.append(_Kept(args, given, noise, pictures_of(made), self.contract.entry.name))
        return made

    @property
    def waiting(self) -> int:
        """How many calls are kept to be checked."""
        return len(self._waiting)

    def check(self, most: int | None = None) -> list[float]:
        """Make the kept calls again in full, at most ``most`` of them; returns the error of each, relative, 2-norm.

        The generators and the global random state of the caller are as they were afterwards.
        """
        found: list[float] = []
        while self._waiting and (most is None or len(found) < most):
            kept = self._waiting.popleft()
            if kept.policy != self.contract.entry.name:
                continue  # of a policy that was stepped back from
            found.append(self._error(kept))
            back = self.contract.observe(found[-1])
            if back is not None:
                self._step_back(kept.policy)
        return found

    def report(self) -> ContractReport:
        """How the promise has been kept so far."""
        return self.contract.report()

    def _error(self, kept: _Kept) -> float:
        with ExitStack() as stack:
            stack.enter_context(_drawing_from(kept.noise))
            for denoiser in self._denoisers:
                stack.enter_context(denoiser.disabled())
            full = pictures_of(self.pipeline(*kept.args, **kept.kwargs))
        return float((kept.pictures - full).norm() / full.norm().clamp_min(1e-12))

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

    def _changes(self) -> int:
        return sum(one._session.shared.parameters_epoch for one in self._denoisers)


def pictures_of(made: Any) -> torch.Tensor:
    """What a pipeline returned, as float32 in [-1, 1], on the CPU.

    Raises:
        HiCacheError: it returned no pictures (``output_type="latent"``).
    """
    found = made[0] if isinstance(made, tuple) else next(iter(made.values()))
    if isinstance(found, torch.Tensor | np.ndarray):
        values = torch.as_tensor(found).detach().float().cpu()
    else:
        values = torch.stack([torch.as_tensor(np.array(one)) for one in _flat(found)]).float()
        values = values / 255 if values.max() > 1 else values
    if values.dim() < 4 or values.min() < -1e-3 or values.max() > 1 + 1e-3:
        raise HiCacheError(
            "Shadow: the pipeline must return pictures, to hold them against those in full: call it with output_type "
            "'pil', 'np' or 'pt'"
        )
    return values * 2 - 1


def _flat(found: Any) -> Iterator[Any]:
    for one in found:
        if isinstance(one, list | tuple):
            yield from _flat(one)
        else:
            yield one


def _copied(value: Any) -> Any:
    """A generator as it is now, anything else as it is."""
    if isinstance(value, torch.Generator):
        return value.clone_state()
    if isinstance(value, list):
        return [_copied(one) for one in value]
    return copy.copy(value) if isinstance(value, dict) else value


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
