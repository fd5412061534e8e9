"""Sparse denoisers: the acceptance A to E, the identities, and a FLUX that follows plain formulas, not compiled."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from hicache_compile import (
    CompiledDenoiser,
    FBCache,
    HiCache,
    Policy,
    TeaCache,
    hicache_compile,
)
from hicache_compile.demo import digits
from hicache_compile.demo.sampling import load_model
from hicache_compile.operators.chipmunk.columns import unpack
from hicache_compile.passes import Choice
from hicache_compile.policy.sparsity.chipmunk import Chipmunk
from hicache_compile.policy.sparsity.phases import Phase
from tests.support.chipmunk_reference import NaiveChipmunk
from tests.support.models import demo_inputs, flux_inputs, random_flux, sample, trace

SMALL = {"group": 16, "mlp_block": 16, "first_dense": 1}
STEPS = 12


@pytest.fixture(scope="module")
def demo() -> nn.Module:
    return load_model()


def subjects() -> dict[str, tuple[nn.Module, dict[str, Tensor]]]:
    return {
        "demo": (load_model(), demo_inputs(list(range(4)))),
        "random": (random_flux(2, 1), flux_inputs(tokens=45)),
    }


def compiled(model: nn.Module, policy: Policy | None, backend: str = "eager", **settings: object) -> CompiledDenoiser:
    sparsity = Chipmunk(**{**SMALL, **settings}) if settings.pop("sparse", True) else None  # type: ignore[arg-type]
    return hicache_compile(model, policy, backend=backend, sparsity=sparsity)


def run(denoiser: nn.Module, inputs: dict[str, Tensor], steps: int = STEPS) -> Tensor:
    """The end of a trajectory."""
    if not isinstance(denoiser, CompiledDenoiser):
        return sample(denoiser, inputs, steps)
    with denoiser.trajectory(steps):
        return sample(denoiser, inputs, steps)


def error(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())


# A to E


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("name", ["demo", "random"])
def test_hicache_with_interval_1_changes_nothing_over_dense_or_sparse(name: str, backend: str) -> None:
    model, inputs = subjects()[name]
    a = run(model, inputs)
    b = run(hicache_compile(model, HiCache(interval=1), backend=backend), inputs)
    c_denoiser = compiled(model, None, backend)
    c = run(c_denoiser, inputs)
    d = run(compiled(model, HiCache(interval=1), backend), inputs)
    assert torch.equal(a, b)
    assert torch.equal(c, d)
    assert c_denoiser.report().decisions() == "FFSSSSSSSSSF"
    assert not torch.equal(a, c)


def test_without_a_policy_no_anchor_is_kept() -> None:
    model, inputs = subjects()["random"]
    denoiser = compiled(model, None)
    run(denoiser, inputs)
    (graph,) = denoiser._graphs
    assert not denoiser._session.live[graph].programs.rings
    assert "remember" not in denoiser.graphs["sparse"].code


@pytest.mark.slow
def test_forecasts_over_sparse_steps_stay_far_from_noise(demo: nn.Module) -> None:
    """E. What does not depend on A, as coloured noise does not, is as far from it as A is long: for a zero-mean n that
    is independent of A, ``|n - A|^2 = |n|^2 + |A|^2 - 2 |n| |A| cos >= |A|^2 (1 - cos^2)``, and in d = 50 x 256
    dimensions ``P(|cos| > .1) < 2 exp(-d / 200) < 1e-27``: noise is never nearer than .99. A sample of the same digits
    from other noise keeps all the model knows of digits and nothing of A. E has to be five times nearer than that.
    """
    labels = list(range(10)) * 5
    a, fresh = (run(demo, demo_inputs(labels, seed), 50) for seed in (0, 1))
    inputs = demo_inputs(labels)
    alone = run(hicache_compile(demo, HiCache(interval=5), backend="eager"), inputs, 50)
    denoiser = compiled(demo, HiCache(interval=5), first_dense=2)
    e = run(denoiser, inputs, 50)
    assert denoiser.report().decisions() == "FFS....S....F....S....F....S....F....S....F....S.."
    assert error(fresh, a) > 0.5
    assert error(e, a) < error(fresh, a) / 5
    assert error(alone, a) < error(e, a)
    assert abs(accuracy(e, labels) - accuracy(alone, labels)) <= 0.03


def accuracy(samples: Tensor, labels: list[int]) -> float:
    return float((digits.classify(digits.unpack(samples)) == torch.tensor(labels)).float().mean())


# A sparse FLUX by plain formulas

PHASES = "DSsssRss"  # dense, select, sparse, refresh: full_every=4


@pytest.mark.parametrize("denominator", ["own", "shared"])
@pytest.mark.parametrize(
    ("keys", "units"), [(0.3, None), (None, 0.3), (0.3, 0.4)], ids=["attention", "MLP", "attention and MLP"]
)
def test_equals_plain_formulas(keys: float | None, units: float | None, denominator: str) -> None:
    torch.manual_seed(1)
    model, inputs = random_flux(2, 1), flux_inputs(tokens=41)
    for parameter in model.parameters():
        parameter.data *= 2  # so that attention is not flat
    naive = NaiveChipmunk(
        copy.deepcopy(model), keys=keys, units=units, group=16, block=16, dense=1, shared=denominator == "shared"
    )
    x = inputs["hidden_states"]
    for step, phase in enumerate(PHASES):
        time = torch.full((len(x),), 1 - step / len(PHASES))
        with torch.no_grad(), naive.step(phase):
            x = x - naive.model(**{**inputs, "hidden_states": x}, timestep=time, return_dict=False)[0] / len(PHASES)
    denoiser = compiled(model, None, top_keys=keys, mlp_keys=units, full_every=4, denominator=denominator)
    found = run(denoiser, inputs, len(PHASES))
    assert denoiser.report().decisions() == "FFSSSFSS"
    # What is left of the mass, where that is little, is a difference of nearly equal numbers.
    assert error(found, x) < (4e-5 if denominator == "shared" else 2e-6)
    assert error(run(model, inputs, len(PHASES)), x) > 1e-3


# The identities


def steady(model: nn.Module, inputs: dict[str, Tensor], denoiser: CompiledDenoiser, steps: int = 4) -> list[Tensor]:
    """Calls with the same inputs at every step."""
    time = torch.full((len(inputs["hidden_states"]),), 0.5)
    with denoiser.trajectory(steps), torch.no_grad():
        return [denoiser(**inputs, timestep=time, return_dict=False)[0] for _ in range(steps)]


@pytest.mark.parametrize("settings", [{}, {"denominator": "own"}, {"coverage": 0.5}, {"mlp_select_every": 2}])
def test_on_unchanged_inputs_a_sparse_step_is_a_dense_one(settings: dict[str, object]) -> None:
    model, inputs = subjects()["random"]
    denoiser = compiled(model, None, **settings)
    dense, *_, sparse = steady(model, inputs, denoiser)
    assert denoiser.report().decisions() == "FFSS"
    assert error(sparse, dense) < 1e-6


@pytest.mark.parametrize("name", ["demo", "random"])
def test_with_every_key_and_unit_sparse_is_dense(name: str) -> None:
    model, inputs = subjects()[name]
    for denominator in ("own", "shared"):
        denoiser = compiled(model, None, top_keys=1.0, mlp_keys=1.0, denominator=denominator)
        assert error(run(denoiser, inputs), run(model, inputs)) < 5e-6
        assert "S" in denoiser.report().decisions()


def test_refreshed_at_every_step_it_is_dense() -> None:
    model, inputs = subjects()["random"]
    denoiser = compiled(model, None, full_every=1)
    assert error(run(denoiser, inputs), run(model, inputs)) < 2e-6
    assert denoiser.report().decisions() == "F" * STEPS


def test_the_second_image_is_the_first_and_that_of_a_fresh_denoiser() -> None:
    model, inputs = subjects()["demo"]
    denoiser = compiled(model, HiCache(interval=3))
    first = run(denoiser, inputs)
    run(denoiser, {**inputs, "hidden_states": 3 * inputs["hidden_states"].flip(0)})
    assert torch.equal(run(denoiser, inputs), first)
    assert torch.equal(run(compiled(model, HiCache(interval=3)), inputs), first)
    assert denoiser.report().recompiles == 0


def test_guidance_branches_do_not_mix() -> None:
    model, inputs = subjects()["random"]
    other = {**inputs, "encoder_hidden_states": -inputs["encoder_hidden_states"]}
    apart = [run(compiled(model, HiCache(interval=3)), given) for given in (inputs, other)]
    denoiser = compiled(model, HiCache(interval=3))
    x = [inputs["hidden_states"]] * 2
    with denoiser.trajectory(STEPS), torch.no_grad():
        for step in range(STEPS):
            time = torch.full((2,), 1 - step / STEPS)
            for branch, given in enumerate((inputs, other)):
                with denoiser.cache_context(f"branch {branch}"):
                    velocity = denoiser(**{**given, "hidden_states": x[branch]}, timestep=time, return_dict=False)[0]
                x[branch] = x[branch] - velocity / STEPS
    assert torch.equal(x[0], apart[0])
    assert torch.equal(x[1], apart[1])


def test_uncached_steps_are_dense() -> None:
    model, inputs = subjects()["random"]
    denoiser = compiled(model, HiCache(interval=3))
    with denoiser.disabled():
        assert torch.equal(run(denoiser, inputs), run(model, inputs))


# Phases under policies


@pytest.mark.parametrize(
    ("settings", "decisions"),
    [
        ({}, "FFS....S....F....S....F....S.."),
        ({"max_age": 20}, "FFS....S....S....S....F....S.."),
        ({"full_every": 3, "max_age": 50}, "FFS....S....F....S....S....F.."),
        ({"full_steps": (0, 1, 10)}, "FFS....S....F....S....S....S.."),
    ],
)
def test_a_refresh_is_late_but_never_missed(settings: dict[str, object], decisions: str) -> None:
    model, inputs = subjects()["random"]
    denoiser = compiled(model, HiCache(interval=5), **settings)
    run(denoiser, inputs, 30)
    report = denoiser.report()
    assert report.decisions() == decisions
    assert report.computed == len(decisions.replace(".", ""))


@pytest.mark.parametrize("policy", [TeaCache(0.3), FBCache(0.2)], ids=["TeaCache", "FBCache"])
def test_guards_decide_when_and_sparsity_how(policy: Policy) -> None:
    model, inputs = subjects()["demo"]
    denoiser = compiled(model, policy)
    run(denoiser, inputs, 24)
    decisions = denoiser.report().decisions()
    assert decisions.replace(".", "").startswith("FFS")
    assert "." in decisions


def test_a_guard_that_never_skips_changes_nothing() -> None:
    model, inputs = subjects()["random"]
    never = compiled(model, FBCache(0.0), first_dense=1)
    assert torch.equal(run(never, inputs), run(compiled(model, None, first_dense=1), inputs))
    assert "S" in never.report().decisions()


@pytest.mark.parametrize("anchors", ["all", "dense", "bridged"])
def test_however_anchors_are_fed_unchanged_inputs_give_unchanged_outputs(anchors: str) -> None:
    model, inputs = subjects()["random"]
    denoiser = compiled(model, HiCache(interval=3), anchors=anchors, full_every=3)
    dense, *others = steady(model, inputs, denoiser, 16)
    assert set("FS.") == set(denoiser.report().decisions())
    assert all(error(found, dense) < 1e-5 for found in others)


def test_only_dense_steps_are_remembered_where_that_is_asked_for() -> None:
    model, inputs = subjects()["random"]
    denoiser = compiled(model, HiCache(interval=3), anchors="dense")
    run(denoiser, inputs)
    assert "remember" in denoiser.graphs["refresh"].code
    assert "remember" not in denoiser.graphs["sparse"].code


# Batches, shapes, devices


def test_each_sample_of_a_batch_is_as_it_is_alone() -> None:
    model = random_flux(1, 1)
    both = flux_inputs(tokens=33, batch=2)
    together = run(compiled(model, None), both)
    for place in range(2):
        alone = {name: value if "ids" in name else value[place : place + 1] for name, value in both.items()}
        assert error(run(compiled(model, None), alone), together[place : place + 1]) < 2e-6


def test_inductor_runs_what_eager_runs() -> None:
    model, inputs = random_flux(1, 1), flux_inputs(tokens=45)
    expected = trace_of(compiled(model, HiCache(interval=3), full_every=3), inputs)
    found = trace_of(compiled(model, HiCache(interval=3), "inductor", full_every=3), inputs)
    assert error(found, expected) < 1e-5


def trace_of(denoiser: CompiledDenoiser, inputs: dict[str, Tensor]) -> Tensor:
    with denoiser.trajectory(STEPS):
        return trace(denoiser, inputs, STEPS)


def test_bfloat16() -> None:
    model, inputs = random_flux(1, 1).bfloat16(), flux_inputs(tokens=45)
    half = {name: value.bfloat16() if "ids" not in name else value for name, value in inputs.items()}
    full = run(random_flux(1, 1), inputs)
    assert error(run(compiled(model, HiCache(interval=3)), half), full) < 0.03


def test_another_shape_is_compiled_apart_and_stays_sparse() -> None:
    model = random_flux(1, 1)
    denoiser = compiled(model, None, top_keys=1.0, mlp_keys=1.0)
    for tokens in (40, 24, 51):
        inputs = flux_inputs(tokens=tokens)
        assert error(run(denoiser, inputs), run(model, inputs)) < 5e-6
        assert "S" in denoiser.report().decisions()


@pytest.mark.parametrize("policy", [None, HiCache(interval=3), FBCache(0.2)], ids=["alone", "HiCache", "FBCache"])
def test_after_a_warmup_nothing_is_compiled(policy: Policy | None) -> None:
    model, inputs = random_flux(1, 1), flux_inputs(tokens=20)
    denoiser = compiled(model, policy, full_every=3)
    denoiser.warmup({**inputs, "timestep": torch.ones(2), "return_dict": False}, num_steps=STEPS)
    programs = denoiser.report().programs
    found = run(denoiser, inputs)
    assert denoiser.report().programs == programs
    assert torch.equal(found, run(compiled(model, policy, full_every=3), inputs))


# What is said about it


def test_bytes_are_those_of_the_tensors() -> None:
    model, inputs = subjects()["random"]
    denoiser = compiled(model, HiCache(interval=3))
    run(denoiser, inputs)
    kept = [
        tensor
        for context in denoiser._session.contexts.values()
        for state in context.states.values()
        for tensor in state.tensors
    ]
    assert denoiser.report().state_bytes == sum(tensor.untyped_storage().nbytes() for tensor in kept)


@pytest.mark.parametrize(("share", "dtype"), [(0.3, torch.uint8), (0.02, torch.int32)])
def test_sets_are_kept_in_the_smaller_way(share: float, dtype: torch.dtype) -> None:
    model, inputs = random_flux(3, 5), flux_inputs(tokens=96)
    denoiser = compiled(model, None, top_keys=share, mlp_keys=None)
    run(denoiser, inputs)
    (state,) = denoiser._session.contexts["default"].states.values()
    sets = [value for name, value in state.named().items() if str(name).startswith("memory:columns")]
    assert sets
    assert all(value.dtype is dtype for value in sets)
    rows, columns = 2 * 2 * math.ceil(100 / 16), 100
    bits, indices = rows * math.ceil(columns / 8), rows * 4 * round(share * columns)
    assert all(value.nbytes == min(bits, indices) for value in sets)


def test_what_is_near_is_always_read() -> None:
    model, inputs = random_flux(1, 1), flux_inputs(tokens=16 * 24)
    denoiser = compiled(model, None, top_keys=0.02, mlp_keys=None, window=1, grid=(16, 24), group=64)
    run(denoiser, inputs, 3)
    (state,) = denoiser._session.contexts["default"].states.values()
    near = torch.ops.hicache.nearby_columns(torch.empty(1), [16, 24], None, 4, 0, 64, 1, 0.0)
    for name, value in state.named().items():
        if str(name).startswith("memory:columns"):
            chosen = unpack(value, 4 + 16 * 24)
            assert chosen[..., near].all()
            assert not chosen.all()


def test_flops_are_those_of_the_share_that_is_computed() -> None:
    model, inputs = random_flux(3, 5), flux_inputs(tokens=96)
    denoiser = compiled(model, None, top_keys=0.25, mlp_keys=0.25)
    run(denoiser, inputs)
    (graph,) = denoiser._graphs
    dense, sparse = (graph.flops(choice) for choice in (Choice.FULL, Choice.FULL.with_phases((("", Phase.SPARSE),))))
    batch, tokens, width, blocks = 2, 100, 32, 7
    attention = blocks * 4 * batch * width * tokens * tokens
    in_mlps = 2 * (2 * batch * 96 * 2 * width * 4 * width) + 5 * (2 * batch * tokens * 2 * width * 4 * width)
    means = sum(2 * batch * math.ceil(count / 16) * width * 4 * width for count in [96] * 2 + [tokens] * 5)
    assert dense - sparse == pytest.approx(0.75 * (attention + in_mlps) - means, rel=1e-6)
