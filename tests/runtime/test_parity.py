"""Whole trajectories of the compiled programs against ``tests.oracle``, which runs the published codes' way.

The project asks for a relative difference below 1e-4 in float32. Float32 rounding leaves about 3e-7, and leaving out
the highest order moves a trajectory of the demo model by 1.5e-5 at the least, so the tolerance here is tighter.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from importlib.resources import as_file, files
from itertools import product
from math import sqrt

import pytest
import torch
from torch import Tensor, nn

from hicache_compile import CompiledDenoiser, HiCache, Policy, TaylorSeer, hicache_compile
from tests.support.models import demo_inputs, flux_inputs, random_flux, trace
from tests.support.oracle import Basis, Counter, PublishedCache, coefficient

TOLERANCE = 5e-6
INTERVALS = range(2, 9)
WARMUPS = range(1, 5)
FEW = [(interval, warmup) for interval in (2, 5, 8) for warmup in (1, 3)]  # of the larger model
ORDERS: dict[Basis, int] = {"hermite": 3, "taylor": 4}
METHODS = [(basis, order) for basis, highest in ORDERS.items() for order in range(highest + 1)]


@dataclass(frozen=True, slots=True)
class Setting:
    """One policy, and a trajectory long enough for its highest order."""

    basis: Basis
    order: int
    interval: int
    warmup: int
    sigma: float = 0.5

    @property
    def steps(self) -> int:
        """With a warmup of one step, difference k arrives k intervals later; then one interval at full order."""
        return self.warmup + (self.order + 1) * self.interval + 2

    def policy(self) -> Policy:
        """The package's preset."""
        if self.basis == "taylor":
            return TaylorSeer(interval=self.interval, order=self.order, warmup=self.warmup)
        return HiCache(interval=self.interval, order=self.order, sigma=self.sigma, warmup=self.warmup)

    def oracle(self, model: nn.Module) -> PublishedCache:
        """The same by the oracle."""
        return PublishedCache(model, self.basis, self.order, self.sigma, self.interval, self.warmup)


@dataclass(frozen=True, slots=True)
class Subject:
    """A model compiled once for all settings, and a copy of it for the oracle."""

    compiled: CompiledDenoiser
    original: nn.Module
    inputs: dict[str, Tensor]
    schedules: Sequence[tuple[int, int]]  # intervals and warm-ups

    def package_trajectory(self, setting: Setting) -> tuple[Tensor, str]:
        """States ``[steps, B, N, C]`` and decisions of the compiled program."""
        self.compiled.policy = setting.policy()
        with self.compiled.trajectory(setting.steps):
            states = trace(self.compiled, self.inputs, setting.steps)
        return states, self.compiled.report().decisions()

    def oracle_trajectory(self, oracle: PublishedCache, steps: int) -> tuple[Tensor, str]:
        """The same of the oracle."""
        with oracle:
            states = trace(oracle, self.inputs, steps)
        return states, oracle.decisions

    def discrepancy(self, setting: Setting) -> str | None:
        """How package and oracle disagree on ``setting``, or ``None``."""
        states, decisions = self.package_trajectory(setting)
        expected, expected_decisions = self.oracle_trajectory(setting.oracle(self.original), setting.steps)
        if decisions != expected_decisions:
            return f"{setting}: decisions {decisions}, expected {expected_decisions}"
        difference = relative_difference(states, expected)
        # written so that a NaN is a failure
        return None if difference < TOLERANCE else f"{setting}: relative difference {difference:.2e}"


def relative_difference(states: Tensor, expected: Tensor) -> float:
    """The largest over the steps of ``|states - expected| / |expected|``, which bounds that of the whole trajectory."""
    error = (states.double() - expected.double()).flatten(1).norm(dim=1)
    return float((error / expected.double().flatten(1).norm(dim=1)).max())


def lively_random_flux() -> nn.Module:
    """``random_flux`` with weights three times as large.

    As initialised, its output hardly depends on its input: a missing third order would move a trajectory by 3e-6.
    """
    model = random_flux()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(3)
    return model


