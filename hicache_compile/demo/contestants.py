"""Who samples in the demo: the model uncached, this library under several policies, and a peer."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from importlib.resources import files
from typing import Protocol

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from hicache_compile.demo.emoji import STEPS
from hicache_compile.demo.emoji.drawing import Drawing, Drawn
from hicache_compile.frontend.compile import hicache_compile
from hicache_compile.frontend.denoiser import CompiledDenoiser
from hicache_compile.inspection.report import Report
from hicache_compile.policy.json_codec import as_policy
from hicache_compile.policy.policy import Policy
from hicache_compile.policy.presets import FORA, HiCache, TaylorSeer, Uncached
from hicache_compile.policy.sparsity.chipmunk import Chipmunk
from hicache_compile.runtime.runs import Run


class Contestant(Protocol):
    """``name`` and ``group`` (a heading) of a row; what it counted is of its last picture."""

    name: str
    group: str

    def by_steps(self, drawing: Drawing) -> Iterator[Drawn]:
        """Draw, a step at a time."""

    @property
    def decisions(self) -> str:
        """A letter a step, as ``Report.decisions`` has them."""

    @property
    def flops_speedup(self) -> float:
        """FLOPs of full steps over those made."""

    @property
    def report(self) -> Report | None:
        """Of what this library compiled."""


class Plain:
    """The model under plain ``torch.compile``: compiled by this library, and switched off."""

    name, group = "uncached", ""

    def __init__(self, drawing: Drawing, backend: str) -> None:
        self._denoiser = hicache_compile(drawing.model, Uncached(), backend=backend)

    def by_steps(self, drawing: Drawing) -> Iterator[Drawn]:
        with self._denoiser.disabled(), self._denoiser.trajectory(drawing.num_steps):
            yield from drawing.by_steps(self._denoiser)

    @property
    def report(self) -> Report:
        return self._denoiser.report()

    @property
    def decisions(self) -> str:
        return self.report.decisions()

    @property
    def flops_speedup(self) -> float:
        return self.report.flops_speedup


class Ours:
    """Runs of ``denoiser`` under ``policy``. All policies have one denoiser, which is captured once."""

    def __init__(self, denoiser: CompiledDenoiser, name: str, policy: Policy, group: str) -> None:
        self.name, self.group = name, group
        self._denoiser, self._policy = denoiser, policy
        self._run: Run | None = None

    def by_steps(self, drawing: Drawing) -> Iterator[Drawn]:
        self._run = self._denoiser.run(drawing.num_steps, self._policy)
        yield from drawing.by_steps(self._denoiser, self._run)

    @property
    def report(self) -> Report:
        with self._run or nullcontext():
            return self._denoiser.report()

    @property
    def decisions(self) -> str:
        return self.report.decisions()

    @property
    def flops_speedup(self) -> float:
        return self.report.flops_speedup


class FirstBlockCache:
    """diffusers' own FirstBlockCache: hooks decide in each step by the first block's residual. ``torch.compile`` has
    several graphs of it, which here is as fast as one of each block and takes half as long to compile."""

    name = "FirstBlockCache"
    group = "diffusers' hooks"
    report = None

    def __init__(self, drawing: Drawing, backend: str, threshold: float = 0.2) -> None:
        from diffusers import FirstBlockCacheConfig
        from diffusers.hooks.first_block_cache import FBCHeadBlockHook

        self._model = copy.deepcopy(drawing.model)
        self._model.enable_cache(FirstBlockCacheConfig(threshold))  # type: ignore[operator]  # of diffusers' models
        hooks = [hook for module in self._model.modules() for hook in _hooks(module)]
        self._head = next(hook for hook in hooks if isinstance(hook, FBCHeadBlockHook))
        self._flops = self._count(drawing)
        self._computed: list[bool] = []
        decide = self._head._should_compute_remaining_blocks

        def noted(residual: torch.Tensor) -> bool:
            self._computed.append(decide(residual))
            return self._computed[-1]

        self._head._should_compute_remaining_blocks = torch.compiler.disable(noted)  # as what it stands for is
        self._branches = len(drawing.branches)
        if backend != "eager":
            self._model.compile(backend=backend)

    def _count(self, drawing: Drawing) -> tuple[int, int]:
        """FLOPs of a call that computes all blocks, and of one that skips them."""
        threshold, counted = self._head.threshold, []
        for self._head.threshold in (-1.0, float("inf")):
            with torch.no_grad(), FlopCounterMode(display=False) as counter:
                drawing.call(self._model, drawing.noise, torch.tensor(1.0), "cond")
            counted.append(counter.get_total_flops())
        self._head.threshold = threshold
        self._model._reset_stateful_cache()  # type: ignore[operator]
        return counted[0], counted[1]

    def by_steps(self, drawing: Drawing) -> Iterator[Drawn]:
        self._model._reset_stateful_cache()  # type: ignore[operator]  # what its pipelines do after a run
        self._computed.clear()
        yield from drawing.by_steps(self._model)

    @property
    def decisions(self) -> str:
        steps = range(0, len(self._computed), self._branches)
        return "".join("F" if any(self._computed[step : step + self._branches]) else "." for step in steps)

    @property
    def flops_speedup(self) -> float:
        full, skipped = self._flops
        return full * len(self._computed) / sum(full if computed else skipped for computed in self._computed)


def _hooks(module: nn.Module) -> Sequence[object]:
    registry = getattr(module, "_diffusers_hook", None)
    return tuple(registry.hooks.values()) if registry is not None else ()


POLICIES: tuple[tuple[str, Policy], ...] = tuple(
    (name, policy)
    for scope in ("module", "stack")
    for name, policy in (
        ("HiCache N=3", HiCache(interval=3, scope=scope)),
        ("HiCache N=4", HiCache(interval=4, scope=scope)),
        ("HiCache N=5", HiCache(interval=5, scope=scope)),
        ("HiCache N=6", HiCache(interval=6, scope=scope)),
        ("TaylorSeer N=4", TaylorSeer(interval=4, scope=scope)),
        ("FORA N=4", FORA(interval=4, warmup=3, scope=scope)),
    )
)
BUDGETS = ("HiCache N=3", "HiCache N=4", "HiCache N=6")
SPARSITY = Chipmunk(group=16, mlp_block=16)  # for the 64 + 16 tokens of the model
SPARSE: tuple[tuple[str, Policy], ...] = (
    ("Chipmunk", Uncached()),
    ("+ HiCache N=2", HiCache(interval=2)),
    ("+ HiCache N=3", HiCache(interval=3)),
    ("+ HiCache N=5", HiCache(interval=5)),
)


def tuned() -> Policy:
    """What ``hicache tune --fit calibrated --computed 9`` made of eight captions, for ``STEPS`` steps."""
    return as_policy(json.loads(files("hicache_compile.demo.emoji").joinpath("tuned.json").read_text()))


def contestants(drawing: Drawing, backend: str, everything: bool = False, sparse: bool = False) -> list[Contestant]:
    """The model uncached; three budgets and a peer, or ``everything``: all policies in both scopes; a policy fitted by
    ``hicache tune``, where it is for as many steps; and policies with ``sparse`` steps."""
    few = [(name, policy) for name, policy in POLICIES if policy.scope == "stack" and name in BUDGETS]
    dense = hicache_compile(drawing.model, Uncached(), backend=backend)
    found: list[Contestant] = [Plain(drawing, backend)]
    found += [Ours(dense, name, policy, _scope(policy)) for name, policy in (POLICIES if everything else few)]
    if drawing.num_steps == STEPS:
        found.append(Ours(dense, "tuned", tuned(), _scope(tuned())))
    if not everything:
        found.append(FirstBlockCache(drawing, backend))
    if sparse:
        sparser = hicache_compile(drawing.model, Uncached(), backend=backend, sparsity=SPARSITY)
        found += [Ours(sparser, name, policy, "sparse steps") for name, policy in SPARSE]
    return found


def _scope(policy: Policy) -> str:
    return f"{policy.scope} scope"
