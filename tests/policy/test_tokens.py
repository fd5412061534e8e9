"""Which tokens are chosen and when, ranges of blocks, and what neither may be."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from hicache_compile import ClusCa, DuCa, HiCacheError, Interval, PerKind, PerRange, Policy, Reuse, StepMask, Tokens
from hicache_compile.operators import tokens as operators
from hicache_compile.policy.json_codec import from_json, to_json
from hicache_compile.runtime.deciders.computed_steps import letters_of


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Tokens("best"), "Tokens.select = 'best': must be one of clusters, score"),
        (lambda: Tokens(count=0), "Tokens.count = 0: must be an integer >= 1"),
        (lambda: Tokens(share=0.0), r"Tokens.share = 0.0: must be a number in \(0, 1\]"),
        (lambda: Tokens(blend=2), "Tokens.blend = 2: must be a number from 0 to 1"),
        (lambda: Tokens("grid", spread="error"), "Tokens.spread = 'error': must be 'none' with select='grid'"),
        (
            lambda: Policy(Interval(3), Reuse(), "stack", tokens=Tokens()),
            "only at scope 'module' are attention and MLPs sites of their own",
        ),
        (lambda: Policy(Interval(3), Reuse(), tokens=3), r"Policy.tokens = 3: must be Tokens"),
        (
            lambda: Policy(PerKind({"mlp": Interval(3)}), Reuse(), tokens=Tokens()),
            "sites that are decided each by itself have no skipped step in common",
        ),
        (lambda: PerRange((Interval(3),)), "PerRange.parts = .*: must be two or more schedules"),
        (lambda: PerRange((Interval(3), PerKind({"mlp": Interval(3)}))), "PerRange.parts = .*: must be two or more"),
        (lambda: PerRange((Interval(3), Interval(2)), (0, 0)), "PerRange.starts = .*: must be 2 rising numbers from 0"),
        (
            lambda: Policy(PerRange((Interval(3), Interval(2))), Reuse(), "output"),
            "it has no sites of single blocks: use scope",
        ),
    ],
)
def test_what_may_not_be(make: Callable[[], object], message: str) -> None:
    with pytest.raises(HiCacheError, match=message):
        make()


def test_plain_data_both_ways() -> None:
    ranges = PerRange((Interval(6), StepMask("1010"), Interval(2)), (0, 0.25, 0.5))
    for policy in (ClusCa(seed=3), DuCa(), Policy(ranges, Reuse(), "stack")):
        assert from_json(to_json(policy)) == policy


def test_which_skipped_steps_are_tokenwise() -> None:
    assert letters_of(DuCa(5), 11, None, tokenwise=True) == "F.t.tF.t.tF"
    assert letters_of(ClusCa(3), 9, None, tokenwise=True) == "FFFttFttF"
    assert letters_of(DuCa(5), 11, None) == "F....F....F"


def test_policies_that_choose_otherwise_share_programs() -> None:
    assert ClusCa(5, seed=1).layout == ClusCa(7, seed=2).layout
    assert ClusCa(5, clusters=8).layout != ClusCa(5).layout


def test_how_many() -> None:
    assert Tokens("grid", share=0.07).of(1000) == 70
    assert Tokens("grid", share=0.07).of(3) == 1
    assert Tokens("grid", 16).of(9) == 9


def test_draws_are_even_and_follow_from_their_number() -> None:
    found = torch.cat([operators.draws(torch.tensor([number]), 500) for number in range(40)])
    assert torch.equal(found[7], operators.draws(torch.tensor([[7], [8]]), 500)[0])
    assert 0 <= found.min() < found.max() < 1
    expected = torch.full((10,), found.numel() / 10)
    assert ((torch.histc(found, 10, 0, 1) - expected) ** 2 / expected).sum() < 27.9  # chi-squared, 9 degrees, .999
    assert len(set(found[:, 0].tolist())) == 40


def test_one_of_each_cluster() -> None:
    clusters = torch.tensor([[0, 2, 2, 0, 1, 2], [1, 1, 1, 1, 1, 1]])
    chosen = operators.one_of_each(torch.tensor([5]), clusters, 3)
    assert [int(clusters[0, token]) for token in chosen[0]] == [0, 1, 2]
    assert 0 <= int(chosen[1].min()) <= int(chosen[1].max()) < 6  # two clusters are empty: others stand in
    drawn = {tuple(operators.one_of_each(torch.tensor([n]), clusters, 3)[0].tolist()) for n in range(60)}
    assert len(drawn) == 2 * 1 * 3
