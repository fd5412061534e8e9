"""What ``Chipmunk`` allows, the original's YAML, when steps are dense, and forecasts across a dense step."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hicache_compile import Chipmunk, HiCacheError
from hicache_compile.policy.sparsity.chipmunk import as_sparsity
from hicache_compile.policy.sparsity.phases import Phase
from hicache_compile.runtime.deciders.bridging import bridged
from hicache_compile.runtime.deciders.computed_steps import ComputedSteps
from hicache_compile.runtime.deciders.sparse_phases import Ageing

FLUX = """
num_model_invocations_per_inference_step: 1
steps: 50
patchify: {is_enabled: true, chunk_size_1: 8, chunk_size_2: 4}
mlp: {is_enabled: true, top_keys: 0.3, random_keys: 0.05, full_step_every: 10, block_mask_cache: 2,
      first_n_dense_layers: 2, counts_multiple_of: 256, bm: 128, mbm: 128, provider: triton}
attn: {is_enabled: true, top_keys: 0.15, random_keys: 0.01, full_step_every: 10, full_step_schedule: null,
       recompute_mask: false, should_compress_indices: false, counts_multiple_of: 64, mbm: 192, bm: 192}
offloading: {global_disable_offloading: true, attn: {out_cache: false}}
"""
HUNYUAN = """
mlp: {is_enabled: false}
attn: {top_keys: 0.05, local_voxels: 2, local_1d_window: 0.05, full_step_schedule: !!set {0, 1, 10, 40}}
step_caching: {is_enabled: true, skip_step_schedule: !!set {7, 11}}
"""


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("top_keys", 0, r"in \(0, 1\]"),
        ("top_keys", 1.5, r"in \(0, 1\]"),
        ("mlp_keys", "many", r"in \(0, 1\]"),
        ("coverage", -1, r"in \(0, 1\]"),
        ("full_every", 0, "an integer >= 1"),
        ("max_age", 0, "an integer >= 1"),
        ("full_steps", 3, "whole numbers"),
        ("first_dense", -1, "an integer >= 0"),
        ("group", 1.5, "an integer >= 1"),
        ("reselect", 1, "true or false"),
        ("denominator", "none", "own, shared"),
        ("anchors", "none", "all, dense, bridged"),
        ("order", "rows", "patches, voxels"),
        ("grid", (4,), r"\(H, W\) or \(T, H, W\)"),
        ("random_keys", 2, r"in \(0, 1\]"),
        ("provider", "cuda", "auto, portable, triton, chipmunk"),
        ("provider", "chipmunk", "installed"),
    ],
)
def test_a_bad_field_is_named(field: str, value: Any, allowed: str) -> None:
    with pytest.raises(HiCacheError, match=f"Chipmunk.{field} = .*{allowed}"):
        Chipmunk(**{field: value})


def test_something_has_to_be_sparse_and_a_grid_has_to_fit_its_order() -> None:
    with pytest.raises(HiCacheError, match="top_keys, mlp_keys"):
        Chipmunk(top_keys=None, mlp_keys=None)
    with pytest.raises(HiCacheError, match=r"Chipmunk.grid = \(4, 4\): must be \(T, H, W\)"):
        Chipmunk(order="voxels", grid=(4, 4))


def test_plain_data_goes_both_ways() -> None:
    settings = Chipmunk(top_keys=0.2, order="patches", grid=(8, 8), full_steps=(0, 1, 9))
    assert Chipmunk.from_dict(settings.to_dict()) == settings
    assert as_sparsity({"top_keys": 0.2}) == as_sparsity('{"top_keys": 0.2}') == Chipmunk(top_keys=0.2)
    assert as_sparsity("Chipmunk") == Chipmunk()
    for wrong, said in (
        ({"keys": 1}, "Chipmunk.keys"),
        (3, "must be None, a Chipmunk"),
        ("{no", "must be JSON"),
        ("no.yml", "must be a readable text file"),
    ):
        with pytest.raises(HiCacheError, match=said):
            as_sparsity(wrong)


def test_the_yaml_of_the_original(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    flux, video = tmp_path / "flux.yml", tmp_path / "hunyuan.yml"
    flux.write_text(FLUX)
    video.write_text(HUNYUAN)
    found = Chipmunk.from_yaml(flux, grid=(64, 64))
    assert found == Chipmunk(
        top_keys=0.15,
        mlp_keys=0.3,
        full_every=10,
        max_age=10,
        group=192,
        mlp_block=128,
        multiple=64,
        mlp_multiple=256,
        mlp_random=0.05,
        mlp_select_every=2,
        denominator="own",
        order="patches",
        grid=(64, 64),
    )
    with caplog.at_level(logging.WARNING):
        found = Chipmunk.from_yaml(video)
    assert "SCM(mask)" in caplog.text
    assert (found.mlp_keys, found.full_steps, found.order) == (None, (0, 1, 10, 40), "voxels")
    assert (found.window, found.band, found.random_keys, found.reselect) == (1, 0.05, 0.01, True)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("attn: {top_key: 0.1}", "attn.top_key: must be one of"),
        ("mlp: {is_fp8: true}", "is_fp8"),
        ("patchify: {chunk_size_1: 4}", "chunk_size"),
        ("attn: {full_step_every: 5}", "full_step_every = 5, mlp"),
        ("attn: {top_keys: 7}", "Chipmunk.top_keys = 7"),
        ("attn: [1", "must be a YAML file"),
        ("- 1", "must be a YAML file"),
    ],
)
def test_a_yaml_that_cannot_be_followed_is_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "a.yml").write_text(text)
    with pytest.raises(HiCacheError, match=said):
        Chipmunk.from_yaml(tmp_path / "a.yml")


def phases(chipmunk: Chipmunk, steps: Any) -> str:
    ageing = Ageing(chipmunk)
    return "".join({"select": "S", "dense": "D", "refresh": "R"}.get(ageing.compute(s), "s") for s in steps)


@pytest.mark.parametrize(
    ("settings", "steps", "expected"),
    [
        ({"full_every": 4}, range(12), "DSsssRsssRss"),
        ({"full_every": 4, "reselect": True}, range(12), "DSsssSsssSss"),
        ({"full_every": 1}, range(4), "DSRR"),
        ({"max_age": 20}, [0, 1, 2, 7, 12, 17, 22, 27, 32, 37, 42, 47], "DSssssRsssRs"),
        ({}, [0, 1, 2, 7, 12, 17, 22, 27, 32, 37, 42, 47], "DSssRsRsRsRs"),
        ({"full_steps": (0, 1, 10, 40)}, [0, 1, 2, 7, 12, 17, 22, 27, 32, 37, 42, 47], "DSssRsssssRs"),
        ({"full_steps": (0, 1, 10, 40)}, range(50), "DS" + "s" * 8 + "R" + "s" * 29 + "R" + "s" * 9),
    ],
)
def test_age_is_looked_at_in_computed_steps(settings: dict[str, Any], steps: Any, expected: str) -> None:
    assert phases(Chipmunk(**settings), steps) == expected


def test_phases_go_on_after_a_restore() -> None:
    chipmunk = replace(Chipmunk(full_every=3), mlp_select_every=2)
    whole = [Ageing(chipmunk)]
    expected = [whole[0].compute(step) for step in range(12)]
    for cut in range(12):
        first, second = Ageing(chipmunk), Ageing(chipmunk)
        found = [first.compute(step) for step in range(cut)]
        second.load_state_dict(first.state_dict())
        assert [*found, *(second.compute(step) for step in range(cut, 12))] == expected


def test_no_difference_over_a_refresh_is_carried_on() -> None:
    """Anchors at 20 (dense), 15 and 10 (sparse, off by 1): a line forecast from them keeps the slope of the two."""
    weights = [1.6, -0.8, 0.2]
    values = np.array([2.0 * 20, 2.0 * 15 + 1, 2.0 * 10 + 1])
    found = bridged(weights, [20, 15, 10], {20})
    assert sum(found) == pytest.approx(sum(weights))
    change = np.dot(found, values) - values[0]
    # c_0 = .6 and c_1 = -.2 take the slope 2 of the newer anchors, 5 steps each
    assert change == pytest.approx(0.6 * 10 - 0.2 * 10)
    assert bridged(weights, [20, 15, 10], {5}) == weights
    assert bridged([2.0, -1.0], [20, 15], {20}) == pytest.approx([1.0, 0.0])


def test_without_sparsity_anchors_are_the_computed_steps() -> None:
    anchors = ComputedSteps()
    assert [anchors.compute(step) for step in (0, 3)] == [Phase.DENSE, Phase.DENSE]
    assert anchors.steps == [0, 3]
