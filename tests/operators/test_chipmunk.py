"""Each operator against plain formulas in float64, over odd shapes: PyTorch's kernels, and Triton's interpreted."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from hicache_compile.operators.chipmunk import columns as sets
from hicache_compile.operators.chipmunk.mlp import ACTIVATIONS
from hicache_compile.operators.partial_attention import compose, without
from tests.support.chipmunk_reference import chosen_keys, column_scores, count_of, masked_attention

OPS = torch.ops.hicache
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
HALF = (torch.float16, torch.bfloat16)
FEW = settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
SOME = settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


@pytest.fixture(params=["portable", "triton"])
def provider(request: pytest.FixtureRequest) -> str:
    """Whose kernels: Triton's run in its interpreter where there is no GPU (see ``conftest``)."""
    if request.param == "triton":
        pytest.importorskip("triton")
    return str(request.param)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def heads(batch: int, count: int, tokens: int, dim: int, dtype: torch.dtype, seed: int) -> tuple[Tensor, ...]:
    """Query, key and value as a model has them, heads last but one: ``[B, H, N, D]``."""
    return tuple(normal(batch, tokens, count, dim, seed=seed + i, dtype=dtype).transpose(1, 2) for i in range(3))


def tolerance(dtype: torch.dtype) -> float:
    return {torch.float64: 1e-12, torch.float32: 2e-6, torch.float16: 3e-3, torch.bfloat16: 2e-2}[dtype]


