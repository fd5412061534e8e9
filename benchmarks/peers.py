"""The caches of other libraries, each configured to compute the same steps as ours if that can be set.

Each is compiled as its documentation recommends: the whole model, and its repeated blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from hicache_compile.benchmarks.contenders import MODULE, RESIDUAL, Contender, Prepared, contexts_of, resetting
from hicache_compile.benchmarks.scenarios import Scenario

Compile = Callable[[nn.Module], Callable[..., Any]]


def _full(model: nn.Module) -> Callable[..., Any]:
    return torch.compile(model)


def _regional(model: nn.Module) -> Callable[..., Any]:
    model.compile_repeated_blocks()  # type: ignore[operator]  # of diffusers' models
    return model


def _diffusers(
    name: str, kind: str, configure: Callable[[nn.Module, Scenario], Prepared], *ways: str
) -> list[Contender]:
    def prepare(compiling: Compile) -> Callable[[nn.Module, Scenario], Prepared]:
        def prepared(model: nn.Module, scenario: Scenario) -> Prepared:
            found = configure(model, scenario)
            return Prepared(
                compiling(model), found.decisions, lambda: resetting(model), contexts_of(model), found.before
            )

        return prepared

    compilers = {"full": _full, "regional": _regional}
    return [Contender(f"{name} + {way} compile", kind, prepare(compilers[way])) for way in ways]


def _taylorseer(lite: bool) -> Callable[[nn.Module, Scenario], Prepared]:
    def configure(model: nn.Module, scenario: Scenario) -> Prepared:
        from diffusers import TaylorSeerCacheConfig

        # Its rule: full while step < before, then if (step - before - 1) is a multiple of the interval.
        wanted = scenario.decisions.count("F")
        masks = {before: _taylorseer_mask(before, scenario) for before in range(1, 8)}
        before = min(masks, key=lambda b: abs(masks[b].count("F") - wanted))
        config = TaylorSeerCacheConfig(
            cache_interval=scenario.interval, disable_cache_before_step=before, max_order=2, use_lite_mode=lite
        )
        model.enable_cache(config)  # type: ignore[operator]  # of diffusers' models
        return Prepared(model, masks[before])

    return configure


def _taylorseer_mask(before: int, scenario: Scenario) -> str:
    return "".join(
        "F" if step < before or (step - before - 1) % scenario.interval == 0 else "." for step in range(scenario.steps)
    )


def _first_block(model: nn.Module, scenario: Scenario) -> Prepared:
    from diffusers import FirstBlockCacheConfig
    from diffusers.hooks.first_block_cache import FBCHeadBlockHook

    model.enable_cache(FirstBlockCacheConfig(threshold=0.0))  # type: ignore[operator]
    heads = [
        hook
        for module in model.modules()
        for hook in getattr(getattr(module, "_diffusers_hook", None), "hooks", {}).values()
        if isinstance(hook, FBCHeadBlockHook)
    ]

    def decide(step: int) -> None:
        for head in heads:  # a threshold that always computes, or one that always skips
            head.threshold = -1.0 if scenario.decisions[step] == "F" else float("inf")

    return Prepared(model, scenario.decisions, before=decide)


def _magcache(model: nn.Module, scenario: Scenario) -> Prepared:
    from diffusers import MagCacheConfig

    config = MagCacheConfig(
        threshold=1e9,
        max_skip_steps=scenario.interval - 1,
        retention_ratio=scenario.warmup / scenario.steps,
        num_inference_steps=scenario.steps,
        mag_ratios=[1.0] * scenario.steps,
    )
    model.enable_cache(config)  # type: ignore[operator]
    return Prepared(model, scenario.decisions)


def _cache_dit(blocks: int, taylor: bool, compiling: Compile) -> Callable[[nn.Module, Scenario], Prepared]:
    def prepare(model: nn.Module, scenario: Scenario) -> Prepared:
        import cache_dit

        def config() -> Any:
            return cache_dit.DBCacheConfig(
                num_inference_steps=scenario.steps,
                Fn_compute_blocks=blocks,
                Bn_compute_blocks=0,
                max_warmup_steps=scenario.warmup,
                residual_diff_threshold=1e9,
                steps_computation_mask=[int(letter == "F") for letter in scenario.decisions],
                steps_computation_policy="static",
                enable_separate_cfg=len(scenario.shape.branches()) > 1,
            )

        calibrator = cache_dit.TaylorSeerCalibratorConfig(taylorseer_order=1) if taylor else None
        cache_dit.enable_cache(model, cache_config=config(), calibrator_config=calibrator)

        @contextmanager
        def run() -> Iterator[None]:
            cache_dit.refresh_context(model, cache_config=config())
            yield

        return Prepared(compiling(model), scenario.decisions, run, contexts_of(model))

    return prepare


PEERS = (
    *_diffusers("diffusers TaylorSeer", MODULE, _taylorseer(lite=False), "full", "regional"),
    *_diffusers("diffusers TaylorSeer lite", RESIDUAL, _taylorseer(lite=True), "full", "regional"),
    *_diffusers("diffusers FirstBlockCache", RESIDUAL, _first_block, "full", "regional"),
    *_diffusers("diffusers MagCache", RESIDUAL, _magcache, "full"),
    Contender("cache-dit F1B0 + TaylorSeer + full compile", RESIDUAL, _cache_dit(1, True, _full)),
    Contender("cache-dit F1B0 + TaylorSeer + regional compile", RESIDUAL, _cache_dit(1, True, _regional)),
    Contender("cache-dit F1B0 + regional compile", RESIDUAL, _cache_dit(1, False, _regional)),
    Contender("cache-dit F8B0 + TaylorSeer + regional compile", RESIDUAL, _cache_dit(8, True, _regional)),
)
