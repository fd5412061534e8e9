"""Guards under the cond backends: the program measures and decides by itself, and nothing is read back in a run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from hicache_compile import (
    AdaCache,
    Chebyshev,
    DBCache,
    DiCache,
    EasyCache,
    FBCache,
    FBCacheTeaCache,
    Hermite,
    HiCacheError,
    Newton,
    Policy,
    SenCache,
    SpeCa,
    TeaCache,
    hicache_compile,
)
from hicache_compile.operators import guard_state as rules
from hicache_compile.policy.guards import GUARDS, FirstBlockGuard, Numbers
from tests.support.host_reads import counted_reads
from tests.support.models import ToyDiT, flux_inputs, random_flux, trace
from tests.support.resume import assert_it_goes_on

STEPS = 14
POLICIES = {
    "teacache": TeaCache(0.5),
    "teacache, hermite": TeaCache(0.5, forecaster=Hermite(2, 0.5), max_skips=3),
    "first block": FBCache(0.3),
    "dbcache": DBCache(2, 1, 0.3, 2, 4, 2),
    "dbcache, rows of two": DBCache(1, 0, 0.9, 1, -1, 2),
    "dbcache, three in all": DBCache(1, 0, 0.9, 1, 3, -1),
    "easycache": EasyCache(0.1, 2),
    "dicache": DiCache(0.4),
    "both": FBCacheTeaCache(0.35, 0.3),
    "adacache": AdaCache(warmup=1, cooldown=1),
    "speca": SpeCa(0.5, 0.5, warmup=2),
    "sencache": SenCache(0.15, (1.0, 2.0, 0.5), (0.1, 0.4)),
}
SLOW = pytest.mark.slow


def run(policy: Policy, backend: str) -> tuple[Tensor, str, float]:
    compiled = hicache_compile(random_flux(2, 2), policy, backend=backend)
    with compiled.trajectory(STEPS):
        states = trace(compiled, flux_inputs(batch=1), STEPS)
    report = compiled.report()
    assert (report.recompiles, report.graph_breaks) == (0, 0)
    assert (report.programs == 1) == backend.startswith("cond")
    return states, report.decisions(), report.flops_speedup


@pytest.mark.parametrize("name", POLICIES)
def test_the_program_decides_as_the_host_does(name: str) -> None:
    mine, theirs = (run(POLICIES[name], backend) for backend in ("cond_eager", "eager"))
    assert mine[1:] == theirs[1:]
    assert set(mine[1]) > {"F"}
    torch.testing.assert_close(mine[0], theirs[0], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("name", "backend"),
    [
        pytest.param("both", "cond_aot_eager", marks=SLOW),
        pytest.param("dicache", "cond_aot_eager", marks=SLOW),
        pytest.param("teacache, hermite", "cond", marks=SLOW),
    ],
)
def test_compiled_programs_decide_alike(name: str, backend: str) -> None:
    twin = {"cond": "inductor", "cond_aot_eager": "aot_eager"}[backend]
    mine, theirs = run(POLICIES[name], backend), run(POLICIES[name], twin)
    assert mine[1:] == theirs[1:]
    torch.testing.assert_close(mine[0], theirs[0], rtol=1e-4, atol=1e-5)


def test_thresholds_are_data_and_zero_is_off() -> None:
    model, inputs = random_flux(2, 2), flux_inputs(batch=1)
    compiled = hicache_compile(model, TeaCache(0.0), backend="cond_eager")
    found = []
    for threshold in (0.0, 0.2, 0.5, 2.0, 1e9):
        compiled.policy = TeaCache(threshold)
        with compiled.trajectory(STEPS):
            states = trace(compiled, inputs, STEPS)
        found.append(compiled.report().decisions())
        if not threshold:
            torch.testing.assert_close(states, trace(model, inputs, STEPS), rtol=0, atol=0)
    assert found[0] == "F" * STEPS
    assert found[-1] == "F" + "." * (STEPS - 2) + "F"
    assert [text.count("F") for text in found] == sorted((text.count("F") for text in found), reverse=True)
    assert (compiled.report().programs, compiled.report().recompiles) == (1, 0)


def test_nothing_is_read_back_in_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """But by ``torch.cond`` itself, which in eager asks for its predicate; the report asks once for all steps."""
    compiled = hicache_compile(random_flux(2, 2), FBCacheTeaCache(0.35, 0.3), backend="cond_aot_eager")
    inputs = flux_inputs(batch=1)
    with compiled.trajectory(STEPS):
        trace(compiled, inputs, STEPS)
    compiled.report()
    read = counted_reads(monkeypatch)
    before = compiled.report().host_syncs
    with compiled.trajectory(STEPS):
        trace(compiled, inputs, STEPS)
    assert set(read) == {"__bool__"}
    assert compiled.report().host_syncs == before + 1
    assert read["tolist"] == 1


def test_contexts_and_runs_stay_apart() -> None:
    policy = FBCacheTeaCache(0.35, 0.3)
    model = random_flux(2, 2)
    given = {name: flux_inputs(batch=1, seed=seed) for name, seed in (("cond", 0), ("uncond", 1))}
    apart = {name: run_alone(model, policy, inputs) for name, inputs in given.items()}
    compiled = hicache_compile(model, policy, backend="cond_eager")
    for _ in range(2):
        x = {name: inputs["hidden_states"] for name, inputs in given.items()}
        with compiled.trajectory(STEPS), torch.no_grad():
            for step in range(STEPS):
                for name, inputs in given.items():
                    with compiled.cache_context(name):
                        time = torch.full((1,), 1 - step / STEPS)
                        out = compiled(**{**inputs, "hidden_states": x[name]}, timestep=time, return_dict=False)[0]
                    x[name] = x[name] - out / STEPS
        for name in given:
            assert compiled.report().decisions(name) == apart[name]


def test_a_report_after_several_runs_knows_them_all() -> None:
    model, inputs = random_flux(2, 2), flux_inputs(batch=1)
    compiled = hicache_compile(model, TeaCache(0.5), backend="cond_eager")
    for threshold in (0.5, 2.0):
        compiled.policy = TeaCache(threshold)
        with compiled.trajectory(STEPS):
            trace(compiled, inputs, STEPS)
    report = compiled.report()
    for place, threshold in ((-2, 0.5), (-1, 2.0)):
        assert report.decisions(trajectory=place) == run_alone(model, TeaCache(threshold), inputs)
    computed = report.decisions().count("F")
    assert report.computed == computed
    assert report.flops_speedup == pytest.approx(STEPS / (computed + 0.03 * (STEPS - computed)), rel=0.05)


def run_alone(model: torch.nn.Module, policy: Policy, inputs: dict[str, Tensor]) -> str:
    compiled = hicache_compile(model, policy, backend="eager")
    with compiled.trajectory(STEPS):
        trace(compiled, inputs, STEPS)
    return compiled.report().decisions()


def test_a_run_goes_on_in_another_denoiser(tmp_path: Path) -> None:
    assert_it_goes_on(FBCacheTeaCache(0.35, 0.3), "cond_eager", tmp_path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_number_is_computed_and_counted(value: float) -> None:
    rule = rules.TensorRule(FirstBlockGuard(1.0), Numbers)
    parameters, remembered, run, free, step = (
        torch.tensor(values, dtype=torch.float64)
        for values in (rule.parameters(20), rule.first_remembered(), [3.0, 0, 0, 0, 2], [0.0], [5.0])
    )
    free = free > 0
    good = rule.ask(parameters, remembered, free, step, torch.tensor([0.1]))
    bad = rule.ask(parameters, remembered, free, step, torch.tensor([value]))
    assert good[:3].tolist() == [1, 0, 0]
    assert bad[:3].tolist() == [0, 1, 1]
    assert bad[3:].tolist() == remembered.tolist()
    assert rules.counted(run, bad)[2] == 1


@pytest.mark.parametrize("forecaster", [Hermite(2, 0.5), Newton(2), Hermite(1)])
def test_tables_hold_the_weights_of_every_history(forecaster: object) -> None:
    policy = TeaCache(0.5, forecaster=forecaster)  # type: ignore[arg-type]  # a forecaster
    table = rules.weight_table(policy, policy.depth, 30)
    for computed, step in (([0], 1), ([0, 1], 4), ([0, 3, 9], 11), ([2, 7, 8, 20], 29), ([0, 1, 2], 3)):
        expected = policy.weights(computed, step)
        newest = [*reversed(computed)][: policy.depth]
        gaps = [before - after for before, after in zip([step, *newest], newest, strict=False)]
        place = tuple(gaps + [0] * (policy.depth - len(gaps)))
        assert table[place].tolist()[: len(expected)] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"offload": True}, "the host does not see which anchors a step needs"),
        ({"policy": TeaCache(0.5, forecaster=Chebyshev(4))}, "reads more than 3 anchors"),
    ],
)
def test_what_a_program_cannot_decide_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(HiCacheError, match=message):
        hicache_compile(ToyDiT(), **{"policy": TeaCache(0.5), "backend": "cond_eager", **options})  # type: ignore[arg-type]


def test_every_guard_has_a_rule_of_its_own() -> None:
    given = {True: {"threshold": 0.1}, False: {}}
    made = [guard(**given["threshold" in guard.__dataclass_fields__]) for guard in GUARDS]
    assert len({rules.TensorRule(guard, Numbers).signature for guard in made}) == len(GUARDS) == 8
    for guard in made:
        rule = rules.TensorRule(guard, Numbers)
        assert guard.numbers_are_data
        assert len(rule.parameters(50)) == len(rule.parameters(None))
