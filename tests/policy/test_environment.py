"""The environment variables of the frameworks before: what they mean here, and how a wrong one is told."""

from __future__ import annotations

import logging

import pytest
import torch

from hicache_compile import HiCacheError, Interval, Policy, Smoothing, Taylor, hicache_compile
from hicache_compile.errors import switched_on
from hicache_compile.policy.environment import fields_from_env
from tests.support.models import ToyDiT


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, Policy(Interval(6), Taylor(1))),
        ({"TS_CACHE_INTERVAL": "5", "TS_MAX_ORDER": "2", "TS_FIRST_ENHANCE": "4"}, Policy(Interval(5, 4), Taylor(2))),
        ({"USE_SMOOTHING": "yes"}, Policy(Interval(6), Taylor(1), smoothing=Smoothing())),
        (
            {"USE_SMOOTHING": "1", "USE_HYBRID_SMOOTHING": "true", "TS_MAX_ORDER": "2", "SMOOTHING_ALPHA": "0.9"},
            Policy(Interval(6), Taylor(2), smoothing=Smoothing(alpha=0.9, hybrid=True)),
        ),
        (
            {"USE_SMOOTHING": "on", "SMOOTHING_METHOD": "moving_average"},
            Policy(Interval(6), Taylor(1), smoothing=Smoothing("moving_average")),
        ),
        ({"USE_HYBRID_SMOOTHING": "true"}, Policy(Interval(6), Taylor(1))),  # upstream acts on it in some blocks
        ({"TS_CACHE_INTERVAL": "", "USE_SMOOTHING": " "}, Policy(Interval(6), Taylor(1))),
    ],
)
def test_policy(environ: dict[str, str], expected: Policy) -> None:
    assert Policy(**fields_from_env(environ)) == expected


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"TS_CACHE_INTERVAL": "x"}, "TS_CACHE_INTERVAL = 'x': must be an integer"),
        ({"TS_MAX_ORDER": "1.5"}, "TS_MAX_ORDER = '1.5': must be an integer"),
        ({"USE_SMOOTHING": "maybe"}, "USE_SMOOTHING = 'maybe': must be one of 1, true"),
        ({"USE_SMOOTHING": "1", "SMOOTHING_METHOD": "gauss"}, "Smoothing.method = 'gauss': must be one of"),
        ({"USE_SMOOTHING": "1", "SMOOTHING_ALPHA": "2"}, "Smoothing.alpha = 2.0: must be a number in"),
        ({"TS_CACHE_INTERVAL": "0"}, "Interval.interval = 0: must be"),
    ],
)
def test_a_wrong_value_is_named(environ: dict[str, str], message: str) -> None:
    with pytest.raises(HiCacheError, match=message):
        Policy(**fields_from_env(environ))


def test_policy_named_env(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TS_CACHE_INTERVAL", "4")
    compiled = hicache_compile(ToyDiT(), "env", backend="eager")
    assert compiled.policy == Policy.from_env() == Policy(Interval(4), Taylor(1))
    assert not switched_on("TS_STRICT_SHAPES")


def test_debug_and_strict_shapes(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    compiled = hicache_compile(ToyDiT(), "env", backend="eager")
    monkeypatch.setenv("TS_DEBUG_SHAPES", "1")
    monkeypatch.setenv("TS_STRICT_SHAPES", "1")
    with caplog.at_level(logging.WARNING), torch.no_grad(), compiled.trajectory(4):
        compiled(torch.zeros(1, 5, 16), torch.ones(1))
        assert "[TS][step 0][default] anchors: [2, 1, 5, 16]" in caplog.text
        with pytest.raises(HiCacheError, match="shapes of the anchors changed inside a run"):
            compiled(torch.zeros(1, 7, 16), torch.ones(1))
