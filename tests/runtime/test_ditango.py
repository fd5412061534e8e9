"""DiTango: the geometry of the partitions, partial attention, the planner, and runs against a plain reference."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from hicache_compile import DiTango, DiTangoSchedule, FlexCache, Hermite, HiCacheError, Policy, hicache_compile
from hicache_compile.key_partitions import Code, KeyPartitions
from hicache_compile.operators.partial_attention import State, attend, compose
from hicache_compile.operators.partitioned_attention import new_states, partitioned_attention
from hicache_compile.runtime.deciders.partitioned import PartitionDecider
from tests.support.models import ToyDiT, flux_inputs, random_flux, trace

KEPT = torch.arange(19) < torch.tensor([[19], [7]])  # of the second sample a partition and more is masked
MASKS = {
    "none": None,
    "keys": KEPT[:, None, None],
    "queries": KEPT[0] | (torch.rand(19, 19, generator=torch.Generator().manual_seed(0)) < 0.5),
    "bias": torch.where(KEPT, 0.5, float("-inf"))[:, None, None],
}
SPLITS = [(2, 1), (2, 2), (4, 1), (4, 2), (4, 4), (6, 3), (8, 2), (8, 4), (8, 8)]  # partitions, groups


@pytest.mark.parametrize(("partitions", "groups"), SPLITS)
def test_displacements_are_permutations(partitions: int, groups: int) -> None:
    split = KeyPartitions(groups, partitions)
    places = [(o, i) for o in range(groups) for i in range(split.per_group)]
    for place in places:
        assert sorted(split.source(rank, *place) for rank in range(partitions)) == list(range(partitions))
        for rank in range(partitions):
            assert split.target(split.source(rank, *place), *place) == rank
    for rank in range(partitions):
        seen = [rank, *itertools.chain.from_iterable(split.members(rank, o) for o in range(groups))]
        assert sorted(seen) == list(range(partitions))


def test_who_is_displaced_from_whom_is_as_published() -> None:
    """``((r // g + o) mod G) g + (r mod g + i) mod g``, written out for four and for eight ranks."""
    assert [KeyPartitions(4, 4).source(0, o, 0) for o in range(4)] == [0, 1, 2, 3]
    assert [KeyPartitions(4, 4).source(3, o, 0) for o in range(4)] == [3, 0, 1, 2]
    assert [KeyPartitions(4, 8).source(5, o, i) for o in range(4) for i in range(2)] == [5, 4, 7, 6, 1, 0, 3, 2]


def test_states_compose_to_attention_in_any_order() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, 12, 8, generator=generator, dtype=torch.float64) for _ in range(3))
    whole = (q @ k.transpose(-1, -2) * 0.3).softmax(-1) @ v
    parts = list(zip(k.split([5, 1, 4, 2], dim=-2), v.split([5, 1, 4, 2], dim=-2), strict=True))
    for order in itertools.permutations(parts):
        states = [attend(q, key, value, 0.3) for key, value in order]
        total: State = states[0]
        for state in states[1:]:
            total = compose(total, state)
        torch.testing.assert_close(total[0], whole, rtol=0, atol=1e-14)
        torch.testing.assert_close(total[1], (q @ k.transpose(-1, -2) * 0.3).logsumexp(-1), rtol=0, atol=1e-13)


@pytest.mark.parametrize(("partitions", "groups"), SPLITS)
@pytest.mark.parametrize("mask", MASKS)
def test_any_plan_is_full_attention_of_what_stands_still(partitions: int, groups: int, mask: str) -> None:
    """Queries and keys that do not change: whatever is reused, every key counts exactly once."""
    generator = torch.Generator().manual_seed(partitions)
    q, k, v = (torch.randn(2, heads, 19, 8, generator=generator) for heads in (4, 2, 2))
    masked = MASKS[mask]
    whole = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=masked, enable_gqa=True)
    split = KeyPartitions(groups, partitions)
    states, measured = new_states(q, split), torch.zeros(1, groups + 1)
    chance = random.Random(0)
    plans = [[Code.FORCED] * groups, [Code.ANCHOR] * groups]
    plans += [[chance.choice((Code.COMPUTED, Code.REUSED)) for _ in range(groups)] for _ in range(12)]
    for plan in plans:
        codes = torch.tensor([[int(code) for code in plan]])
        data = (q, k, v, masked, codes, *states.values(), measured)
        out = partitioned_attention(*data, 0, 8**-0.5, groups, partitions, False)
        torch.testing.assert_close(out, whole, rtol=1e-5, atol=1e-6)
    assert measured.abs().max() == 0  # nothing drifted


def decider(ratio: float, num_steps: int, layers: int = 3, partitions: KeyPartitions | None = None) -> PartitionDecider:
    return PartitionDecider(DiTangoSchedule(ratio, 5, 5), partitions or KeyPartitions(2, 4), num_steps, layers)


