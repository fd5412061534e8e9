"""Guards that decide in a graph: their rules on tensors, and how the run stands, as functions of tensors.

Everything is float64, like Python's own floats.

``run`` ``[HEAD + K]``: computed steps, skips in a row, measurements that were not finite, the decision of the step (0:
computed; ``n``: guard ``n - 1`` ended it), then the newest computed steps.
``parameters`` of a guard: the cap on skips in a row, then the numbers of its rule (``Guard.parameters``).
``remembered``: what its rule remembers (``Guard.remembers``).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hicache_compile.errors import HiCacheError

HEAD = 4
GAPS = 64  # a table of weights goes by gaps between steps, below this


class TensorArithmetic:
    """The arithmetic of rules on float64 tensors of no dimension."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def tensor(self, value: Any) -> Tensor:
        if isinstance(value, Tensor):
            return value if value.dtype == torch.bool else value.double()
        dtype = torch.bool if isinstance(value, bool) else torch.float64
        return torch.full((), value, dtype=dtype, device=self.device)

    def where(self, truth: Any, yes: Any, no: Any) -> Tensor:
        return torch.where(self.tensor(truth), self.tensor(yes), self.tensor(no))

    def maximum(self, a: Any, b: Any) -> Tensor:
        return torch.maximum(self.tensor(a), self.tensor(b))

    def minimum(self, a: Any, b: Any) -> Tensor:
        return torch.minimum(self.tensor(a), self.tensor(b))

    def isfinite(self, a: Any) -> Tensor:
        return self.tensor(a).isfinite()

    def isnan(self, a: Any) -> Tensor:
        return self.tensor(a).isnan()

    def negate(self, truth: Any) -> Tensor:
        return ~self.tensor(truth)


class TensorRule:
    """The rule of ``guard`` as functions of tensors, which a graph calls.

    ``numbers``: the class of what holds numbers by name (``policy.guards.Numbers``).
    """

    def __init__(self, guard: Any, numbers: Any) -> None:
        self.guard = guard
        self._numbers = numbers
        self._names = list(guard.remembers)
        self._shapes = {
            name: None if isinstance(value, int | float) else len(value)
            for name, value in guard.parameters(None).items()
        }

    @property
    def signature(self) -> tuple[object, ...]:
        """Guards with equal signatures share programs: those whose numbers are all data, by class; others each."""
        structure = type(self.guard), tuple(self._shapes.items())
        return structure if self.guard.numbers_are_data else (*structure, self.guard)

    def parameters(self, num_steps: int | None) -> list[float]:
        """The values of the input ``parameters`` in a run of ``num_steps``."""
        found = [math.inf if self.guard.max_skips is None else float(self.guard.max_skips)]
        for value in self.guard.parameters(num_steps).values():
            found += [float(value)] if isinstance(value, int | float) else map(float, value)
        return found

    def first_remembered(self) -> list[float]:
        """The values of the input ``remembered`` at the start of a run."""
        return [float(value) for value in self.guard.remembers.values()] or [0.0]

    def ask(self, parameters: Tensor, remembered: Tensor, forced: Tensor, step: Tensor, measured: Tensor) -> Tensor:
        """``[3 + n]``: whether the step is skipped, whether it is forced from here on, whether what was measured is not
        finite, and what is remembered."""
        m, p, s, at, seen = self._given(parameters, remembered, step, measured)
        finite = seen[0].isfinite() | (not self.guard.probe.before)
        skips, after = self.guard.ask(m, p, s, at, seen)
        asked = ~forced[0] & finite
        kept = torch.where(asked, self._packed(m, after), remembered)
        flags = [asked & m.tensor(skips), forced[0] | ~finite, ~forced[0] & ~finite]
        return torch.cat([torch.stack([flag.double() for flag in flags]), kept])

    def after_full(self, parameters: Tensor, remembered: Tensor, step: Tensor, measured: Tensor) -> Tensor:
        """What is remembered after a computed step."""
        m, p, s, at, seen = self._given(parameters, remembered, step, measured)
        return self._packed(m, self.guard.after_full(m, p, s, at, seen))

    def after_forecast(self, parameters: Tensor, remembered: Tensor, step: Tensor, measured: Tensor) -> Tensor:
        """What is remembered after a step that was skipped."""
        m, p, s, at, seen = self._given(parameters, remembered, step, measured)
        return self._packed(m, self.guard.after_forecast(m, p, s, at, seen))

    def weights(self, parameters: Tensor, remembered: Tensor, run: Tensor, step: Tensor, table: Tensor) -> Tensor:
        """Weights in ring order ``[K]``, or ``[parts, K]``: the guard's own where it has any, else of the ``table``."""
        row = weights_of(run, step, table)
        m, p, s, _, _ = self._given(parameters, remembered, step, step)
        found = self.guard.weights(m, p, s)
        if found is not None:
            applies, own = found
            few = m.tensor(len(own)) > run[0]
            depth = row.shape[-1]
            padded = [m.tensor(value).to(row.dtype) for value in own[:depth]]
            padded += [torch.zeros_like(padded[0])] * (depth - len(padded))
            row = torch.where(m.tensor(applies) & ~few, torch.stack(padded), row)
        return in_ring_order(run, row)

    def _given(self, parameters: Tensor, remembered: Tensor, step: Tensor, measured: Tensor) -> tuple[Any, ...]:
        numbers: dict[str, Any] = {}
        place = 1
        for name, length in self._shapes.items():
            numbers[name] = parameters[place] if length is None else list(parameters[place : place + length].unbind())
            place += length or 1
        state = dict(zip(self._names, remembered.unbind(), strict=False))
        seen = list(measured.double().unbind())
        arithmetic = TensorArithmetic(step.device)
        return arithmetic, self._numbers(numbers), self._numbers(state), step[0], seen

    def _packed(self, m: TensorArithmetic, state: Any) -> Tensor:
        values = state.as_dict()
        return torch.stack([m.tensor(values[name]) for name in self._names] or [m.tensor(0.0)])


