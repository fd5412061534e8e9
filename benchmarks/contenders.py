"""The contenders: plain PyTorch, this library at every scope, and (in ``peers``) other libraries.

Each contender gets its own model; all models share their weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from hicache_compile import HiCache, hicache_compile
from hicache_compile.benchmarks.scenarios import Scenario

BASELINE, MODULE, RESIDUAL = "baseline", "module cache", "residual cache"


@dataclass(frozen=True, slots=True)
class Prepared:
    """A contender that is ready to sample.

    ``run()``: context of one trajectory; ``context(branch)``: context of one call in a step; ``before(step)``: called
    before each step; ``decisions``: the steps it computes in full.
    """

    denoiser: Callable[..., Any]
    decisions: str
    run: Callable[[], AbstractContextManager[Any]] = nullcontext
    context: Callable[[str], AbstractContextManager[Any]] = lambda branch: nullcontext()
    before: Callable[[int], None] = lambda step: None


@dataclass(frozen=True, slots=True)
class Contender:
    """A name, the kind of cache, and the function that prepares it."""

    name: str
    kind: str
    prepare: Callable[[nn.Module, Scenario], Prepared]


def eager(model: nn.Module, scenario: Scenario) -> Prepared:
    return Prepared(model, "F" * scenario.steps)


def plain(model: nn.Module, scenario: Scenario) -> Prepared:
    return Prepared(torch.compile(model), "F" * scenario.steps)


def regional(model: nn.Module, scenario: Scenario) -> Prepared:
    model.compile_repeated_blocks()  # type: ignore[operator]  # of diffusers' models
    return Prepared(model, "F" * scenario.steps)


def ours(scope: str, mode: str | None = None) -> Contender:
    """HiCache, order 2, at ``scope``, with Inductor in ``mode``."""

    def prepare(model: nn.Module, scenario: Scenario) -> Prepared:
        policy = HiCache(interval=scenario.interval, warmup=scenario.warmup, scope=scope)
        compiled = hicache_compile(model, policy, mode=mode)
        return Prepared(
            compiled, scenario.decisions, lambda: compiled.trajectory(scenario.steps), compiled.cache_context
        )

    name = f"ours, {scope}" + (", CUDA graphs" if mode else "")
    return Contender(name, MODULE if scope == "module" else RESIDUAL, prepare)


def contexts_of(model: nn.Module) -> Callable[[str], AbstractContextManager[Any]]:
    """The ``cache_context`` of a diffusers model, or no context if it has none."""
    theirs = getattr(model, "cache_context", None)
    return theirs if theirs is not None else lambda branch: nullcontext()


@contextmanager
def resetting(model: nn.Module) -> Iterator[None]:
    """The context of one trajectory of a model with diffusers hooks; resets them at its end."""
    with ExitStack() as stack:
        reset = getattr(model, "_reset_stateful_cache", None)
        if reset is not None:
            stack.callback(reset)
        yield


BASELINES = (
    Contender("eager", BASELINE, eager),
    Contender("torch.compile", BASELINE, plain),
    Contender("regional compile", BASELINE, regional),
)
WITH_GRAPHS = tuple(ours(scope, "reduce-overhead") for scope in ("module", "stack"))
OURS = tuple(ours(scope) for scope in ("module", "block", "stack", "output"))