def test_the_least_ratio_alternates_anchors_and_reuse() -> None:
    """The golden plan of ratio 0 as published; here 0 itself is off, and this what a ratio just above it does."""
    run = decider(1e-9, 30)
    for step in range(30):
        codes = run.codes(step)
        if codes[0][0] != Code.FORCED:
            run.plan_next(step, [[0.1, 0.2, 0.3]] * 3)
    assert run.anchors[:10] == list(range(5, 25, 2))
    expected = {Code.FORCED: [*range(5), *range(25, 30)], Code.ANCHOR: [*range(5, 25, 2)]}
    for step in range(30):
        found = {Code(code) for row in run.codes(step) for code in row}
        assert found == {next((code for code, steps in expected.items() if step in steps), Code.REUSED)}


def test_the_quantile_of_the_errors_after_an_anchor_is_the_threshold() -> None:
    run = decider(0.5, 30, layers=2)
    for step in range(5):
        assert run.letter(step) == "F"
    run.plan_next(5, [[9.0, 9.0, 0.0]] * 2)  # the anchor: what it measured is not looked at
    assert run.letter(6) == "."
    run.plan_next(6, [[0.1, 0.4, 0.1], [0.2, 0.3, 0.1]])
    assert run.threshold == 0.3  # sorted: .1 .2 .3 .4, place int(4 * .5)
    assert run.codes(7) == [[Code.REUSED, Code.COMPUTED], [Code.REUSED, Code.COMPUTED]]
    assert run.letter(7) == "p"
    assert run.reused(7) == pytest.approx(1 / 4)  # group 0 is one of four partitions
    run.plan_next(7, [[0.1, 0.2, 0.31], [0.2, 0.1, 0.31]])  # drifted by more than .6 * .5 on the mean
    assert run.codes(8) == [[Code.ANCHOR] * 2] * 2


def test_a_group_of_the_local_partition_alone_is_not_decided() -> None:
    run = decider(0.5, 30, layers=1, partitions=KeyPartitions(2, 2))
    run.plan_next(5, [[0.0, 0.0, 0.0]])
    assert run.codes(6) == [[Code.COMPUTED, Code.REUSED]]
    assert run.letter(6) == "."
    assert run.reused(6) == 0.5


def test_what_is_no_number_makes_an_anchor(caplog: pytest.LogCaptureFixture) -> None:
    run = decider(0.5, 30)
    run.plan_next(5, [[0.1, 0.1, 0.0]] * 3)
    run.plan_next(6, [[float("nan"), 0.1, 0.0]] * 3)
    assert (run.nonfinite, run.letter(7)) == (1, "F")
    assert "no finite number" in caplog.text


