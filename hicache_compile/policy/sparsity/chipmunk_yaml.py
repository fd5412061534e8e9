"""Read the YAML configuration of the original implementation as ``Chipmunk``.

Unknown keys are rejected, and so are settings without a counterpart here that would change the result. Settings that
only affect execution of the original (kernel padding, offloading, compression of indices) are accepted and ignored.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hicache_compile.errors import HiCacheError
from hicache_compile.policy.files import read_text

log = logging.getLogger(__name__)

# The original's default values of all keys, with nested names joined by dots.
DEFAULTS: dict[str, Any] = {
    "mlp.is_enabled": True,
    "mlp.top_keys": 0.3,
    "mlp.random_keys": 0.05,
    "mlp.full_step_every": 10,
    "mlp.block_mask_cache": 2,
    "mlp.first_n_dense_layers": 2,
    "mlp.bm": 128,
    "mlp.mbm": 128,
    "mlp.counts_multiple_of": 256,
    "mlp.is_fp8": False,
    "patchify.is_enabled": True,
    "patchify.chunk_size_1": 8,
    "patchify.chunk_size_2": 4,
    "attn.is_enabled": True,
    "attn.top_keys": 0.05,
    "attn.random_keys": 0.01,
    "attn.local_voxels": 0,
    "attn.local_1d_window": 0,
    "attn.first_n_dense_layers": 2,
    "attn.full_step_every": 10,
    "attn.full_step_schedule": None,
    "attn.recompute_mask": True,
    "attn.should_compress_indices": True,
    "attn.counts_multiple_of": 128,
    "attn.bm": 192,
    "attn.mbm": 192,
    "step_caching.is_enabled": False,
}
# Execution settings of the original; they do not change the result.
WITHOUT_EFFECT = (
    "num_model_invocations_per_inference_step",
    "steps",
    "world_size",
    "should_profile",
    "generation_index",
    "mlp.provider",
    "attn.provider",
    "attn.pad_qkv_before_kernel",
    "attn.should_keep_tail_dense",
    "offloading.",
    "step_caching.skip_step_schedule",
)


def read(path: Path) -> dict[str, Any]:
    """The fields of ``Chipmunk`` set by the file at ``path``.

    Raises:
        HiCacheError: there is no such file, it is not YAML, or a setting is not supported.
    """
    import yaml

    text = read_text("Chipmunk.from_yaml", path)
    try:
        given = _flat(yaml.safe_load(text) or {})
    except (ValueError, yaml.YAMLError, AttributeError, TypeError, RecursionError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise HiCacheError(f"Chipmunk.from_yaml({str(path)!r}): must be a YAML file of settings ({reason})") from None
    for key in given:
        if key not in DEFAULTS and not key.startswith(WITHOUT_EFFECT):
            raise HiCacheError(f"{path.name}: {key}: must be one of {', '.join((*DEFAULTS, *WITHOUT_EFFECT))}")
    return _fields(path.name, {**DEFAULTS, **given})


def _flat(nested: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    """``{"attn": {"top_keys": .1}}`` as ``{"attn.top_keys": .1}``. A YAML set is a dict of ``None`` and is not
    flattened."""
    found: dict[str, Any] = {}
    for key, value in nested.items():
        name = f"{prefix}{key}"
        inner = isinstance(value, Mapping) and name != "attn.full_step_schedule"
        found |= _flat(value, f"{name}.") if inner else {name: value}
    return found


def _fields(name: str, asked: Mapping[str, Any]) -> dict[str, Any]:
    attention, mlp = bool(asked["attn.is_enabled"]), bool(asked["mlp.is_enabled"])
    for key in ("first_n_dense_layers", "full_step_every"):
        if attention and mlp and asked[f"attn.{key}"] != asked[f"mlp.{key}"]:
            raise HiCacheError(
                f"{name}: attn.{key} = {asked[f'attn.{key}']}, mlp.{key} = {asked[f'mlp.{key}']}: must be the same"
            )
    if asked["mlp.is_fp8"]:
        raise HiCacheError(f"{name}: mlp.is_fp8 = true: must be false; quantise the model itself")
    chunks = asked["patchify.chunk_size_1"], asked["patchify.chunk_size_2"]
    if asked["patchify.is_enabled"] and chunks != (8, 4):
        raise HiCacheError(f"{name}: patchify.chunk_size_1, chunk_size_2 = {chunks}: must be 8 and 4")
    if asked["step_caching.is_enabled"]:
        log.warning("%s: step_caching is ignored; pass the policy SCM(mask) to hicache_compile instead", name)
    kind = "attn" if attention else "mlp"
    masked = bool(asked["attn.should_compress_indices"])  # only then does the original use random and local keys
    schedule = asked["attn.full_step_schedule"] if attention else None
    voxels = int(asked["attn.local_voxels"]) if masked else 0
    return {
        "top_keys": asked["attn.top_keys"] if attention else None,
        "mlp_keys": asked["mlp.top_keys"] if mlp else None,
        "full_every": asked[f"{kind}.full_step_every"],
        "max_age": asked[f"{kind}.full_step_every"],
        "full_steps": None if schedule is None else tuple(sorted(schedule)),
        "first_dense": asked[f"{kind}.first_n_dense_layers"],
        "group": asked["attn.mbm"],
        "mlp_block": asked["mlp.mbm"],
        "reselect": bool(asked["attn.recompute_mask"]),
        "mlp_select_every": asked["mlp.block_mask_cache"],
        "multiple": asked["attn.counts_multiple_of"],
        "mlp_multiple": asked["mlp.counts_multiple_of"],
        "random_keys": asked["attn.random_keys"] if masked and attention else 0.0,
        "mlp_random": asked["mlp.random_keys"] if mlp else 0.0,
        "denominator": "own",
        "order": _order(asked, masked),
        "window": voxels // 2,
        "band": float(asked["attn.local_1d_window"]) if masked else 0.0,
    }


def _order(asked: Mapping[str, Any], masked: bool) -> str | None:
    """The token order: the original orders images if ``patchify`` is on; its video models, which compress indices, use
    voxels."""
    if masked and asked["attn.is_enabled"]:
        return "voxels"
    return "patches" if asked["patchify.is_enabled"] else None
