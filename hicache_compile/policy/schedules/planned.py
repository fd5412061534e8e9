"""A plan: the steps to compute, and the noise levels it was made for."""

from __future__ import annotations

from collections.abc import Sequence

from hicache_compile.errors import HiCacheError, numbers
from hicache_compile.policy.plain_data import plain_data
from hicache_compile.policy.run import RunInfo
from hicache_compile.policy.schedules.base import StepMask

NEAR = 0.5  # of timesteps in 0..1000: what float16 makes of them


@plain_data
class PlannedSteps(StepMask):
    """Compute the steps marked ``1``, in runs over the timesteps that the plan was made for and in no others.

    Which steps may be skipped, with which weights, depends on the noise levels of all steps: the same mask over other
    levels is another picture. So a run is held against ``times`` when it begins.

    Args:
        mask: as of ``StepMask``.
        times: the timesteps of the run, in 0..1000, one a step.
        sigmas: what a pipeline is called with, ``pipe(..., sigmas=policy.sigmas)``, for its scheduler to come to
            ``times``; ``None``: it comes to them by itself.

    Raises:
        HiCacheError: the mask is none, or ``times`` or ``sigmas`` are not one for each of its steps.
    """

    times: tuple[float, ...]
    sigmas: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        StepMask.__post_init__(self)
        for name in ("times", "sigmas"):
            given = getattr(self, name)
            if given is None and name == "sigmas":
                continue
            values = numbers("PlannedSteps", name, given)
            if len(values) != len(self.mask):
                raise HiCacheError(f"PlannedSteps.{name}: {len(values)} of them, must be {len(self.mask)}, one a step")
            object.__setattr__(self, name, values)

    def bind(self, run: RunInfo) -> StepMask:
        """The mask for ``run``.

        Raises:
            HiCacheError: its timesteps are not those of the plan, or nobody knows them.
        """
        if run.times is None:
            return StepMask(self.mask).bind(run)
        found = run.times()
        if found is None:
            raise HiCacheError(
                "PlannedSteps.times: the timesteps of the run must be known, to be held against those of the plan; "
                "say them: trajectory(num_steps, timesteps=...)"
            )
        planned = self.times[run.start :]
        if len(found) != len(planned) or any(abs(a - b) > NEAR for a, b in zip(found, planned, strict=True)):
            raise HiCacheError(
                f"PlannedSteps.times: planned for {_short(planned)}, the run has {_short(found)}: must be the same; "
                f"{self._advice()}"
            )
        return StepMask(self.mask).bind(run)

    def _advice(self) -> str:
        if self.sigmas is None:
            return f"use the scheduler and the {len(self.mask)} steps that it was planned with"
        return "call the pipeline with sigmas=policy.sigmas, and the scheduler that it was planned with"


def _short(times: Sequence[float]) -> str:
    shown = [f"{time:g}" for time in times[:4]]
    return f"{', '.join(shown)}{', ...' if len(times) > 4 else ''} ({len(times)})"