class Reference:
    """Attention by partitions in ten plain lines of float32 matrices, for one layer of a run without decisions."""

    def __init__(self, split: KeyPartitions, plan: Callable[[int], list[list[int]]]) -> None:
        self.split, self.plan = split, plan
        self.kept: dict[tuple[int, int, int], tuple[Tensor, Tensor]] = {}

    def __call__(self, step: int, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        cuts = torch.arange(q.shape[-2]).tensor_split(self.split.partitions)
        rows = []
        for rank, mine in enumerate(cuts):
            numerator, denominator = 0, 0
            for group in (-1, *range(self.split.groups)):
                owners = (rank,) if group < 0 else self.split.members(rank, group)
                for owner in owners:
                    if group < 0 or self.plan(step)[layer][group] != Code.REUSED:
                        e = (q[..., mine, :] @ k[..., cuts[owner], :].mT * q.shape[-1] ** -0.5).exp()
                        self.kept[layer, rank, owner] = e @ v[..., cuts[owner], :], e.sum(-1, keepdim=True)
                    top, bottom = self.kept[layer, rank, owner]
                    numerator, denominator = numerator + top, denominator + bottom
            rows.append(numerator / denominator)
        return torch.cat(rows, dim=-2)


@pytest.mark.parametrize("ratio", [0.2, 0.5, 0.9])
@pytest.mark.parametrize(("partitions", "groups"), [(4, 2), (3, 3), (2, 1)])
def test_runs_equal_a_plain_reference(
    ratio: float, partitions: int, groups: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = 14
    model, x = ToyDiT(), torch.randn(2, 13, 16, generator=torch.Generator().manual_seed(0))
    policy = DiTango(ratio, 2, 2, groups, partitions=partitions)
    compiled = hicache_compile(model, policy, backend="aot_eager")
    states = []
    with compiled.trajectory(steps), torch.no_grad():
        y = x
        for step in range(steps):
            y = y - compiled(y, torch.full((2,), 1 - step / steps)) / steps
            states.append(y)
    plan = compiled._session.contexts["default"].states[1].decider
    assert isinstance(plan, PartitionDecider)
    assert len({plan.letter(step) for step in range(steps)}) > 1
    reference = Reference(KeyPartitions(groups, partitions), plan.codes)
    layer = itertools.count()
    now = 0
    monkeypatch.setattr(
        nn.functional, "scaled_dot_product_attention", lambda q, k, v: reference(now, next(layer), q, k, v)
    )
    y = x
    with torch.no_grad():
        for now in range(steps):  # read by the reference
            layer = itertools.count()
            y = y - model(y, torch.full((2,), 1 - now / steps)) / steps
            torch.testing.assert_close(states[now], y, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("policy", [DiTango(0.0, 2, 2), FlexCache("ditango", 0.0)])
def test_ratio_zero_is_off_bit_for_bit(policy: Policy, backend: str) -> None:
    model, inputs = random_flux(), flux_inputs()
    compiled = hicache_compile(model, policy, backend=backend)
    with compiled.trajectory(12):
        mine = trace(compiled, inputs, 12)
    plain = torch.compile(model, backend=backend, fullgraph=True)
    assert torch.equal(mine, trace(plain, inputs, 12))


def test_one_program_for_every_plan() -> None:
    model, inputs = random_flux(), flux_inputs(batch=1)
    compiled = hicache_compile(model, DiTango(0.5, 2, 2), backend="aot_eager")
    for ratio in (0.1, 0.5, 0.9, 0.5):
        compiled.policy = DiTango(ratio, 2, 2)
        with compiled.trajectory(14):
            out = trace(compiled, inputs, 14)
        uncached = trace(model, inputs, 14)
        assert (out[-1] - uncached[-1]).norm() / uncached[-1].norm() < 0.01
    report = compiled.report()
    assert (report.programs, report.recompiles, report.graph_breaks) == (2, 0, 0)
    assert report.host_syncs == 4 * 10  # one look a step that is not forced
    assert 1 < report.flops_speedup < 1.2  # attention is little here
    assert set(report.decisions()) <= {"F", "p", "."}


def test_inductor_takes_the_same_plan() -> None:
    found = []
    for backend in ("eager", "inductor"):
        compiled = hicache_compile(random_flux(2, 2), DiTango(0.5, 2, 2), backend=backend)
        with compiled.trajectory(12):
            found.append((trace(compiled, flux_inputs(batch=1), 12), compiled.report().decisions()))
    assert found[0][1] == found[1][1]
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-4, atol=1e-5)


def test_attention_that_cannot_be_partitioned_is_refused() -> None:
    class Causal(ToyDiT):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            q = x.unsqueeze(1)
            x = x + nn.functional.scaled_dot_product_attention(q, q, q, is_causal=True).squeeze(1)
            return super().forward(x, t)

    compiled = hicache_compile(Causal(), DiTango(0.5, 1, 1), backend="eager")
    with compiled.trajectory(6), torch.no_grad():
        for step in range(6):
            compiled(torch.randn(1, 8, 16), torch.full((1,), 1 - step / 6))
    assert [reason for _, reason in compiled.report().refused] == ["its attention is causal"]
    assert "." in compiled.report().decisions()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"cache_ratio": 1.5}, "DiTangoSchedule.cache_ratio = 1.5: must be a number from 0 to 1"),
        ({"cache_ratio": 0.5, "warmup": 0}, "DiTangoSchedule.warmup = 0"),
        ({"cache_ratio": 0.5, "groups": 3, "partitions": 4}, "partitions = 4: must be a multiple of groups = 3"),
        ({"cache_ratio": 0.5, "forecaster": Hermite(1)}, r"so they are only reused: use forecaster=Reuse\(\)"),
        ({"cache_ratio": 0.5, "scope": "stack"}, "sites of their own: use scope='module'"),
        ({"cache_ratio": 0.5, "distributed": True}, "must be used where torch.distributed is initialised"),
    ],
)
def test_what_is_not_allowed(given: dict[str, object], message: str) -> None:
    with pytest.raises(HiCacheError, match=message):
        hicache_compile(ToyDiT(), DiTango(**given), backend="eager")  # type: ignore[arg-type]


@pytest.mark.parametrize("strategy", ["teacache", "pab", "ditango"])
def test_flexcache_needs_steps_between_warmup_and_cooldown(strategy: str) -> None:
    compiled = hicache_compile(ToyDiT(), FlexCache(strategy, 0.5, 5, 5), backend="eager")
    message = r"warmup \+ cooldown = 10: must be less than the 10 steps"
    with pytest.raises(HiCacheError, match=message), compiled.trajectory(10):
        pass
    with compiled.trajectory(11):
        pass


@pytest.mark.parametrize("options", [{"offload": True}, {"memory_budget": "1GiB"}, {"backend": "cond_eager"}])
def test_where_its_states_are_kept_changes_nothing(options: dict[str, object]) -> None:
    model, inputs, found = random_flux(2, 2), flux_inputs(batch=1), []
    for given in ({}, options):
        compiled = hicache_compile(model, DiTango(0.5, 2, 2), **{"backend": "eager", **given})  # type: ignore[arg-type]
        with compiled.trajectory(12):
            found.append((trace(compiled, inputs, 12), compiled.report().decisions()))
    assert found[0][1] == found[1][1]
    assert torch.equal(found[0][0], found[1][0])


def test_too_small_a_budget_says_the_least_that_would_do() -> None:
    compiled = hicache_compile(random_flux(2, 2), DiTango(0.5, 2, 2), backend="eager", memory_budget="1KB")
    with pytest.raises(HiCacheError, match="must be at least"), compiled.trajectory(12):
        trace(compiled, flux_inputs(batch=1), 12)
