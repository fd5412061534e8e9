"""Which forecaster suits each channel: against errors measured by hand on a plain run."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hicache_compile import ByChannel, Gated, HiCache, HiCacheError, Newton, Policy, StepMask, hicache_compile
from hicache_compile.policy.forecasters import weights
from hicache_compile.tune.channels import _clusters, by_channel
from tests.apps.test_calibrate import STEPS, Toy, features
from tests.support.models import ToyDiT
from tests.support.reference_toy import Toy as Broken

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


def test_several_graphs_and_nothing_skipped_are_refused() -> None:
    broken = hicache_compile(Broken(breaks=True), HiCache(4, scope="stack"), backend="eager")

    def run() -> torch.Tensor:
        x = torch.randn(1, 8, 8)
        with torch.no_grad(), broken.trajectory(6):
            for step in range(6):
                x = x - broken(x, torch.full((1,), 1 - step / 6)) / 6
        return x

    with pytest.raises(HiCacheError, match="several graphs: must be one"):
        by_channel(broken, [run], HiCache(4, scope="stack"), CANDIDATES)
    broken.policy = Policy(StepMask("110100"), ByChannel(CANDIDATES, ("01200120",)), "stack")
    with pytest.raises(HiCacheError, match="several graphs, whose slots cannot be told apart"):
        run()
    toy = Toy()
    with pytest.raises(HiCacheError, match="must skip a step of these runs"):
        by_channel(toy.denoiser, toy.runs, Policy(StepMask("1" * STEPS), Newton(2), "stack"), CANDIDATES)
