"""Guards in compiled runs: programs, syncs, contexts, batches, errors."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from hicache_compile import (
    PAB,
    AdaCache,
    CompiledDenoiser,
    DBCache,
    DiCache,
    DiCacheGuard,
    EasyCache,
    EasyCacheGuard,
    FBCache,
    FBCacheTeaCache,
    FirstBlockGuard,
    Free,
    Hermite,
    HiCache,
    HiCacheError,
    Interval,
    KeySteps,
    PerKind,
    Policy,
    Reuse,
    SenCache,
    SpeCa,
    SpeCaGuard,
    StepMask,
    Taylor,
    TeaCache,
    TeaCacheGuard,
    hicache_compile,
    passes,
)
from hicache_compile.operators.anchors import forecast
from hicache_compile.passes import Choice
from hicache_compile.passes.graph import ops
from hicache_compile.policy.guards import Guard
from hicache_compile.policy.layout import Layout
from hicache_compile.runtime.nothing_cached import say_what_never_hit
from hicache_compile.runtime.step import Context, Step
from tests.support.captured_graphs import captured, count
from tests.support.host_reads import counted_reads
from tests.support.models import ToyDiT, flux_inputs, random_flux, sample, trace

STEPS = 12
MEASURED: dict[str, Callable[[float], Policy]] = {
    "teacache": TeaCache,
    "teacache of the time": lambda t: TeaCache(t, "wan2.1-t2v-1.3b-ret", coefficients=(1, 0), warmup=1),
    "first block": FBCache,
    "dbcache": lambda t: DBCache(2, 1, t, 1),
    "easycache": lambda t: EasyCache(t, 2),
    "dicache": DiCache,
    "both": lambda t: FBCacheTeaCache(t, t),
    "speca": lambda t: SpeCa(t, 1.0, warmup=1),
    "sencache": lambda t: SenCache(t, (1.0, 2.0), 0.5, max_skips=None),
}


@pytest.fixture(scope="module")
def denoiser() -> CompiledDenoiser:
    """Captured once; each test sets its policy."""
    return hicache_compile(random_flux(), HiCache(2), backend="eager")


@pytest.mark.parametrize(
    ("guard", "backend"),
    [*((guard, "eager") for guard in MEASURED), ("teacache", "aot_eager"), ("dicache", "aot_eager")],
)
def test_threshold_zero_is_bit_equal(guard: str, backend: str) -> None:
    model, inputs = random_flux(), flux_inputs()
    compiled = hicache_compile(model, MEASURED[guard](0.0), backend=backend)
    with compiled.trajectory(STEPS):
        mine = trace(compiled, inputs, STEPS)
    assert compiled.report().decisions() == "F" * STEPS
    plain = torch.compile(model, backend=backend, fullgraph=True)
    assert torch.equal(mine, trace(plain, inputs, STEPS))


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        (TeaCache(1e9), "F..........F"),
        (TeaCache(1e9, "wan2.1-t2v-14b-ret"), "FFFFF......."),
        (TeaCache(1e9, max_skips=3), "F...F...F..F"),
        (FBCache(1e9), "F..........."),
        (FBCache(1e9, warmup=4, cooldown=2), "FFFF......FF"),
        (FBCacheTeaCache(1e9, 1e9), "F..........F"),
        (FBCacheTeaCache(1e9, 0.0), "FssssssssssF"),
        (FBCacheTeaCache(1e9, 0.0, max_skips=2), "FssFssFssFsF"),
        (EasyCache(1e9, 3), "FFF........F"),
        (DiCache(1e9), "F..........F"),
        (AdaCache(((1e9, 5),), warmup=1, cooldown=0), "FF....F....F"),
        (SpeCa(1e9, 1.0, warmup=2), "FF........F."),
    ],
)
def test_a_huge_threshold_skips_all_it_may(denoiser: CompiledDenoiser, policy: Policy, expected: str) -> None:
    denoiser.policy = policy
    with denoiser.trajectory(STEPS):
        sample(denoiser, flux_inputs(), STEPS)
    assert denoiser.report().decisions() == expected


@pytest.mark.parametrize(
    ("guard", "programs"), [("teacache", 3), ("first block", 3), ("dbcache", 3), ("both", 5), ("speca", 2)]
)
def test_many_thresholds_one_capture(guard: str, programs: int) -> None:
    compiled = hicache_compile(random_flux(), MEASURED[guard](0.0), backend="eager")
    inputs = flux_inputs(batch=1)
    for run in range(50):
        compiled.policy = MEASURED[guard](10.0 ** (run % 4 - 2) + run / 100)
        with compiled.trajectory(6):
            sample(compiled, inputs, 6)
    report = compiled.report()
    assert len(set(report.history["default"])) > 2
    assert (report.programs, report.recompiles, report.graph_breaks) == (programs, 0, 0)


@pytest.mark.parametrize(
    ("policy", "syncs"),
    [
        (TeaCache(0.6), 10),  # once a step that is not forced
        (FBCache(0.2), 11),
        (EasyCache(0.1, 3), 8),
        (DiCache(0.2), 10),
        (FBCacheTeaCache(1e9, 0.0), 20),  # two probes
        (FBCacheTeaCache(1e9, 1e9), 10),  # the outer one ends the step
        (HiCache(3, scope="stack"), 0),
        (PAB(), 0),
    ],
)
def test_the_host_waits_once_a_probe(
    denoiser: CompiledDenoiser, policy: Policy, syncs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    denoiser.policy = policy
    read = counted_reads(monkeypatch)
    inputs = flux_inputs(batch=1)
    with denoiser.trajectory(STEPS):
        sample(denoiser, inputs, STEPS)
    before, waited = read.total(), denoiser.report().host_syncs
    with denoiser.trajectory(STEPS):
        sample(denoiser, inputs, STEPS)
    assert denoiser.report().host_syncs == waited + syncs
    assert read.total() - before == syncs


def test_what_a_probe_computed_is_not_computed_again() -> None:
    graph = captured(random_flux(), **flux_inputs(batch=1), timestep=torch.ones(1), return_dict=False)
    whole = count(graph)
    for policy in (TeaCache(0.2), FBCache(0.1), DBCache(2, 1), DiCache(0.2, 2), FBCacheTeaCache(0.1, 0.2)):
        layout = replace(policy.layout, depth=2)
        rewrite = passes.rewrite(graph, layout)
        for name in sorted(ops.HEAVY):
            assert sum(count(part)[name] for part in rewrite.parts(Choice.FULL)) == whole[name]
        ends = Layout("stack", min(layout.starts), layout.last, depth=2)
        live = passes.rewrite(graph, ends).programs[Choice.FORECAST]
        last = rewrite.stages[-1]
        attention = "scaled_dot_product_attention"
        spent = sum(count(part)[attention] for part in rewrite.parts(last.skip))
        assert spent == count(live)[attention] + (max(layout.starts) - min(layout.starts))
        assert any(node.target is forecast for node in rewrite.programs[last.skip].graph.nodes)


INDUCTOR = {
    "teacache": TeaCache(0.6),
    "first block": FBCache(0.3),
    "both": FBCacheTeaCache(0.3, 0.25),
    "dbcache": DBCache(2, 1, 0.3, 2),
    "easycache": EasyCache(0.1, 2),
    "dicache": DiCache(0.2),
    "dicache, excess": DiCache(0.1, error="excess"),
    "adacache": AdaCache(warmup=1, cooldown=1),
    "speca": SpeCa(0.5, 0.5, warmup=2),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", INDUCTOR)
def test_inductor_decides_and_computes_alike(name: str) -> None:
    """Every guard: what a probe keeps for the next step is where a compiler may reorder."""
    policy = INDUCTOR[name]
    found = []
    for backend in ("eager", "inductor"):
        compiled = hicache_compile(random_flux(), policy, backend=backend)
        with compiled.trajectory(STEPS):
            found.append((trace(compiled, flux_inputs(batch=1), STEPS), compiled.report().decisions()))
    assert found[0][1] == found[1][1]
    assert "F" in found[0][1][1:]
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("forecaster", [Hermite(2, 0.5), None])
def test_skipped_steps_take_any_forecaster(forecaster: Hermite | None) -> None:
    model, inputs = random_flux(), flux_inputs(batch=1)
    options = {} if forecaster is None else {"forecaster": forecaster}
    compiled = hicache_compile(model, TeaCache(1e9, warmup=2, cooldown=2, max_skips=2, **options), backend="eager")
    with compiled.trajectory(STEPS):
        mine = trace(compiled, inputs, STEPS)
    assert compiled.report().decisions() == "FF..F..F..FF"
    masked = Policy(StepMask("110010010011"), forecaster or Reuse(), "stack")
    twin = hicache_compile(model, masked, backend="eager")
    with twin.trajectory(STEPS):
        theirs = trace(twin, inputs, STEPS)
    assert torch.equal(mine, theirs)


ALL_IT_MAY = {"warmup": 2, "cooldown": 2, "max_skips": 2}


@pytest.mark.parametrize(
    ("scope", "guard", "first"),
    [
        *((scope, TeaCacheGuard(1e9, **ALL_IT_MAY), 0) for scope in ("module", "block", "stack", "output")),
        *((scope, FirstBlockGuard(1e9, **ALL_IT_MAY), 1) for scope in ("module", "block", "stack")),
        *((scope, EasyCacheGuard(1e9, **ALL_IT_MAY), 0) for scope in ("module", "block")),
    ],
)
def test_at_every_scope_a_guard_that_skips_all_it_may_is_a_mask(scope: str, guard: Guard, first: int) -> None:
    model, inputs, found = random_flux(), flux_inputs(batch=1), []
    guarded = Policy(Free(), Taylor(1), scope, (guard,))
    masked = Policy(StepMask("110010010011"), Taylor(1), scope, first=first)
    for policy in (guarded, masked):
        compiled = hicache_compile(model, policy, backend="eager")
        with compiled.trajectory(STEPS):
            found.append((trace(compiled, inputs, STEPS), compiled.report().decisions()))
    assert found[0][1] == found[1][1] == "FF..F..F..FF"
    assert torch.equal(found[0][0], found[1][0])


@pytest.mark.parametrize("guard", [TeaCacheGuard(0.0), FirstBlockGuard(0.0), SpeCaGuard(0.0), DiCacheGuard(0.0)])
def test_threshold_zero_is_bit_equal_at_any_scope(guard: Guard) -> None:
    model, inputs = random_flux(), flux_inputs(batch=1)
    expected = trace(model, inputs, STEPS)
    for scope in ("module", "block"):
        compiled = hicache_compile(model, Policy(Free(), Reuse(), scope, (guard,)), backend="eager")
        with compiled.trajectory(STEPS):
            assert torch.equal(trace(compiled, inputs, STEPS), expected)
        assert compiled.report().decisions() == "F" * STEPS


def test_several_guards_may_judge_the_same_draft() -> None:
    """The stricter of two decides, wherever it stands."""
    model, inputs = random_flux(), flux_inputs(batch=1)
    strict, lax = (SpeCaGuard(threshold, 0.5, warmup=2) for threshold in (0.5, 1e9))
    letters = {}
    for name, guards in {"one": (strict,), "both": (strict, strict), "lax": (lax,)}.items():
        compiled = hicache_compile(model, Policy(Free(), Reuse(), "stack", guards), backend="eager")
        with compiled.trajectory(STEPS):
            trace(compiled, inputs, STEPS)
        letters[name] = compiled.report().decisions()
    assert letters["one"] == letters["both"].replace("s", ".")
    assert letters["one"].count("F") > letters["lax"].count("F")


@pytest.mark.parametrize("threshold", [0.0, 1e9])
def test_kinds_follow_their_schedules_where_no_guard_skips(threshold: float) -> None:
    """A guard that skips forecasts all kinds; where none does, attention is computed every second step, MLPs always."""
    guard = TeaCacheGuard(threshold, warmup=2 if threshold else 1)
    kinds = {"joint-attention": Interval(2, 1), "mlp": Free(), "parallel": Free()}
    model, inputs = random_flux(), flux_inputs(batch=1)
    twin = (
        Policy(StepMask("11" + "0" * 8), Reuse(), "module")
        if threshold
        else Policy(
            PerKind({**dict.fromkeys(kinds, Interval(1)), "joint-attention": Interval(2, 1)}), Reuse(), "module"
        )
    )
    found = []
    for policy in (Policy(PerKind(kinds), Reuse(), "module", (guard,)), twin):
        compiled = hicache_compile(model, policy, backend="eager")
        with compiled.trajectory(10):
            found.append((trace(compiled, inputs, 10), compiled.report().decisions()))
    assert found[0][1] == found[1][1] == ("FF........" if threshold else "FpFpFpFpFp")
    assert torch.equal(found[0][0], found[1][0])


def test_the_largest_change_of_a_batch_decides() -> None:
    """Two prompts in one call: the restless one keeps both from being skipped."""
    model = random_flux()
    alone = hicache_compile(model, FBCache(0.2), backend="eager")
    letters = []
    single = [flux_inputs(batch=1, seed=seed) for seed in (0, 1)]
    for inputs in single:
        with alone.trajectory(STEPS):
            sample(alone, inputs, STEPS)
        letters.append(alone.report().decisions())
    keys = ("hidden_states", "encoder_hidden_states", "pooled_projections")
    both = {**single[0], **{key: torch.cat([one[key] for one in single]) for key in keys}}
    together = hicache_compile(model, FBCache(0.2), backend="eager")
    with together.trajectory(STEPS):
        sample(together, both, STEPS)
    first_full = min(text.index("F", 1) for text in letters if "F" in text[1:])
    assert together.report().decisions().index("F", 1) == first_full


def test_contexts_decide_apart() -> None:
    model = random_flux()
    inputs = {name: flux_inputs(batch=1, seed=seed) for name, seed in (("cond", 0), ("uncond", 1))}
    policy = FBCacheTeaCache(0.3, 0.3)
    expected = {}
    for name, given in inputs.items():
        compiled = hicache_compile(model, policy, backend="eager")
        with compiled.trajectory(STEPS):
            states = trace(compiled, given, STEPS)
        expected[name] = (compiled.report().decisions(), states)
    compiled = hicache_compile(model, policy, backend="eager")
    x = {name: given["hidden_states"] for name, given in inputs.items()}
    with compiled.trajectory(STEPS), torch.no_grad():
        for step in range(STEPS):
            for name, given in inputs.items():
                with compiled.cache_context(name):
                    time = torch.full((1,), 1 - step / STEPS)
                    out = compiled(**{**given, "hidden_states": x[name]}, timestep=time, return_dict=False)[0]
                x[name] = x[name] - out / STEPS
                assert torch.equal(x[name], expected[name][1][step])
    for name in inputs:
        assert compiled.report().decisions(name) == expected[name][0]


def test_a_second_run_starts_afresh() -> None:
    compiled = hicache_compile(random_flux(), FBCacheTeaCache(0.3, 0.4), backend="eager")
    found = []
    for seed in (0, 1, 0):
        with compiled.trajectory(STEPS):
            found.append((trace(compiled, flux_inputs(batch=1, seed=seed), STEPS), compiled.report().decisions()))
    assert torch.equal(found[0][0], found[2][0])
    assert found[0][1] == found[2][1]


@pytest.mark.parametrize("steps", [4, 8])
def test_a_run_without_hits_says_so(steps: int, caplog: pytest.LogCaptureFixture) -> None:
    compiled = hicache_compile(random_flux(), FBCache(0.01), backend="eager")
    with compiled.trajectory(steps):
        sample(compiled, flux_inputs(), steps)
    assert f"0 hits: FirstBlockGuard skipped none of the {steps} steps" in caplog.text
    said = re.findall(r"FirstBlockGuard measured at least ([\d.]+), its threshold is 0.01;", caplog.text)
    assert len(said) == 2  # a sample each
    caplog.clear()
    compiled.policy = FBCache(float(max(said, key=float)) * 1.01)  # what came nearest is now within it
    with compiled.trajectory(steps):
        sample(compiled, flux_inputs(), steps)
    assert "0 hits" not in caplog.text
    compiled.policy = FBCache(1e9)
    with compiled.trajectory(steps):
        sample(compiled, flux_inputs(), steps)
    assert "0 hits" not in caplog.text


def test_a_branch_that_joined_later_is_told_of_its_own_steps(caplog: pytest.LogCaptureFixture) -> None:
    """As where a callback ends guidance: the batch of the steps after it is another branch."""
    context = Context("default.1", FBCache(1e-6))
    context.history.append(list("FFFF"))
    say_what_never_hit(Step(context, 7, 8))
    said = re.findall(r"none of the (\d) steps of context 'default.1', of which (\d) were free", caplog.text)
    assert said == [("4", "3")]
    caplog.clear()
    context.history.append(["F"])  # it made the last step alone
    say_what_never_hit(Step(context, 7, 8))
    assert not caplog.records


class Still(ToyDiT):
    """Its first block adds nothing: the change is 0 / 0."""

    def __init__(self) -> None:
        super().__init__(depth=3)
        with torch.no_grad():
            for parameter in self.layers[0].parameters():
                parameter.zero_()


def test_no_change_of_nothing_is_no_hit(caplog: pytest.LogCaptureFixture) -> None:
    compiled = hicache_compile(Still(), FBCache(0.5), backend="eager")
    x = torch.randn(2, 6, 16)
    with compiled.trajectory(4), torch.no_grad():
        for t in (1.0, 0.7, 0.4, 0.1):
            compiled(x, torch.full((2,), t))
    report = compiled.report()
    assert report.decisions() == report.decisions("default[1]") == "FFFF"
    assert report.nonfinite_probes == 2 * 3  # of each sample
    assert "no finite number" in caplog.text


def test_kinds_are_decided_apart() -> None:
    """Attention every second step, the MLPs of two blocks after a key step: a program for each distinct choice."""
    compiled = hicache_compile(ToyDiT(depth=3), PAB(2, window=None, mlp=KeySteps((600,), 2)), backend="eager")
    x = torch.randn(2, 6, 16)
    for _ in range(2):
        with compiled.trajectory(6), torch.no_grad():
            for step in range(6):
                compiled(x, torch.full((2,), 1 - step / 6))
    report = compiled.report()
    assert report.decisions() == "FpFppp"
    assert (report.programs, report.recompiles) == (3, 0)


def test_a_guard_that_finds_no_signal_says_so() -> None:
    class Untimed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(nn.Linear(16, 16) for _ in range(3))

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            for block in self.blocks:
                x = x + block(x)
            return x

    compiled = hicache_compile(Untimed(), TeaCache(0.2, "wan2.1-t2v-14b"), backend="eager")
    with pytest.raises(HiCacheError, match="a value that follows from the time"), compiled.trajectory(4):
        compiled(torch.randn(2, 6, 16), torch.ones(2))


class Writing(ToyDiT):
    """Writes to an argument or a buffer before its blocks, in ``way``."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.register_buffer("mean", torch.zeros(16))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        before = x + 1
        if self.way == "scaled":
            x.mul_(0.5)
        elif self.way == "a view":
            x[:, 0] = 0
        elif self.way == "twice":
            x[:, 0].add_(1)
            x.mul_(0.5)
        elif self.way == "time":
            t.mul_(0.5)
        else:
            self.mean.mul_(0.9).add_(x.mean((0, 1)), alpha=0.1)
            x = x - self.mean
        return super().forward(x, t) + before


@pytest.mark.parametrize("backend", ["eager", "aot_eager", "cond_eager"])
@pytest.mark.parametrize("way", ["scaled", "a view", "twice", "time", "a buffer"])
@pytest.mark.parametrize("policy", [TeaCache(0.0, coefficients=(1.0, 0.0)), FBCache(0.0), DiCache(0.0)])
def test_what_is_written_in_place_before_a_probe_is_written_once(policy: Policy, way: str, backend: str) -> None:
    torch.manual_seed(0)
    model = Writing(way).eval()
    plain = copy.deepcopy(model)
    compiled = hicache_compile(model, policy, backend=backend)
    with torch.no_grad(), compiled.trajectory(4):
        for step in range(4):
            mine = torch.randn(1, 8, 16), torch.full((1,), 1 - step / 4)
            theirs = [value.clone() for value in mine]
            torch.testing.assert_close(compiled(*mine), plain(*theirs), rtol=1e-5, atol=1e-6)
            assert all(map(torch.equal, mine, theirs))
    assert compiled.report().decisions() == "FFFF"
