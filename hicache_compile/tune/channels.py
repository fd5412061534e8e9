"""Which forecaster suits each channel of a slot (HyCa, 2510.04188): measured on runs in full.

At every step that a schedule skips, each candidate's forecast is compared with what is computed there, channel by
channel. Channels whose candidates err alike are clustered, so that little data decides little, and each cluster gets
the candidate of the least error.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from hicache_compile.errors import HiCacheError
from hicache_compile.passes.graph.inputs import Role
from hicache_compile.policy.forecasters import BDF2, ByChannel, Forecaster, Hermite, Newton, Reuse, weights
from hicache_compile.policy.policy import Policy
from hicache_compile.policy.schedules.base import Interval
from hicache_compile.runtime.session import Call
from hicache_compile.runtime.step import Step
from hicache_compile.tune.reference import Runs, newest

CANDIDATES: tuple[Forecaster, ...] = (Reuse(), Newton(1), Hermite(1), Hermite(2), Newton(2), BDF2())
CLUSTERS = 8  # of the channels of a slot
Slots = dict[int, torch.Tensor]  # their values in a step


def by_channel(
    denoiser: Any,
    runs: Runs,
    policy: Policy,
    candidates: Sequence[Forecaster] = CANDIDATES,
    clusters: int = CLUSTERS,
) -> ByChannel:
    """The best of ``candidates`` for each channel of each slot, under the schedule and scope of ``policy``.

    Args:
        denoiser: what ``hicache_compile`` returned; its policy is put back.
        runs: each samples once with it; all are made in full.
        candidates: forecasters that go by steps alone.
        clusters: of the channels of a slot, at most.

    Raises:
        HiCacheError: the denoiser is captured as several graphs, or ``policy`` computes every step.
    """
    clustering()  # of scipy: a missing package is said before the runs
    kept, errors = denoiser.policy, _Errors(policy, candidates)
    denoiser.policy = replace(policy, schedule=Interval(1))
    try:
        for run in runs:
            errors.begin()
            with denoiser.observed(errors):
                run()
    finally:
        denoiser.policy = kept
        denoiser.reset()
    if not errors.found:
        raise HiCacheError(f"channels.schedule = {policy.schedule!r}: must skip a step of these runs")
    chosen = {slot: _chosen(found, clusters) for slot, found in errors.found.items()}
    return ByChannel(tuple(candidates), tuple(chosen.get(slot, "") for slot in range(max(chosen) + 1)))


@dataclass(slots=True)
class _Errors:
    """Makes the calls of runs in full; ``found``: by slot the squared errors ``[C, candidates]`` so far."""

    policy: Policy
    candidates: Sequence[Forecaster]
    found: dict[int, np.ndarray] = field(default_factory=dict)
    _computed: dict[str, list[int]] = field(default_factory=dict)  # by context
    _anchors: dict[str, list[Slots]] = field(default_factory=dict)  # likewise, newest first

    def begin(self) -> None:
        """A run begins."""
        self._computed, self._anchors = {}, {}

    def __call__(self, step: Step, call: Call, run: Callable[[], Any]) -> Any:
        value = run()
        if len(step.context.states) > 1:
            raise HiCacheError("channels: the denoiser is captured as several graphs: must be one")
        state = next(iter(step.context.states.values()))
        rings = [kept.slot for kept in state.kept if kept.role is Role.ANCHORS]
        slots = dict(zip(rings, newest(state, step), strict=True))
        computed = self._computed.setdefault(step.context.name, [])
        if self.policy.schedule.computes(step.index, step.num_steps) or not computed:
            self._keep(step, slots)
        else:
            self._compare(step, slots)
        return value

    def _keep(self, step: Step, slots: Slots) -> None:
        self._computed[step.context.name].append(step.index)
        anchors = self._anchors.setdefault(step.context.name, [])
        anchors.insert(0, {slot: row.clone() for slot, row in slots.items()})
        del anchors[self.policy.depth :]

    def _compare(self, step: Step, slots: Slots) -> None:
        anchors = self._anchors[step.context.name]
        read = self.policy.eligible(self._computed[step.context.name])[: len(anchors)]
        rows = [weights(candidate, read, step.index) for candidate in self.candidates]
        for slot, wanted in slots.items():
            known = [anchor[slot].double() for anchor in anchors]
            made = [sum(w * value for w, value in zip(row, known, strict=False)) for row in rows]
            off = [(one - wanted).square().flatten(0, -2).sum(0) for one in made]
            errors = (torch.stack(off, dim=1) / wanted.double().square().mean().clamp_min(1e-300)).cpu().numpy()
            self.found[slot] = self.found.get(slot, 0.0) + errors


def _chosen(errors: np.ndarray, clusters: int) -> str:
    """The digits of ``ByChannel`` for a slot with ``errors`` ``[C, candidates]``."""
    cluster = _clusters(np.log(np.maximum(errors, 1e-300)), clusters)
    best = {one: int(errors[cluster == one].sum(0).argmin()) for one in set(cluster.tolist())}
    return "".join(f"{best[one]:x}" for one in cluster.tolist())


def _clusters(profiles: np.ndarray, count: int) -> np.ndarray:
    """The cluster of each of ``profiles`` ``[C, n]``, at most ``count`` of them."""
    if len(profiles) <= count:
        return np.arange(len(profiles))
    found: np.ndarray = clustering()(profiles, count, minit="++", seed=0)[1]
    return found


def clustering() -> Callable[..., Any]:
    """k-means of scipy.

    Raises:
        HiCacheError: scipy is not installed.
    """
    try:
        from scipy.cluster.vq import kmeans2
    except ImportError:
        raise HiCacheError("tune --fit channels needs scipy: pip install 'hicache_compile[eval]'") from None
    return kmeans2
