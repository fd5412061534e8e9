"""HiCache and TaylorSeer as their published codes run them: eager, module by module, on a real FLUX transformer.

Written from the papers' formulas and independent of ``hicache_compile``: it imports nothing from it, rewrites no
graph, folds no coefficients and keeps the difference tables in float64. Its tests compare whole trajectories.
"""

from __future__ import annotations

from collections.abc import Callable
from math import factorial
from typing import Any, Literal

import torch
from torch import Tensor, nn

Basis = Literal["hermite", "taylor"]


def coefficient(basis: Basis, k: int, x: float, sigma: float) -> float:
    """What the forecast at distance ``x`` multiplies the k-th difference by.

    Taylor: ``x^k / k!``. Hermite: ``sigma^k H_k(sigma x) / k!`` with the physicists' ``H_k`` written as its sum
    ``k! sum_j (-1)^j (2z)^(k-2j) / (j! (k-2j)!)``, so that the recurrence of the published code is checked too.
    """
    if basis == "taylor":
        return x**k / factorial(k)
    z = 2 * sigma * x
    terms = ((-1) ** j * z ** (k - 2 * j) / (factorial(j) * factorial(k - 2 * j)) for j in range(k // 2 + 1))
    return float(sigma**k * sum(terms))


class Counter:
    """The schedule: warmup in full, then a full step whenever ``interval - 1`` forecasts have been made in a row."""

    def __init__(self, interval: int, warmup: int) -> None:
        self.interval = interval
        self.warmup = warmup
        self.forecasts_in_a_row = 0

    def is_full(self, step: int) -> bool:
        """Decide ``step``; to be asked once per step, in order."""
        if step < self.warmup or self.forecasts_in_a_row == self.interval - 1:
            self.forecasts_in_a_row = 0
            return True
        self.forecasts_in_a_row += 1
        return False


class Table:
    """The differences ``D_0 .. D_m`` of one cached tensor, at its latest full step.

    In float64: the oracle's own rounding must not hide in, or add to, the error it measures.
    """

    def __init__(self) -> None:
        self.differences: list[Tensor] = []

    def update(self, feature: Tensor, order: int, gap: int | None) -> None:
        """Store a full step's feature, ``gap`` steps after the previous one; ``None``: no difference is taken."""
        updated = [feature.double()]
        if gap is not None:
            # Every order is divided by the same latest gap, which after the warmup is not the spacing of the older
            # points: that is the published recursion, not Newton's.
            for old in self.differences[:order]:
                updated.append((updated[-1] - old) / gap)
        self.differences = updated  # orders that were not reached are dropped

    def forecast(self, coefficients: Callable[[int], float], dtype: torch.dtype) -> Tensor:
        """``D_0 + sum_k c_k D_k`` over the orders there are."""
        total = self.differences[0].clone()
        for k, difference in enumerate(self.differences[1:], start=1):
            total += coefficients(k) * difference
        return total.to(dtype)


class PublishedCache(nn.Module):
    """``model`` (a ``FluxTransformer2DModel``) with its blocks' outputs cached, for one trajectory at a time.

    Cached, all before their gates: of a double block the image and text halves of the attention after their output
    projections and both MLPs; of a single block ``proj_out``, over text and image tokens. Embedders, norms, modulation,
    gates and residual adds run on every step.

    Used as a context manager: ``model`` is patched inside the ``with`` only, and every ``with`` starts a trajectory.
    ``decisions`` has an ``F`` for every full step and a ``.`` for every forecast one. ``direction=-1`` evaluates the
    forecast at ``-x``: the sign bug of a known port, for tests to tell apart.
    """

    def __init__(
        self,
        model: nn.Module,
        basis: Basis = "hermite",
        order: int = 2,
        sigma: float = 0.5,
        interval: int = 6,
        warmup: int = 3,
        direction: Literal[1, -1] = 1,
    ) -> None:
        super().__init__()
        self.model = model
        self.basis: Basis = basis
        self.order = order
        self.sigma = sigma
        self.interval = interval
        self.warmup = warmup
        self.direction = direction
        self.reset()

    def reset(self) -> None:
        """Forget the trajectory."""
        self.step = -1
        self.full = True
        self.full_steps: list[int] = []
        self.counter = Counter(self.interval, self.warmup)

    @property
    def decisions(self) -> str:
        """A letter for every step so far, ``F`` or ``.``."""
        return "".join("F" if step in self.full_steps else "." for step in range(self.step + 1))

    def __enter__(self) -> PublishedCache:
        self.reset()
        for module in self.cached_modules():
            module.forward = self.caching(module.forward)
        return self

    def __exit__(self, *exception: object) -> None:
        for module in self.cached_modules():
            del module.forward  # the instance's; the class's is there again

    def cached_modules(self) -> list[nn.Module]:
        """The modules whose outputs are cached."""
        double: Any = self.model.transformer_blocks
        single: Any = self.model.single_transformer_blocks
        return [m for block in double for m in (block.attn, block.ff, block.ff_context)] + [b.proj_out for b in single]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the model for the next step."""
        self.step += 1
        self.full = self.counter.is_full(self.step)
        if self.full:
            self.full_steps.append(self.step)
        return self.model(*args, **kwargs)

    def caching(self, run: Callable[..., Any]) -> Callable[..., Any]:
        """``run``, a module's forward, on full steps; forecasts of what it returns, a tensor or a tuple, on others."""
        tables: list[Table] = []
        returns_tuple = False

        def forward(*args: Any, **kwargs: Any) -> Any:
            nonlocal tables, returns_tuple
            if self.full:
                result = run(*args, **kwargs)
                returns_tuple = isinstance(result, tuple)
                features = result if returns_tuple else (result,)
                tables = tables or [Table() for _ in features]
                for table, feature in zip(tables, features, strict=True):
                    table.update(feature, self.order, self.gap())
                return result
            forecasts = tuple(table.forecast(self.coefficient, torch.float32) for table in tables)
            return forecasts if returns_tuple else forecasts[0]

        return forward

    def gap(self) -> int | None:
        """Steps between the two latest full steps, or ``None`` where the published code takes no differences yet."""
        if len(self.full_steps) < 2 or self.step <= self.warmup - 2:
            return None
        return self.full_steps[-1] - self.full_steps[-2]

    def coefficient(self, k: int) -> float:
        """The coefficient of the k-th difference at this (forecast) step."""
        return coefficient(self.basis, k, self.direction * (self.step - self.full_steps[-1]), self.sigma)
