"""Chipmunk the slow way: plain float64 formulas for each operator, and a FLUX that follows them without a compiler."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

Phase = str  # D dense, S select, R refresh, s sparse


def softmax_scores(query: Tensor, key: Tensor, scale: float) -> Tensor:
    return torch.softmax(query.double() @ key.double().mT * scale, dim=-1)


def column_scores(query: Tensor, key: Tensor, group: int, scale: float) -> Tensor:
    """What each group of queries gives each key: sums of rows of the softmax."""
    rows = softmax_scores(query, key, scale)
    return torch.stack([part.sum(-2) for part in rows.split(group, dim=-2)], dim=-2)


def chosen_keys(scores: Tensor, count: int) -> Tensor:
    """The ``count`` keys with the largest scores, as a mask."""
    return torch.zeros_like(scores, dtype=torch.bool).scatter(-1, scores.topk(count, dim=-1).indices, True)


def masked_attention(
    query: Tensor, key: Tensor, value: Tensor, chosen: Tensor, group: int, scale: float
) -> tuple[Tensor, Tensor]:
    """Attention of each group of queries to its chosen keys only, and the log-sum-exp."""
    scores = query.double() @ key.double().mT * scale
    rows = chosen.repeat_interleave(group, dim=-2)[..., : query.shape[-2], :]
    scores = scores.masked_fill(~rows, -torch.inf)
    return torch.softmax(scores, dim=-1) @ value.double(), scores.logsumexp(-1)


class NaiveAttention:
    """One attention over the steps of a run."""

    def __init__(self, keys: float, group: int, shared: bool) -> None:
        self.keys, self.group, self.shared = keys, group, shared
        self.chosen = self.rest = self.other = torch.empty(0)

    def __call__(self, phase: Phase, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        scale = query.shape[-1] ** -0.5
        whole = (query.double() @ key.double().mT * scale).softmax(-1) @ value.double()
        if phase == "D":
            return whole
        if phase == "S":
            count = round(self.keys * key.shape[-2])
            self.chosen = chosen_keys(column_scores(query, key, self.group, scale), count)
        near, lse = masked_attention(query, key, value, self.chosen, self.group, scale)
        if phase in "SR":
            self.rest = whole - near
            self.numerator_of(query, key, value, scale)
            return whole
        if not self.shared:
            return self.rest + near
        mass = lse.exp().unsqueeze(-1)
        return (self.other[..., :-1] + mass * near) / (self.other[..., -1:] + mass)

    def numerator_of(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> None:
        """Numerator and denominator of what is not chosen."""
        weights = (query.double() @ key.double().mT * scale).exp()
        rows = self.chosen.repeat_interleave(self.group, dim=-2)[..., : query.shape[-2], :]
        weights = weights.masked_fill(rows, 0)
        self.other = torch.cat([weights @ value.double(), weights.sum(-1, keepdim=True)], dim=-1)


class NaiveUnits:
    """The hidden units of one MLP over the steps of a run: those that are not chosen stay as they were."""

    def __init__(self, share: float, block: int) -> None:
        self.share, self.block = share, block
        self.units = self.means = torch.empty(0)

    def __call__(self, phase: Phase, inner: Tensor, activation: Callable[[Tensor], Tensor]) -> Tensor:
        now = activation(inner)
        means = torch.stack([part.double().mean(1) for part in inner.split(self.block, dim=1)], dim=1)
        if phase == "D":
            return now
        if phase in "SR":
            self.units, self.means = now, means
            return now
        count = round(self.share * inner.shape[-1])
        chosen = chosen_keys((means - self.means).abs(), count)
        self.means = torch.where(chosen, means, self.means)
        rows = chosen.repeat_interleave(self.block, dim=1)[:, : inner.shape[1]]
        self.units = torch.where(rows, now, self.units)
        return self.units


class NaiveChipmunk(TorchFunctionMode):
    """While it is entered, the FLUX ``model`` runs sparsely, in the phase that is assigned to ``phase``."""

    def __init__(self, model: Any, *, keys: float | None, units: float | None, group: int, block: int, dense: int,
                 shared: bool) -> None:  # fmt: skip
        super().__init__()
        self.phase: Phase = "D"
        self.layer = 0
        self.dense = dense
        layers = len(model.transformer_blocks) + len(model.single_transformer_blocks)
        self.attentions = [NaiveAttention(keys, group, shared) for _ in range(layers)] if keys is not None else []
        self.model = model
        self.hooks = []
        blocks = [*model.transformer_blocks, *model.single_transformer_blocks]
        for number, one in enumerate(blocks):
            if units is None or number < dense:
                continue
            state = NaiveUnits(units, block)
            if hasattr(one, "act_mlp"):
                self.hooks.append(one.act_mlp.register_forward_hook(self._hook(state, one.act_mlp.forward)))
            else:
                gelu = one.ff.net[0]  # a linear and the activation
                hook = self._fused_hook(state, gelu)
                self.hooks.append(gelu.register_forward_hook(hook))

    def _hook(self, state: NaiveUnits, activation: Callable[[Tensor], Tensor]) -> Any:
        return lambda module, args, output: state(self.phase, args[0], activation)

    def _fused_hook(self, state: NaiveUnits, module: nn.Module) -> Any:
        gelu = functional.gelu

        def hook(_: nn.Module, args: tuple[Tensor], output: Tensor) -> Tensor:
            inner = module.proj(args[0])  # type: ignore[operator]
            return state(self.phase, inner, lambda z: gelu(z, approximate="tanh"))

        return hook

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is functional.scaled_dot_product_attention and self.attentions:
            given = {**dict(zip(("query", "key", "value"), args, strict=False)), **(kwargs or {})}
            number, self.layer = self.layer, self.layer + 1
            if number >= self.dense:
                query = given["query"]
                found = self.attentions[number](self.phase, query, given["key"], given["value"])
                return found.to(query.dtype).transpose(1, 2).contiguous().transpose(1, 2)
        return func(*args, **(kwargs or {}))

    @contextlib.contextmanager
    def step(self, phase: Phase) -> Iterator[None]:
        self.phase, self.layer = phase, 0
        with self:
            yield

    def remove(self) -> None:
        for hook in self.hooks:
            hook.remove()


def count_of(share: float, columns: int) -> int:
    """How many of ``columns`` a share is, by the formula of the original."""
    return max(1, math.floor(share * columns + 0.5))