def demo_model() -> nn.Module:
    """The trained model the package ships."""
    from diffusers import FluxTransformer2DModel

    with as_file(files("hicache_compile.demo") / "digits-model" / "transformer") as folder:
        model: nn.Module = FluxTransformer2DModel.from_pretrained(folder, torch_dtype=torch.float32)
    return model.eval()


@pytest.fixture(scope="module", params=["random", "demo"])
def subject(request: pytest.FixtureRequest) -> Subject:
    """Compiled for the largest order: a policy set later must not need more stored features."""
    model, inputs, schedules = (
        (lively_random_flux(), flux_inputs(batch=2), list(product(INTERVALS, WARMUPS)))
        if request.param == "random"
        else (demo_model(), demo_inputs([3]), FEW)
    )
    return Subject(hicache_compile(model, TaylorSeer(order=4), backend="eager"), deepcopy(model), inputs, schedules)


@pytest.mark.slow
@pytest.mark.parametrize(("basis", "order"), METHODS)
def test_trajectories_agree(subject: Subject, basis: Basis, order: int) -> None:
    settings = [Setting(basis, order, interval, warmup) for interval, warmup in subject.schedules]
    discrepancies = [d for d in map(subject.discrepancy, settings) if d is not None]
    assert not discrepancies, "\n".join(discrepancies)


@pytest.mark.parametrize("sigma", [0.3, 0.6, sqrt(0.5), 1.0])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_trajectories_agree_at_other_scales(subject: Subject, order: int, sigma: float) -> None:
    discrepancy = subject.discrepancy(Setting("hermite", order, interval=5, warmup=3, sigma=sigma))
    assert discrepancy is None, discrepancy


@pytest.mark.parametrize(("basis", "order"), [method for method in METHODS if method[1] > 0])
def test_the_sign_bug_would_be_seen(subject: Subject, basis: Basis, order: int) -> None:
    setting = Setting(basis, order, interval=5, warmup=3)
    oracle = setting.oracle(subject.original)
    oracle.direction = -1
    states, _ = subject.package_trajectory(setting)
    backwards, _ = subject.oracle_trajectory(oracle, setting.steps)
    assert relative_difference(states, backwards) > 1e-2


@pytest.mark.parametrize("interval", [2, 5, 8])
@pytest.mark.parametrize(("basis", "order"), [method for method in METHODS if method[1] > 0])
def test_a_missing_order_would_be_seen(subject: Subject, basis: Basis, order: int, interval: int) -> None:
    setting = Setting(basis, order, interval, warmup=3)
    oracle = setting.oracle(subject.original)
    oracle.order -= 1
    states, _ = subject.package_trajectory(setting)
    truncated, _ = subject.oracle_trajectory(oracle, setting.steps)
    assert relative_difference(states, truncated) > 2 * TOLERANCE


def test_the_oracle_has_the_published_coefficients() -> None:
    # the paper's c_1, c_2, c_3 at sigma 0.5 and x = 1, 2, 3, 4, 6
    published = {
        1: [0.5, 1, 1.5, 2, 3],
        2: [-1 / 8, 1 / 4, 7 / 8, 7 / 4, 17 / 4],
        3: [-5 / 48, -1 / 12, 3 / 16, 5 / 6, 15 / 4],
    }
    for k, values in published.items():
        assert [coefficient("hermite", k, x, sigma=0.5) for x in (1, 2, 3, 4, 6)] == pytest.approx(values, abs=1e-12)


def test_the_oracle_has_the_published_full_steps() -> None:
    # of 50 steps with a warmup of 3: how many for the intervals 1 to 10, and the last
    published = [(50, 49), (26, 48), (18, 47), (14, 46), (12, 47), (10, 44), (9, 44), (8, 42), (8, 47), (7, 42)]
    for interval, expected in enumerate(published, start=1):
        counter = Counter(interval, warmup=3)
        full = [step for step in range(50) if counter.is_full(step)]
        assert (len(full), full[-1]) == expected


def test_the_oracle_leaves_the_model_as_it_was() -> None:
    model, inputs = random_flux(), flux_inputs()
    before = trace(model, inputs, 2)
    with PublishedCache(model, interval=2, warmup=1) as oracle:
        trace(oracle, inputs, 4)
    assert torch.equal(trace(model, inputs, 2), before)
    assert not any("forward" in vars(module) for module in model.modules())
