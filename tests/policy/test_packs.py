"""Policy packs: what they promise, what is picked, how they are kept in files, and when a promise counts as broken."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hicache_compile import Contract, HiCache, HiCacheError, Pack, PlannedSteps, Policy, Reuse, Uncached
from hicache_compile.policy.packs import Entry, Signature, as_pack, is_pack
from hicache_compile.policy.packs.contract import BROKEN

TRUE = Entry("true", HiCache(interval=2), tuple(0.001 * n for n in range(1, 41)), 4.0, 1.9, 26.0)
FAST = Entry("fast", HiCache(interval=6), tuple(0.01 * n for n in range(1, 41)), 1.5, 5.0, 10.0)
PLAN = Policy(PlannedSteps("10", (1000.0, 500.0), (1.0, 0.5)), Reuse(), "stack")
PACK = Pack((TRUE, FAST), 50, 8.0, "a machine", Signature("Flux 1", "Euler 2"))


def test_the_bound_is_the_conformal_quantile() -> None:
    """Of exchangeable errors a new one is within the bound with probability ``rank / (n + 1)``: counted over draws."""
    assert TRUE.bound == pytest.approx(0.039)  # ceil(.95 * 41) = 39
    assert replace(TRUE, errors=(0.1,) * 18).bound == math.inf
    assert replace(TRUE, errors=(0.1,) * 19).bound == 0.1
    draws, within = random.Random(0), 0
    for _ in range(2000):
        *known, new = (draws.lognormvariate(0, 1) for _ in range(41))
        within += new <= replace(TRUE, errors=tuple(known)).bound
    assert 0.935 <= within / 2000 <= 0.97  # 39 / 41 = .951, three deviations


@pytest.mark.parametrize(
    ("promise", "name"),
    [
        ({"max_error": 0.5}, "fast"),
        ({"max_error": 0.1}, "true"),
        ({"max_error": 0.039}, "true"),
        ({"max_error": 0.01}, "in full"),
        ({"max_seconds": 2.0}, "fast"),
        ({"max_seconds": 5.0}, "true"),
        ({"max_seconds": 9.0}, "in full"),
        ({"max_seconds": 5.0, "max_error": 0.5}, "true"),
    ],
)
def test_what_is_picked(promise: dict[str, float], name: str) -> None:
    assert PACK.pick(**promise).name == name


@pytest.mark.parametrize(
    ("promise", "message"),
    [
        ({}, r"max_error or max_seconds must be given.*0.039 \(true\), 0.39 \(fast\)"),
        ({"max_seconds": 1.0}, r"pack.max_seconds = 1.0: must be 1.5 or more, which 'fast' takes on a machine"),
        ({"max_seconds": 2.0, "max_error": 0.1}, r"pack.max_error = 0.1: must be 0.39 or more within 2.0 s"),
        ({"max_error": 0}, r"pack.max_error = 0: must be a number in \(0, inf\]"),
        ({"max_error": "1"}, r"pack.max_error = '1': must be a number"),
        ({"max_seconds": math.nan}, r"pack.max_seconds = nan: must be a number"),
    ],
)
def test_what_cannot_be_promised(promise: dict[str, Any], message: str) -> None:
    with pytest.raises(HiCacheError, match=message):
        PACK.pick(**promise)


def test_a_pack_is_what_it_was_written_as(tmp_path: Path) -> None:
    path = tmp_path / "pack.json"
    PACK.save(path)
    assert as_pack(path) == as_pack(str(path)) == PACK
    assert is_pack(path)
    path.with_name("sorted.json").write_text(json.dumps(json.loads(path.read_text()), sort_keys=True))
    assert is_pack(path.with_name("sorted.json"))
    assert not is_pack(tmp_path / "none.json")
    assert not is_pack("HiCache")
    text = path.read_text()
    path.write_text(text.replace("0.39", "0.11"))
    with pytest.raises(HiCacheError, match=r"pack\.sha256 .*damaged"):
        as_pack(path)
    data = json.loads(text)
    for change in ({"version": 2}, {"entries": [{"name": "a"}]}, {"entries": 3}):
        with pytest.raises(HiCacheError, match="pack"):
            as_pack({**{key: value for key, value in data.items() if key != "sha256"}, **change})
    path.write_text("[]")
    with pytest.raises(HiCacheError, match=r"must be a file that Pack\.save wrote"):
        as_pack(path)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Pack((), 50, 8.0, ""), "pack.entries: none: must be one or more"),
        (lambda: Pack((TRUE, TRUE), 50, 8.0, ""), "pack.entries: true, true: must be one or more, of different names"),
        (lambda: Pack((replace(TRUE, errors=(0.1,) * 18),), 50, 8.0, ""), "pack.errors of 'true': 18 runs, must be 19"),
        (
            lambda: Pack((replace(TRUE, policy=PLAN),), 50, 8.0, ""),
            "pack.policy of 'true': plans noise levels, which each call has to be given",
        ),
        (lambda: Pack((TRUE,), 0, 8.0, ""), "pack.steps = 0: must be an integer >= 1"),
        (lambda: replace(TRUE, errors=()), "pack.errors = .*: must be one or more numbers >= 0"),
        (lambda: replace(TRUE, seconds=0), "pack.seconds = 0: must be a number"),
        (lambda: replace(TRUE, computed="many"), "pack.computed = 'many': must be a number"),
        (lambda: replace(TRUE, policy="HiCash"), "HiCash"),
        (lambda: replace(TRUE, name=3), "pack.name = 3: must be a text"),
        (lambda: Pack((replace(TRUE, name="in full"),), 50, 8.0, ""), "'in full' is every step computed: must have an"),
    ],
)
def test_a_pack_that_is_none(make: Callable[[], object], message: str) -> None:
    with pytest.raises(HiCacheError, match=message):
        make()


def test_a_signature_tells_models_apart() -> None:
    def module(**config: Any) -> Any:
        return type("Net", (), {"config": config, "_modules": {}})()

    one = Signature.of(module(layers=2, _name="a"), None)
    assert one.model.startswith("Net ")
    one.check(Signature.of(module(layers=2, _name="b")))  # names of files do not count
    one.check(Signature())
    with pytest.raises(HiCacheError, match=r"pack.model: measured on Net \w+, this is Net \w+: must be the same class"):
        one.check(Signature.of(module(layers=3)))
    wrapped = SimpleNamespace(_orig_mod=module(layers=2))
    one.check(Signature.of(wrapped))
    other = module(layers=4)
    two = Signature.of_all([module(layers=2), other])  # a pipeline with two denoisers
    two.check(one)
    two.check(Signature.of(other))
    with pytest.raises(HiCacheError, match="measured on"):
        two.check(Signature.of(module(layers=3)))


def test_a_promise_that_is_kept_stays() -> None:
    """Errors of the policy itself, 5 of 100 beyond the bound: 500 checked runs, in 20 orders, are no evidence."""
    for seed in range(20):
        contract, draws = Contract(PACK, max_error=0.39), random.Random(seed)
        for _ in range(500):
            assert contract.observe(0.5 if draws.random() < 0.05 else 0.2) is None
        assert contract.report().policy == "fast"
        assert contract.report().evidence < BROKEN


def test_a_broken_promise_steps_back_to_what_still_keeps_it() -> None:
    contract = Contract(PACK, max_error=0.4)
    assert contract.entry is FAST
    found = [contract.observe(0.8) for _ in range(5)]
    assert found[:4] == [None] * 4
    assert found[4] is TRUE  # .039, times .8 / .39 grown: .08
    report = contract.report()
    assert (report.policy, report.checked, report.beyond, report.stepped_back) == ("true", 5, 5, ("fast",))
    assert (report.errors, report.evidence, report.promised) == ((), 1.0, 0.4)
    assert [contract.observe(10.0) for _ in range(5)][-1] == PACK.in_full
    assert contract.entry.policy == Uncached()
    assert [contract.observe(1.0) for _ in range(9)] == [None] * 9  # runs in full break nothing
    assert PACK.pick(max_error=0.5, without=["fast"]) is TRUE


def test_an_error_that_grew_so_much_skips_what_would_not_keep_it() -> None:
    contract = Contract(PACK, max_error=0.4)
    assert [contract.observe(5.0) for _ in range(5)][-1] == PACK.in_full


def test_half_of_the_runs_beyond_are_found_within_twenty() -> None:
    for seed in range(50):
        contract, draws = Contract(PACK, max_error=0.4), random.Random(seed)
        runs = 0
        while contract.observe(0.8 if runs % 2 == 0 or draws.random() < 0.2 else 0.1) is None:
            runs += 1
        assert runs < 20


def test_time_was_promised_then_the_error_measured_is_what_is_watched() -> None:
    contract = Contract(PACK, max_seconds=2.0)
    assert contract.promised == FAST.bound
    for _ in range(4):
        contract.observe(1.0)
    assert contract.observe(1.0) is not None
    assert contract.promised == FAST.bound
    with pytest.raises(HiCacheError, match=r"Contract\.observe: error = nan"):
        contract.observe(math.nan)
