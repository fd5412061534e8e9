"""Every argument works, or is refused in one line; a denoiser that refused one is as it was."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hicache_compile import Chipmunk, HiCache, HiCacheError, Policy, hicache_compile
from tests.support.any_value import VALUES, many, refusal
from tests.support.models import ToyDiT

OPTIONS = [name for name in inspect.signature(hicache_compile).parameters if name not in ("model", "policy")]
SENSIBLE = st.sampled_from(["eager", "inductor", "float16", "int8", "4GiB", "1e30GiB", "0", "9" * 400, "max-autotune"])
SPARSITY = st.dictionaries(st.sampled_from(list(inspect.signature(Chipmunk).parameters)), VALUES, max_size=3)
METHODS = ["trajectory", "resume", "suspend", "warmup", "cache_context", "explain", "policy", "dump"]


@many
@given(st.dictionaries(st.sampled_from(OPTIONS), st.one_of(SENSIBLE, VALUES, SPARSITY), max_size=3))
def test_any_option(options: dict[str, Any]) -> None:
    try:
        made = hicache_compile(ToyDiT(1), HiCache(interval=2), **options)
        assert made.policy == HiCache(interval=2)
    except HiCacheError as error:
        refusal(error)


@pytest.fixture(scope="module")
def compiled() -> Any:
    made = hicache_compile(ToyDiT(1), HiCache(interval=2), backend="eager")
    made(torch.zeros(1, 5, 16), torch.ones(1))
    yield made
    torch._dynamo.reset()  # it skips code of the class where a call raised, for all denoisers of the process


@many
@given(name=st.sampled_from(METHODS), value=VALUES)
def test_any_argument_of_a_method(compiled: Any, tmp_path_factory: Any, name: str, value: Any) -> None:
    before = compiled.policy
    try:
        if name == "policy":
            compiled.policy = value
        elif name in ("trajectory", "resume", "cache_context"):
            with getattr(compiled, name)(value):
                pass
        elif name == "explain" and not isinstance(value, int):
            compiled.explain(value)
        elif name == "warmup" and not isinstance(value, list | dict):  # else what the model says of its arguments
            compiled.warmup(value)
        elif name in ("suspend", "dump") and not isinstance(value, str):
            getattr(compiled, name)(value)
    except HiCacheError as error:
        refusal(error)
        assert compiled.policy == before
    assert isinstance(compiled.policy, Policy)
    compiled.policy = HiCache(interval=2)
    assert compiled._session.trajectory is None


@many
@given(times=VALUES, num_steps=st.integers(1, 4))
def test_any_timesteps(compiled: Any, times: Any, num_steps: int) -> None:
    try:
        with compiled.trajectory(num_steps, timesteps=times):
            assert times is None or len(times) == num_steps
    except HiCacheError as error:
        refusal(error)
    assert compiled._session.trajectory is None


@many
@given(x=VALUES, t=VALUES)
def test_a_call_with_anything_leaves_the_denoiser_as_it_was(compiled: Any, x: Any, t: Any) -> None:
    """What the model itself raises is the model's; the runs after it are what they were."""
    with torch.no_grad(), pytest.raises(Exception):  # noqa: B017, PT011  # whatever the model makes of it
        compiled(x, t)
    with torch.no_grad(), compiled.trajectory(4):
        for step in range(4):
            compiled(torch.zeros(1, 5, 16), torch.full((1,), 1 - step / 4))
    assert compiled.report().decisions() == "FFF."
