"""Presets without parameters, by any spelling of their name, take what is published for the model."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch

from hicache_compile import (
    SCM,
    TEACACHE_MODELS,
    HiCacheError,
    LeMiCa,
    MagCache,
    Policy,
    StepMask,
    TeaCache,
    hicache_compile,
    inspect,
)
from hicache_compile.policy.json_codec import as_policy, from_dict, to_dict
from hicache_compile.policy.presets import PRESETS
from hicache_compile.policy.published import MODELS, PublishedModel
from hicache_compile.policy.schedules.lemica_lists import LISTS
from hicache_compile.policy.schedules.magcache_tables import MAGCACHE_TABLES
from tests.support.models import ToyDiT, flux_inputs, random_flux


class Named:
    """Something of a class and a configuration."""


def model(cls: str, **config: Any) -> PublishedModel:
    made = type(cls, (Named,), {})()
    made.config = config
    return PublishedModel.of(made)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_has_defaults_and_any_spelling(preset: str) -> None:
    policy = as_policy({"preset": preset})
    assert policy == PRESETS[preset]()
    for spelling in (preset.lower(), preset.upper(), "-".join(preset), preset.lower() + "_"):
        assert as_policy(spelling) == policy
    assert from_dict(to_dict(policy)) == policy


@pytest.mark.parametrize(
    ("wrong", "meant"), [("hicash", "HiCache"), ("teacahe", "TeaCache"), ("taylor_seer2", "TaylorSeer")]
)
def test_a_misspelt_name_is_answered_with_the_nearest(wrong: str, meant: str) -> None:
    for given in (wrong, {"preset": wrong}):
        with pytest.raises(HiCacheError, match=rf"did you mean {meant}\?"):
            as_policy(given)


def test_every_name_of_a_model_is_in_a_table() -> None:
    names = {name for rows in MODELS.values() for names, _ in rows for name in names}
    assert names <= {*TEACACHE_MODELS, *MAGCACHE_TABLES, *LISTS}
    assert {*MAGCACHE_TABLES, *LISTS} - names <= {"flux-kontext"}  # has the configuration of FLUX.1-dev


@pytest.mark.parametrize(
    ("known", "tea"),
    [
        (model("FluxTransformer2DModel"), "flux"),
        (model("WanTransformer3DModel", num_attention_heads=12, in_channels=16), "wan2.1-t2v-1.3b"),
        (model("WanTransformer3DModel", num_attention_heads=40, in_channels=36), "wan2.1-i2v-480p"),
        (model("CogVideoXTransformer3DModel", num_layers=42, patch_size_t=2), "cogvideox1.5-5b"),
        (model("HunyuanVideo15Transformer3DModel", task_type="t2v", target_size=960), "hunyuan-video-1.5-t2v-720p"),
    ],
)
def test_teacache_takes_the_models_fit_signal_and_forced_steps(known: PublishedModel, tea: str) -> None:
    assert TeaCache().for_model(known) == TeaCache(model=tea)
    assert TeaCache(0.3, warmup=4).for_model(known) == TeaCache(0.3, tea, warmup=4)
    assert not known.missing


def test_what_is_given_is_not_replaced() -> None:
    known = model("WanTransformer3DModel", num_attention_heads=40, in_channels=16)
    for given in (
        TeaCache(0.3, "mochi"),
        TeaCache(0.3, coefficients=(2, 0)),
        MagCache(table="flux"),
        LeMiCa(20, "flux"),
    ):
        assert given.for_model(known) is given
    assert (
        TeaCache(coefficients=(2, 0)).for_model(known).guards[0].threshold
        == TEACACHE_MODELS["wan2.1-t2v-14b"].threshold
    )


def test_lists_and_tables_of_the_model() -> None:
    wan = model("WanTransformer3DModel", num_attention_heads=12, in_channels=16)
    assert LeMiCa(17).for_model(wan) == LeMiCa(17, "wan2.1-t2v-1.3b")
    assert LeMiCa().for_model(wan) == LeMiCa(20, "wan2.1-t2v-1.3b")
    assert MagCache().for_model(model("QwenImageTransformer2DModel")) == MagCache(table="qwen-image")
    assert MagCache().for_model(model("HunyuanVideoTransformer3DModel")) == MagCache(table="hunyuan-video")
    with pytest.raises(HiCacheError, match=r"LeMiCa.budget = 26: must be one of 25, 20, 17, 14"):
        LeMiCa(26).for_model(wan)


@pytest.mark.parametrize("policy", [TeaCache(), MagCache(), LeMiCa()], ids=["TeaCache", "MagCache", "LeMiCa"])
def test_one_warning_where_nothing_is_published(policy: Policy, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "hicache_compile"):
        compiled = hicache_compile(ToyDiT(), policy, backend="eager")
        compiled.policy = policy
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 1
    assert "no values are published for ToyDiT" in said[0]
    if isinstance(policy.schedule, StepMask):
        assert compiled.policy == LeMiCa(20, "flux")


def test_both_ways_in_take_the_models_values() -> None:
    flux = random_flux(1, 1)
    assert hicache_compile(flux, "tea-cache").policy == TeaCache(0.4, "flux")
    compiled = torch.compile(flux, backend="hicache", options={"policy": "teacache", "backend": "eager"})
    with torch.no_grad(), inspect(compiled).trajectory(3):
        compiled(**flux_inputs(), timestep=torch.full((2,), 0.5), return_dict=False)
    assert inspect(compiled).policy == TeaCache(0.4, "flux")


def test_masks_may_be_sequences() -> None:
    assert StepMask([1, 0, True, False]) == StepMask("1010")  # type: ignore[arg-type]  # what is tested
    assert SCM([1, 0, 0]) == SCM("100")
    assert SCM("MEDIUM") == SCM()
    with pytest.raises(HiCacheError, match="must be a string"):
        StepMask([1, 2])  # type: ignore[arg-type]  # what is tested


def test_wrappers_are_looked_through_and_a_child_of_that_name_is_none() -> None:
    flux = random_flux(1, 1)
    assert PublishedModel.of(torch.compile(torch.nn.DataParallel(flux))).names == ("flux",)
    own = torch.nn.ModuleDict({"module": flux, "head": torch.nn.Linear(2, 2)})
    assert PublishedModel.of(own) == PublishedModel("ModuleDict", ())
