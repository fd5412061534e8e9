"""Who takes part: plain PyTorch, ours at every scope, and (in ``peers``) the others.

A contender gets a model of its own that shares the weights of all the others.
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
    """A contender ready to sample.

    ``run()`` is one trajectory; ``context(branch)`` a call inside a step; ``before(step)`` is called before each step;
    ``decisions`` says which steps it computes in full.
    """

    denoiser: Callable[..., Any]
    decisions: str
    run: Callable[[], AbstractContextManager[Any]] = nullcontext
    context: Callable[[str], AbstractContextManager[Any]] = lambda branch: nullcontext()
    before: Callable[[int], None] = lambda step: None


@dataclass(frozen=True, slots=True)
class Contender:
    """A name, what kind of cache it is, and how it is made ready."""

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
    """HiCache, order 2, at ``scope``, on Inductor in ``mode``."""

    def prepare(model: nn.Module, scenario: Scenario) -> Prepared:
        policy = HiCache(interval=scenario.interval, warmup=scenario.warmup, scope=scope)
        compiled = hicache_compile(model, policy, mode=mode)
        return Prepared(
            compiled, scenario.decisions, lambda: compiled.trajectory(scenario.steps), compiled.cache_context
        )

    name = f"ours, {scope}" + (", CUDA graphs" if mode else "")
    return Contender(name, MODULE if scope == "module" else RESIDUAL, prepare)


def contexts_of(model: nn.Module) -> Callable[[str], AbstractContextManager[Any]]:
    """diffusers' own ``cache_context``, on the models that have it."""
    theirs = getattr(model, "cache_context", None)
    return theirs if theirs is not None else lambda branch: nullcontext()


@contextmanager
def resetting(model: nn.Module) -> Iterator[None]:
    """One trajectory of a model with diffusers' hooks."""
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
