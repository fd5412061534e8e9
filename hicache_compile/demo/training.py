"""A training loop that can be killed at any time: taken up again it reaches the same weights as one that was not.

What a step draws at random depends on its number alone, so a checkpoint holds no state of a generator.
"""

from __future__ import annotations

import copy
import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import torch
from torch import nn

from hicache_compile.policy.files import write_whole
from hicache_compile.policy.progress import Interrupted, progress, stopping_between_steps

Module = TypeVar("Module", bound=nn.Module)
LossOf = Callable[[Module, torch.Generator], torch.Tensor]
EVERY = 100  # steps, of whose loss the mean is shown


@dataclass(frozen=True, slots=True)
class Plan:
    """How long and how fast: AdamW at ``rate``, which rises over ``warmup`` steps and falls to 0 over the last ones.

    These are a fraction ``fall`` of ``steps``; before them the rate is constant, so a longer plan continues one that
    was stopped before its fall. ``average`` is the decay of the moving average of the weights. ``save_every``: seconds.
    """

    steps: int
    rate: float
    warmup: int = 200
    fall: float = 0.2
    average: float = 0.999
    decay: float = 0.01
    seed: int = 0
    save_every: float = 180.0

    def rate_at(self, step: int) -> float:
        """The learning rate of ``step``, counted from 0."""
        left = (self.steps - step) / max(1.0, self.fall * self.steps)
        return self.rate * min(1.0, (step + 1) / self.warmup, left)


class Training(Generic[Module]):
    """A ``model``, the moving ``average`` of its weights, and an optimizer, at some ``step`` of a plan."""

    def __init__(self, model: Module, plan: Plan) -> None:
        self.model = model
        self.average = copy.deepcopy(model).requires_grad_(False)
        self.plan = plan
        self.step = 0
        self.optimizer = torch.optim.AdamW(
            model.parameters(), lr=plan.rate, weight_decay=plan.decay, betas=(0.9, 0.99), foreach=True
        )

    def advance(self, loss_of: LossOf[Module]) -> torch.Tensor:
        """Make one step; its loss, a scalar. ``loss_of(model, generator)`` draws all that is random from it."""
        generator = torch.Generator().manual_seed(self.plan.seed * 2**32 + self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = self.plan.rate_at(self.step)
        loss = loss_of(self.model, generator)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        decay = min(self.plan.average, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.parameters()), list(self.model.parameters()), 1 - decay)
        self.step += 1
        return loss.detach()

    def save(self, path: Path) -> None:
        """Write all of it to ``path``, so that a kill leaves the file before or the file after."""
        state = {
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
        }
        write_whole(path, functools.partial(torch.save, state))

    def load(self, path: Path) -> None:
        """Go on from what ``save`` wrote."""
        state = torch.load(path, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]


def train(model: Module, loss_of: LossOf[Module], plan: Plan, checkpoint: Path) -> Module:
    """Train ``model`` by ``plan``, from ``checkpoint`` if there is one; the moving average of its weights."""
    training = Training(model, plan)
    if checkpoint.exists():
        training.load(checkpoint)
    losses: list[torch.Tensor] = []
    saved = time.monotonic()
    steps = progress(total=plan.steps, initial=training.step, what=checkpoint.stem, unit="step")
    with steps as bar, stopping_between_steps() as asked:
        while training.step < plan.steps and not asked.is_set():
            losses.append(training.advance(loss_of))
            bar.update()
            if training.step % EVERY == 0:
                bar.set_postfix(loss=f"{torch.stack(losses).mean():.4f}", refresh=False)
                losses = []
            if time.monotonic() - saved > plan.save_every:
                training.save(checkpoint)
                saved = time.monotonic()
    training.save(checkpoint)
    if asked.is_set():
        raise Interrupted(f"step {training.step} is in {checkpoint}; the same command goes on")
    return training.average.eval()


def load_average(model: Module, checkpoint: Path) -> Module:
    """``model`` with the moving average of the weights in ``checkpoint``, whether or not its training has ended."""
    model.load_state_dict(torch.load(checkpoint, weights_only=True)["average"])
    return model.requires_grad_(False).eval()