def starts_forced(computing: Tensor, run: Tensor, step: Tensor, *parameters: Tensor) -> Tensor:
    """Whether the step is computed whatever is measured, ``[1]``: the window, nothing to forecast from, a cap."""
    capped = torch.stack([run[1] >= each[0] for each in parameters]).any()
    far = step[0] - run[HEAD] >= GAPS
    return (computing | (run[0] == 0) | capped | far).reshape(1)


def counted(run: Tensor, answer: Tensor) -> Tensor:
    """``run`` with what a guard found not to be finite."""
    return torch.cat([run[:2], run[2:3] + answer[2:3], run[3:]])


def skips(answer: Tensor) -> Tensor:
    """The predicate of a guard's answer."""
    return answer[0] > 0


def still_forced(answer: Tensor) -> Tensor:
    """Whether the step is forced after a guard was asked, ``[1]``."""
    return answer[1:2] > 0


def remembered_after(answer: Tensor) -> Tensor:
    """What the guard remembers after it was asked."""
    return answer[3:] + 0.0


def run_after_full(run: Tensor, step: Tensor) -> Tensor:
    """``run`` after a computed step."""
    zero = torch.zeros_like(run[:1])
    return torch.cat([run[:1] + 1, zero, run[2:3], zero, step, run[HEAD:-1]])


def run_after_forecast(run: Tensor, code: int) -> Tensor:
    """``run`` after a step that guard ``code - 1`` ended."""
    return torch.cat([run[:1], run[1:2] + 1, run[2:3], torch.full_like(run[:1], code), run[HEAD:]])


def position_of(run: Tensor) -> Tensor:
    """The ring row a computed step writes, ``[1]`` int64."""
    return (run[:1] % (run.shape[0] - HEAD)).long()


def weights_of(run: Tensor, step: Tensor, table: Tensor) -> Tensor:
    """Weights ``[K]``, newest first, from the ``table`` ``[GAPS ** K, K]`` over the gaps between the step and the
    newest computed ones (0: there is none); ``[parts, K]`` from one of ``[GAPS ** K, parts, K]``."""
    depth = run.shape[0] - HEAD
    steps = torch.cat([step, run[HEAD:]])
    places = torch.arange(depth, device=run.device)
    gaps = torch.where(places < run[0], steps[:-1] - steps[1:], 0.0).clamp(0, GAPS - 1).long()
    flat = torch.zeros_like(gaps[0])
    for axis in range(depth):
        flat = flat * GAPS + gaps[axis]
    # An index that is a tensor of no dimension would be read on the host.
    return table.index_select(0, flat.reshape(1)).squeeze(0)


def in_ring_order(run: Tensor, row: Tensor) -> Tensor:
    """``row``, newest first, by ring row: the last dimension."""
    depth = row.shape[-1]
    places = torch.arange(depth, device=run.device)
    newest = run[0].long() - 1
    return torch.zeros_like(row).scatter(-1, ((newest - places) % depth).expand(row.shape), row)


def weight_table(policy: Any, depth: int, num_steps: int) -> Tensor:
    """Weights ``[GAPS] * depth + [depth]`` by the gaps between a step and the newest computed ones (0: there is none);
    before the last a dimension of the parts of a slot, where it has any.

    Raises:
        HiCacheError: the forecaster goes by the steps and not by their gaps.
    """
    parts = policy.layout.rows
    table = torch.zeros(*[GAPS] * depth, parts, depth, dtype=torch.float32)
    read = min(policy.depth, depth)
    for known in range(1, read + 1):
        for gaps in itertools.product(range(1, num_steps), repeat=known):
            if sum(gaps) < num_steps:
                weights = _weights(policy, gaps, 10 * num_steps)
                place = (*gaps, *[0] * (read - known)) if known < read else gaps
                for part, row in enumerate(weights):  # whatever the gaps to anchors that are not read
                    table[place][..., part, : len(row)] = torch.tensor(row)
    if num_steps > 2 and _weights(policy, (1,) * read, 100) != _weights(policy, (1,) * read, 101):
        raise HiCacheError(
            f"Policy.forecaster = {policy.forecaster!r}: must go by the gaps between steps where the graph decides"
        )
    return table if parts > 1 else table.squeeze(-2)


def _weights(policy: Any, gaps: Sequence[int], step: int) -> list[list[float]]:
    computed = list(itertools.accumulate(gaps, lambda at, gap: at - gap, initial=step))[1:]
    found: list[list[float]] = policy.part_weights(computed[::-1], step, len(gaps))
    return found
