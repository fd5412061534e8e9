"""Forecasters with one parameter fitted per step of a run: Hermite's sigma, or the gate of a forecast."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar, TypeVar

from hicache_compile.errors import numbers, whole_number
from hicache_compile.policy.compatibility import Trait, traits_of
from hicache_compile.policy.forecasters.base import MAX_ORDER, Forecaster, check_inner
from hicache_compile.policy.forecasters.differences import Hermite
from hicache_compile.policy.plain_data import plain_data
from hicache_compile.policy.run import RunInfo, bound

N = TypeVar("N", int, float)


@plain_data
class SteppedHermite:
    """HiCache's forecast with a separate ``sigma`` for each step.

    Args:
        order: as in ``Hermite``.
        sigmas: one per step of a run; for a run of another length, the value at the same fraction of the run.
        num_steps: of the run; by default ``len(sigmas)``. Set by a run that states its length.
    """

    order: int
    sigmas: tuple[float, ...]
    num_steps: int | None = None

    traits: ClassVar[frozenset[Trait]] = frozenset({Trait.BY_RUN})

    def __post_init__(self) -> None:
        whole_number("SteppedHermite", "order", self.order, 0, MAX_ORDER)
        object.__setattr__(self, "sigmas", numbers("SteppedHermite", "sigmas", self.sigmas, 0.0))
        for sigma in set(self.sigmas):
            Hermite(self.order, sigma)  # raises if out of range
        if self.num_steps is not None:
            whole_number("SteppedHermite", "num_steps", self.num_steps, 1)

    def bind(self, run: RunInfo) -> SteppedHermite:
        """The forecaster for ``run``."""
        return self if run.num_steps in (None, self.num_steps) else replace(self, num_steps=run.num_steps)

    def weights(self, anchors: Sequence[int], target: int) -> list[float]:
        return Hermite(self.order, value_at(self.sigmas, target, self.num_steps)).weights(anchors, target)


@plain_data
class Gated:
    """A forecast damped by a fitted gate: ``anchor + gate * (forecast - anchor)``.

    A gate of 0 reuses the newest anchor, 1 applies the forecast in full. ``gates`` are fitted by least squares to the
    measured residuals, one for each step.

    Args:
        forecaster: the forecaster to damp.
        gates: one per step of a run; for a run of another length, the value at the same fraction of the run.
        num_steps: of the run; by default ``len(gates)``. Set by a run that states its length.
    """

    forecaster: Forecaster
    gates: tuple[float, ...]
    num_steps: int | None = None

    def __post_init__(self) -> None:
        check_inner("Gated", "forecaster", self.forecaster)
        object.__setattr__(self, "gates", numbers("Gated", "gates", self.gates))
        if self.num_steps is not None:
            whole_number("Gated", "num_steps", self.num_steps, 1)

    @property
    def traits(self) -> frozenset[Trait]:
        return (traits_of(self.forecaster) | {Trait.BY_RUN}) - {Trait.REUSES}

    def bind(self, run: RunInfo) -> Gated:
        """The forecaster for ``run``."""
        num_steps = self.num_steps if run.num_steps is None else run.num_steps
        return replace(self, forecaster=bound(self.forecaster, run), num_steps=num_steps)

    def weights(self, anchors: Sequence[int], target: int) -> list[float]:
        gate = value_at(self.gates, target, self.num_steps)
        newest, *older = self.forecaster.weights(anchors, target)
        return [1.0 - gate + gate * newest, *(gate * weight for weight in older)]


def value_at(values: Sequence[N], step: int, num_steps: int | None) -> N:
    """The value of ``step``, or the value at the same fraction of the measured run."""
    last = len(values) - 1
    place = step if num_steps is None else round(step * last / max(1, num_steps - 1))
    return values[min(place, last)]
