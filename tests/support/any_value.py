"""Strategies of hypothesis for values that a user may give, and what an error must be."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from hicache_compile import HiCacheError
from hicache_compile.policy.json_codec import TYPES
from hicache_compile.policy.presets import PRESETS

EXAMPLES = int(os.environ.get("HICACHE_EXAMPLES", "200"))
LONGEST = 400  # characters of an error

many = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))

NUMBERS = st.one_of(
    st.integers(-2, 12),
    st.integers(),
    st.sampled_from([10**400, -(10**400), 2**63, 1e308]),
    st.floats(),
)
WORDS = st.one_of(st.text(max_size=12), st.sampled_from([*TYPES, *PRESETS, "FF..", "x" * 5000]))
LEAVES = st.one_of(st.none(), st.booleans(), NUMBERS, WORDS)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=8), inner, max_size=3)),
    max_leaves=8,
)


def refusal(error: HiCacheError) -> None:
    """An error is one line that can be read."""
    message = str(error)
    assert message
    assert len(message) <= LONGEST, message
    assert "\n" not in message, message
