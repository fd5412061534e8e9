"""Which forecaster suits each channel: against errors measured by hand on a plain run."""

from __future__ import annotations

import numpy as np

from hicache_compile import ByChannel, Gated, HiCache, Newton, Policy, StepMask
from hicache_compile.policy.forecasters import weights
from hicache_compile.tune.channels import _clusters, by_channel
from tests.apps.test_calibrate import STEPS, Toy, features
from tests.support.models import ToyDiT

MASK = StepMask("1101001000")
CANDIDATES = (Newton(2), Gated(Newton(2), (0.97,)), Gated(Newton(2), (1.03,)))  # in close competition


def best_by_hand(seeds: range) -> str:
    """The candidate of the least error of each channel of the residual over the blocks."""
    errors = np.zeros((16, len(CANDIDATES)))
    for seed in seeds:
        for values in features(ToyDiT(), seed).values():
            for step in range(STEPS):
                if MASK.computes(step, STEPS):
                    continue
                anchors = [other for other in range(step - 1, -1, -1) if MASK.computes(other, STEPS)][:3]
                for number, candidate in enumerate(CANDIDATES):
                    row = weights(candidate, anchors, step)
                    made = sum(w * values[other].double() for w, other in zip(row, anchors, strict=False))
                    off = (made - values[step]).square().flatten(0, 1).sum(0)
                    errors[:, number] += (off / values[step].double().square().mean()).numpy()
    return "".join(str(number) for number in errors.argmin(1))


def test_each_channel_gets_the_forecaster_of_the_least_error() -> None:
    toy = Toy()
    before = toy.denoiser.policy
    found = by_channel(toy.denoiser, toy.runs, Policy(MASK, Newton(2), "stack"), CANDIDATES, clusters=16)
    assert toy.denoiser.policy == before
    assert found == ByChannel(CANDIDATES, (best_by_hand(range(2)),))
    assert len(set(found.chosen[0])) > 1  # else the test would tell nothing


def test_channels_that_err_alike_are_decided_together() -> None:
    profiles = np.concatenate([np.random.default_rng(0).normal(at, 0.01, (10, 3)) for at in (0.0, 5.0)])
    found = _clusters(profiles, 2)
    assert len(set(found[:10])) == len(set(found[10:])) == 1
    assert found[0] != found[10]
    toy = Toy()
    few = by_channel(toy.denoiser, toy.runs, Policy(MASK, Newton(2), "stack"), CANDIDATES, clusters=1)
    assert len(set(few.chosen[0])) == 1


def test_what_was_fitted_runs_at_every_site() -> None:
    toy = Toy("module")
    found = by_channel(toy.denoiser, toy.runs, HiCache(4), CANDIDATES)
    toy.denoiser.policy = Policy(MASK, found)
    assert toy.run(0).isfinite().all()
    assert "." in toy.denoiser.report().decisions()
