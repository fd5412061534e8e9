"""What is measured of a model before anything is fitted to it: runs in full, and how far apart their steps are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from hicache_compile.errors import HiCacheError
from hicache_compile.frontend.denoiser import CompiledDenoiser
from hicache_compile.policy.forecasters import Calibrated, Table
from hicache_compile.policy.policy import Policy
from hicache_compile.tune.calibrate import Calibration
from hicache_compile.tune.planning import mask_of
from hicache_compile.tune.reference import Difference, Reference, Runs, record

READS = 4  # anchors


@dataclass(frozen=True, slots=True)
class Measured:
    """Runs in full, and what was measured of them: all that fitting needs.

    ``runs``: functions that each sample once with ``denoiser`` and return the sample, or anything. ``cut``: a policy
    at the scope that is fitted.
    """

    denoiser: CompiledDenoiser
    runs: Runs
    references: Sequence[Reference]
    distances: np.ndarray
    cut: Policy

    @property
    def num_steps(self) -> int:
        return len(self.distances)

    @property
    def table(self) -> Table:
        """The distances, to seven digits, and how many slots there are."""
        upper = self.distances[np.triu_indices(self.num_steps, 1)]
        return Table(self.num_steps, tuple(float(f"{value:.7g}") for value in upper), (), self.references[0].slots)


def measure(
    denoiser: CompiledDenoiser, runs: Runs, scope: str = "stack", first: int = 0, last: int = 0, reads: int = READS
) -> Measured:
    """Make ``runs`` in full and measure them.

    Args:
        denoiser: what ``hicache_compile`` returned; its policy is put back.
        runs: each samples once with it, inside ``denoiser.trajectory`` or through its pipeline, the same each time it
            is called. What it returns is compared, where that is a tensor.
        scope, first, last: where to cut, as of ``Policy``.
        reads: the most anchors a forecast may read.

    Raises:
        HiCacheError: an argument is not what is allowed, or the runs differ in length.
    """
    if not isinstance(denoiser, CompiledDenoiser) or not runs:
        raise HiCacheError("measure.denoiser, runs: must be a compiled denoiser and one or more functions that sample")
    unknown = Calibrated(Table(2, (0.0,)), reads)
    cut = Policy(mask_of([0], 1), unknown, scope, first=first, last=last)
    references, distances = record(denoiser, runs, cut)
    return Measured(denoiser, runs, references, distances, cut)


def results(measured: Measured, policy: Policy) -> list[torch.Tensor]:
    """What the runs return under ``policy``, float32.

    Raises:
        HiCacheError: they return no tensors to compare.
    """
    found = []
    kept = measured.denoiser.policy
    measured.denoiser.policy = policy
    try:
        for run, reference in zip(measured.runs, measured.references, strict=True):
            result = run()
            if not isinstance(result, torch.Tensor) or reference.result is None:
                raise HiCacheError("measure.runs: must return tensors, the samples, to tell policies apart by")
            found.append(result.detach().float())
    finally:
        measured.denoiser.policy = kept
    return found


def tried(measured: Measured, policy: Policy) -> Calibration:
    """``policy``, and how far its runs end from those in full: relative, 2-norm.

    Raises:
        HiCacheError: the runs return no tensors to compare.
    """
    difference = Difference()
    for found, reference in zip(results(measured, policy), measured.references, strict=True):
        assert reference.result is not None
        difference.add(found, reference.result)
    return Calibration(policy, difference.relative)