def close(found: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    scale = float(expected.double().abs().max()) + 1e-9
    assert float((found.double() - expected.double()).abs().max()) / scale < tolerance(dtype)


shapes = st.tuples(
    st.integers(1, 2),  # batch
    st.integers(1, 3),  # heads
    st.integers(1, 70),  # tokens
    st.sampled_from([8, 64, 128]),
    st.sampled_from([1, 5, 16, 192]),  # group
    st.sampled_from([0.02, 0.17, 0.5, 1.0]),
    st.sampled_from([torch.float32, *HALF]),
    st.integers(0, 1000),
)


@FEW
@given(shape=shapes)
def test_attention(provider: str, shape: tuple[int, int, int, int, int, float, torch.dtype, int]) -> None:
    batch, count, tokens, dim, group, share, dtype, seed = shape
    query, key, value = heads(batch, count, tokens, dim, dtype, seed)
    scale = dim**-0.5
    out, lse = OPS.attention_dense(query, key, value, None, scale)
    close(out, functional.scaled_dot_product_attention(query.double(), key.double(), value.double()), dtype)
    close(lse, (query.double() @ key.double().mT * scale).logsumexp(-1), dtype)
    expected = column_scores(query, key, group, scale)
    close(OPS.column_scores(query, key, lse, None, group, scale, provider), expected, dtype)
    kept = count_of(share, tokens)
    columns = OPS.select_columns(expected, None, share, 1, None, 0.0, 0)
    chosen = sets.chosen_of(columns, tokens)
    assert torch.equal(chosen, chosen_keys(expected, kept))
    found = OPS.attention_columns(query, key, value, columns, None, group, scale, share, provider)
    for one, other in zip(found, masked_attention(query, key, value, chosen, group, scale), strict=True):
        close(one, other, dtype)


def test_double_precision_stays_double() -> None:
    query, key, value = heads(1, 2, 33, 16, torch.float64, 0)
    out, lse = OPS.attention_dense(query, key, value, None, 0.25)
    assert out.dtype == lse.dtype == torch.float64
    close(out, functional.scaled_dot_product_attention(query, key, value), torch.float64)


@pytest.mark.parametrize("seed", range(3))
def test_counts_may_differ_from_group_to_group(provider: str, seed: int) -> None:
    query, key, value = heads(2, 2, 50, 64, torch.float32, seed)
    _, lse = OPS.attention_dense(4 * query, key, value, None, 0.125)
    scores = OPS.column_scores(4 * query, key, lse, None, 16, 0.125, provider)
    columns = OPS.select_columns(scores, None, 0.5, 1, 0.6, 0.0, 0)
    chosen = sets.chosen_of(columns, 50)
    assert chosen.sum(-1).unique().numel() > 1
    found = OPS.attention_columns(query, key, value, columns, None, 16, 0.125, 0.5, provider)
    close(found[0], masked_attention(query, key, value, chosen, 16, 0.125)[0], torch.float32)


def test_scores_of_logits_that_overflow_an_exponential(provider: str) -> None:
    """The original keeps ``1 / sum exp``, which is 0 or infinite once a logit passes 88; a log-sum-exp never is."""
    query, key, value = heads(1, 1, 40, 64, torch.float32, 0)
    query, key = 20 * query, 20 * key
    scale = 0.125
    assert float((query @ key.mT).max()) * scale > 150
    _, lse = OPS.attention_dense(query, key, value, None, scale)
    close(OPS.column_scores(query, key, lse, None, 16, scale, provider), column_scores(query, key, 16, scale), HALF[0])
    columns = OPS.select_columns(column_scores(query, key, 16, scale), None, 0.3, 1, None, 0.0, 0)
    out, _ = OPS.attention_columns(query, key, value, columns, None, 16, scale, 0.3, provider)
    assert out.isfinite().all()
    close(out, masked_attention(query, key, value, sets.chosen_of(columns, 40), 16, scale)[0], torch.float16)


def test_a_mask_of_keys() -> None:
    query, key, value = heads(2, 2, 30, 16, torch.float32, 0)
    seen = torch.ones(2, 1, 1, 30, dtype=torch.bool, device=DEVICE)
    seen[0, ..., 20:] = False
    bias = torch.zeros(2, 1, 1, 30, device=DEVICE).masked_fill(~seen, -1e4)
    out, lse = OPS.attention_dense(query, key, value, bias, 0.25)
    close(out, functional.scaled_dot_product_attention(query, key, value, attn_mask=seen), torch.float32)
    scores = OPS.column_scores(query, key, lse, bias, 16, 0.25, "auto")
    assert float(scores[0, ..., 20:].max()) == 0
    columns = OPS.select_columns(scores, None, 0.9, 1, None, 0.0, 0)
    near, _ = OPS.attention_columns(query, key, value, columns, bias, 16, 0.25, 0.9, "auto")
    chosen = sets.chosen_of(columns, 30) & seen
    close(near, masked_attention(query, key, value, chosen, 16, 0.25)[0], torch.float32)


mlps = st.tuples(
    st.integers(1, 2),  # batch
    st.integers(1, 40),  # tokens
    st.integers(1, 40),  # channels
    st.integers(2, 90),  # units
    st.sampled_from([1, 7, 16, 128]),  # block
    st.sampled_from([0.02, 0.3, 1.0]),
    st.sampled_from([torch.float32, *HALF]),
    st.sampled_from(sorted(ACTIVATIONS)),
    st.booleans(),  # gated
    st.booleans(),  # biased
    st.integers(0, 1000),
)


@SOME
@given(shape=mlps)
def test_mlp(provider: str, shape: tuple[int, int, int, int, int, float, torch.dtype, str, bool, bool, int]) -> None:
    batch, tokens, channels, units, block, share, dtype, activation, gated, biased, seed = shape
    x = normal(batch, tokens, channels, seed=seed, dtype=dtype)
    w1, w_up = (normal(units, channels, seed=seed + i, dtype=dtype) / channels**0.5 for i in (1, 2))
    b1, b_up = (normal(units, seed=seed + i, dtype=dtype) if biased else None for i in (3, 4))
    w2 = normal(channels + 3, units, seed=seed + 5, dtype=dtype) / units**0.5
    w_up, b_up = (w_up, b_up) if gated else (None, None)
    weights = (w1, b1, w_up, b_up)

    def hidden(x: Tensor) -> tuple[Tensor, Tensor]:
        wide = [None if w is None else w.double() for w in weights]
        inner = functional.linear(x.double(), wide[0], wide[1])
        now = ACTIVATIONS[activation](inner)
        if wide[2] is None:
            return now, inner
        up = functional.linear(x.double(), wide[2], wide[3])
        return now * up, torch.cat([inner, up], -1)

    def means_of(inner: Tensor) -> Tensor:
        return torch.stack([part.mean(1) for part in inner.split(block, dim=1)], dim=1)

    before, inner = hidden(x)
    out, activations, means = OPS.mlp_dense(x, *weights, w2, activation, block)
    close(out, before @ w2.double().mT, dtype)
    close(means, means_of(inner), dtype)
    moved = x + normal(batch, tokens, channels, seed=seed + 6, dtype=dtype)
    now, inner = hidden(moved)
    columns, means_now = OPS.mlp_select(moved, *weights, means, share, 1, 0.0, 0, block)
    chosen = sets.chosen_of(columns, units)
    assert (chosen.sum(-1) == count_of(share, units)).all()
    known = torch.cat([chosen, chosen], -1) if gated else chosen
    close(means_now, torch.where(known, means_of(inner), means.double()), dtype)
    if dtype is torch.float32:
        drift = (means_of(inner) - means.double()).abs()
        drift = drift.unflatten(-1, (2, -1)).sum(-2) if gated else drift
        assert (drift.masked_fill(~chosen, torch.inf).amin(-1) >= drift.masked_fill(chosen, 0).amax(-1) - 1e-5).all()
    rows = chosen.repeat_interleave(block, dim=1)[:, :tokens]
    expected = torch.where(rows, now, before)
    added = OPS.mlp_delta(moved, *weights, w2, activations, columns, activation, share, provider)
    scale = 4 * float((now.abs() + before.abs()).max()) * tolerance(dtype)
    assert float((added.double() - (expected - before) @ w2.double().mT).abs().max()) < scale * units**0.5
    kept = activations.transpose(-1, -2).flatten(1, 2)[:, :tokens]
    close(kept, expected, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_schemas_and_fake_kernels_say_what_the_operators_do(dtype: torch.dtype) -> None:
    query, key, value = heads(1, 2, 21, 16, dtype, 0)
    check = torch.library.opcheck
    tests = ("test_schema", "test_faketensor")
    check(OPS.attention_dense.default, (query, key, value, None, 0.25), test_utils=tests)
    lse = OPS.attention_dense(query, key, value, None, 0.25)[1]
    check(OPS.column_scores.default, (query, key, lse, None, 8, 0.25, "auto"), test_utils=tests)
    scores = OPS.column_scores(query, key, lse, None, 8, 0.25, "auto")
    for share in (0.02, 0.4):
        check(OPS.select_columns.default, (scores, None, share, 1, None, 0.0, 0), test_utils=tests)
    columns = OPS.select_columns(scores, None, 0.4, 1, None, 0.0, 0)
    sparse = (query, key, value, columns, None, 8, 0.25, 0.4, "auto")
    check(OPS.attention_columns.default, sparse, test_utils=tests)
    x, w1, b1, w2 = (normal(*shape, dtype=dtype) for shape in ((1, 9, 6), (20, 6), (20,), (5, 20)))
    weights = (w1, b1, None, None)
    check(OPS.mlp_dense.default, (x, *weights, w2, "gelu", 4), test_utils=tests)
    _, activations, means = OPS.mlp_dense(x, *weights, w2, "gelu", 4)
    check(OPS.mlp_select.default, (x, *weights, means, 0.3, 1, 0.0, 0, 4), test_utils=tests)
    units, _ = OPS.mlp_select(2 * x, *weights, means, 0.3, 1, 0.0, 0, 4)
    check(OPS.mlp_delta.default, (x, *weights, w2, activations, units, "gelu", 0.3, "auto"), test_utils=tests)


@SOME
@given(rows=st.integers(1, 5), columns=st.integers(1, 70), seed=st.integers(0, 1000), share=st.floats(0.01, 1))
def test_sets_come_back_as_they_were_kept(rows: int, columns: int, seed: int, share: float) -> None:
    chosen = sets.largest(normal(rows, columns, seed=seed), count_of(share, columns))
    assert torch.equal(sets.unpack(sets.pack(chosen), columns), chosen)
    for packed in (True, False):
        kept = sets.kept(chosen, packed)
        assert torch.equal(sets.chosen_of(kept, columns), chosen)
        found, counts = sets.listed(kept, columns)
        assert counts is None
        assert (found.diff(dim=-1) > 0).all()


@SOME
@given(seed=st.integers(0, 1000), share=st.floats(0.05, 0.99), multiple=st.integers(1, 5))
def test_coverage_takes_the_fewest_columns(seed: int, share: float, multiple: int) -> None:
    scores = normal(3, 30, seed=seed).exp()
    chosen = sets.covering(scores, share, multiple)
    mass = (scores * chosen).sum(-1) / scores.sum(-1)
    assert (mass >= share - 1e-6).all()
    for row, own in zip(scores, chosen, strict=True):
        assert int(own.sum()) % multiple == 0 or bool(own.all())
        fewer = row.sort(descending=True).values[: int(own.sum()) - multiple]
        assert float(fewer.sum() / row.sum()) < share + 1e-6
        assert float(row[own].min()) >= float(row[~own].max() if not own.all() else 0)


@pytest.mark.parametrize(
    ("columns", "share", "multiple", "width"),
    [
        (4352, 0.165, 112, 672),
        (4608, 0.165, 112, 784),
        (4608, 0.15, 64, 704),
        (119056, 0.05, 128, 6016),
        (9, 0.01, 4, 4),
    ],
)
def test_widths_are_the_published_ones(columns: int, share: float, multiple: int, width: int) -> None:
    assert int(sets.width_of(columns, share, multiple)) == width


def test_taking_a_part_from_a_whole_is_the_inverse_of_composing() -> None:
    parts = [(normal(2, 3, 9, 4, seed=i).double(), normal(2, 3, 9, seed=i + 5).double()) for i in (0, 1)]
    whole = compose(*parts)
    out, lse = without(whole, parts[1])
    torch.testing.assert_close(out, parts[0][0])
    torch.testing.assert_close(lse, parts[0][1])
    nothing = without(whole, whole)
    assert not nothing[0].any()
    assert (nothing[1] == -torch.inf).all()
    torch.testing.assert_close(compose(nothing, whole)[0], whole[0])
