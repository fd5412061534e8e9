"""HiCache by forward hooks on a plain pipeline: the reference of a forecast, without a graph and without a compiler.

Every module runs in every step; in a forecast step the hook replaces what it returned by the forecast, in float64.
"""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tests.support.oracle import Counter, Table, coefficient

ORDER, SIGMA, WARMUP = 2, 0.5, 3


class Branch:
    """The steps of one branch of guidance, and the differences of what its modules returned."""

    def __init__(self, interval: int) -> None:
        self.counter = Counter(interval, WARMUP)
        self.step = -1
        self.full = True
        self.full_steps: list[int] = []
        self.places: defaultdict[str, int] = defaultdict(int)  # how often a module was called in this call
        self.tables: defaultdict[tuple[str, int, int], Table] = defaultdict(Table)

    def begin(self) -> None:
        """A step begins."""
        self.places.clear()
        self.step += 1
        self.full = self.counter.is_full(self.step)
        if self.full:
            self.full_steps.append(self.step)

    def replaced(self, key: tuple[str, int, int], value: Tensor) -> Tensor:
        """``value`` in a full step, its forecast in another."""
        if not self.full:
            x = float(self.step - self.full_steps[-1])
            return self.tables[key].forecast(lambda k: coefficient("hermite", k, x, SIGMA), value.dtype)
        first = len(self.full_steps) < 2 or self.step <= WARMUP - 2  # the published code takes no differences yet
        self.tables[key].update(value, ORDER, None if first else self.full_steps[-1] - self.full_steps[-2])
        return value


class HookedCache:
    """The state of one denoiser for one trajectory. Calls at the same timestep are the branches of one step."""

    def __init__(self, interval: int) -> None:
        self.interval = interval
        self.branches: list[Branch] = []
        self.branch = -1
        self.time: Tensor | None = None
        self.called: set[str] = set()

    def begin(self, module: nn.Module, given: Any, named: Any) -> None:
        """A call of the denoiser begins."""
        time = torch.as_tensor(inspect.signature(module.forward).bind(*given, **named).arguments["timestep"])
        time = time.double().mean()  # each frame may have its own
        self.branch = self.branch + 1 if self.time is not None and torch.equal(time, self.time) else 0
        self.time = time.clone()
        if self.branch == len(self.branches):
            self.branches.append(Branch(self.interval))
        self.branches[self.branch].begin()

    def replace(self, name: str, module: nn.Module, given: Any, output: Any) -> Any:
        """What ``module`` hands on instead of ``output``: a tensor, or a tuple or list of some."""
        self.called.add(name)
        branch = self.branches[self.branch]
        place = branch.places[name]
        branch.places[name] += 1
        if isinstance(output, Tensor):
            return branch.replaced((name, place, 0), output)
        return type(output)(
            branch.replaced((name, place, slot), value) if isinstance(value, Tensor) else value
            for slot, value in enumerate(output)
        )


@contextmanager
def hooked(denoiser: nn.Module, names: Sequence[str], interval: int) -> Iterator[None]:
    """Inside, the modules ``names`` of ``denoiser`` forecast.

    Raises:
        LookupError: one of them was not called: it is only a name of a part of the model.
    """
    cache = HookedCache(interval)
    with ExitStack() as stack:
        stack.callback(denoiser.register_forward_pre_hook(cache.begin, with_kwargs=True).remove)
        for name in names:
            module = denoiser.get_submodule(name)
            stack.callback(module.register_forward_hook(partial(cache.replace, name)).remove)
        with torch.no_grad():
            yield
    if cache.branches and cache.called != set(names):
        raise LookupError(f"never called: {sorted(set(names) - cache.called)}")
