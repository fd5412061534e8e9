"""MeanCache's forecast (2601.19961): the average velocity of a step, from those of the steps before it.

With ``v_i`` the velocity of step ``i``, computed or forecast, and ``s_i`` its noise level, the mean over the last ``K``
steps is ``u = (x_i - x_{i-K}) / (s_i - s_{i-K})``. Under Euler's rule ``x_{i+1} = x_i + (s_{i+1} - s_i) v_i``, so ``u``
is a mean of ``v_{i-K} .. v_{i-1}``, weighted by the levels alone, and no sample has to be kept:

    J = (u - v_{i-K}) / (s_i - s_{i-K})        v_i = v_{i-1} + (s_{i+1} - s_i) J

A forecast in the window is itself a sum of anchors, so every ``v_i`` is one, with weights that follow from the levels
and from which steps are computed. They are the same in all branches of guidance: to forecast each of them is to
forecast what a linear guidance makes of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np

from hicache_compile.errors import HiCacheError, numbers, whole_number
from hicache_compile.policy.compatibility import Trait
from hicache_compile.policy.forecasters.base import MOST_ANCHORS
from hicache_compile.policy.forecasters.stepped import value_at
from hicache_compile.policy.plain_data import plain_data
from hicache_compile.policy.run import RunInfo


@plain_data
class MeanVelocity:
    """MeanCache's forecast, for samplers of flow matching that go by Euler's rule.

    An anchor that is not read, or that dropped out of the ring, is as if the run had begun after it: the window of the
    average is cut there, as it is at the start of a run. What an anchor adds falls with every step after it, to about a
    quarter with ``span=2``.

    Args:
        span: steps that the average is taken over, ``K``, from 1 (plain reuse) to 31; or one number for each step of a
            run, for a run of another length the number at the same fraction of it.
        reads: the maximum number of anchors a forecast reads; as many as the longest span where all steps before are
            computed.
        times: the timesteps of the run, which end at 0 after the last. Set by a run that states them; by default the
            steps are evenly spaced.
        num_steps: of the run, for numbers by step; by default their number. Set by a run that states its length.

    Raises:
        HiCacheError: a field is not what is allowed.
    """

    span: int | tuple[int, ...] = 2
    reads: int = 6
    times: tuple[float, ...] | None = None
    num_steps: int | None = None

    traits: ClassVar[frozenset[Trait]] = frozenset({Trait.BY_RUN})

    def __post_init__(self) -> None:
        object.__setattr__(self, "span", _checked_span(self.span))
        whole_number("MeanVelocity", "reads", self.reads, 1, MOST_ANCHORS)
        if self.times is not None:
            times = numbers("MeanVelocity", "times", self.times, 0)
            object.__setattr__(self, "times", tuple(map(float, times)))
        if self.num_steps is not None:
            whole_number("MeanVelocity", "num_steps", self.num_steps, 1)

    def bind(self, run: RunInfo) -> MeanVelocity:
        """The forecaster for ``run``.

        Raises:
            HiCacheError: it has another number of timesteps.
        """
        known = run.known_times()
        times = self.times if known is None else tuple(map(float, known))
        length = run.num_steps or (len(times) if times else self.num_steps)
        if times and len(times) != length:
            raise HiCacheError(
                f"MeanVelocity.times = {times!r}: must be {length} numbers, one for each step of the run"
            )
        return self if (times, length) == (self.times, self.num_steps) else replace(self, times=times, num_steps=length)

    def weights(self, anchors: Sequence[int], target: int) -> list[float]:
        read = list(anchors[: self.reads])
        own = dict(zip(read, np.eye(len(read)), strict=True))
        velocities: list[np.ndarray] = []  # of the steps from the oldest anchor on, as weights of the anchors
        for step in range(read[-1], target + 1):
            velocities.append(own[step] if step in own else self._forecast(velocities, step))
        found: list[float] = velocities[-1].tolist()
        return found

    def _forecast(self, before: Sequence[np.ndarray], step: int) -> np.ndarray:
        """Of ``step``, from those ``before`` it, the newest last."""
        window = before[-self.span_at(step) :]
        levels = [self._level(one) for one in range(step - len(window), step + 2)]
        width = levels[-2] - levels[0]
        if not width:  # timesteps that come twice
            return before[-1]
        with np.errstate(all="ignore"):  # what is not finite is refused with the weights
            mean = np.diff(levels[:-1]) @ np.stack(window) / width
            forecast: np.ndarray = before[-1] + (levels[-1] - levels[-2]) / width * (mean - window[0])
        return forecast

    def span_at(self, step: int) -> int:
        """The span of the forecast of ``step``."""
        return self.span if isinstance(self.span, int) else value_at(self.span, step, self.num_steps)

    def _level(self, step: int) -> float:
        """The noise level of ``step``, of any scale."""
        if self.times is None:
            return -float(step)
        return self.times[step] if step < len(self.times) else 0.0


def _checked_span(span: Any) -> int | tuple[int, ...]:
    given = tuple(span) if isinstance(span, list | tuple) else (span,)
    whole = all(isinstance(one, int) and not isinstance(one, bool) for one in given)
    if not given or not whole or not 1 <= min(given) <= max(given) < MOST_ANCHORS:
        raise HiCacheError(
            f"MeanVelocity.span = {span!r}: must be an integer from 1 to {MOST_ANCHORS - 1}, or one for each step"
        )
    return given if isinstance(span, list | tuple) else given[0]
