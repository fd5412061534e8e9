"""How sensitive a denoiser is to its input and to the time (SenCache): finite differences along uncached runs.

Of each two steps in a row, ``(x, t)`` and ``(x', t')``, the denoiser is called at ``(x', t)`` and at ``(x, t')`` too:
the difference is that of a step, the direction that of the run.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from hicache_compile.errors import HiCacheError
from hicache_compile.frontend.denoiser import CompiledDenoiser
from hicache_compile.internals import pytree
from hicache_compile.operators.measurements import ratio
from hicache_compile.policy.guards.sencache import POINTS
from hicache_compile.runtime.call_arguments import SAMPLE_NAMES
from hicache_compile.runtime.step import Step
from hicache_compile.tune.reference import Runs, output_of


@dataclass(frozen=True, slots=True)
class Sensitivities:
    """What was measured of a denoiser, for ``SenCacheGuard``.

    ``input_sensitivity``, ``time_sensitivity``: over the run, as the guard takes them. ``output``: of each run and
    branch the relative change of the output from step to step, ``[T - 1]``. ``moved``: likewise the relative change of
    the input of step ``k + 1`` from that of step ``a`` as ``[k, a]``, ``[T - 1, T - 1]``.
    """

    input_sensitivity: tuple[float, ...]
    time_sensitivity: tuple[float, ...]
    output: Sequence[np.ndarray]
    moved: Sequence[np.ndarray]

    @property
    def num_steps(self) -> int:
        return len(self.output[0]) + 1


def sensitivities(denoiser: CompiledDenoiser, runs: Runs) -> Sensitivities:
    """Measure how sensitive ``denoiser`` is, on the inputs of ``runs``; it is called four times a step, uncompiled.

    ``input_sensitivity`` of a step is ``change(f(x', t), f(x, t)) / change(x', x)`` and ``time_sensitivity`` is
    ``change(f(x, t'), f(x, t)) * T``, where ``change(a, b) = mean|a - b| / mean|b|``, ``T`` is the number of steps and
    ``t`` is all of a call but its noisy input. Both are means over runs, branches of guidance and samples.

    Args:
        denoiser: what ``hicache_compile`` returned.
        runs: each samples once with it, inside ``denoiser.trajectory`` or through its pipeline.

    Raises:
        HiCacheError: a run does not call the denoiser twice, the runs differ in length, or a call has no noisy input.
    """
    if not isinstance(denoiser, CompiledDenoiser) or not runs:
        raise HiCacheError(
            "sensitivities.denoiser, runs: must be a compiled denoiser and one or more functions that sample"
        )
    found: list[_Course] = []
    for number, run in enumerate(runs):
        observer = _Observer(denoiser._orig_mod)
        with denoiser.disabled(), denoiser.observed(observer):
            run()
        denoiser.reset()
        if min((len(course.output) for course in observer.courses.values()), default=0) < 1:
            raise HiCacheError(f"sensitivities.runs[{number}]: must sample at least two steps with the denoiser")
        found += observer.courses.values()
    lengths = sorted({len(course.inputs) for course in found})
    if len(lengths) > 1:
        raise HiCacheError(f"sensitivities.runs: must be equally long, they have {', '.join(map(str, lengths))} steps")
    by_input = np.mean([course.by_input for course in found], axis=0)
    by_time = np.mean([course.by_time for course in found], axis=0) * lengths[0]
    output = [np.array(course.output) for course in found]
    return Sensitivities(_over_run(by_input), _over_run(by_time), output, [course.moved() for course in found])


def _over_run(values: np.ndarray) -> tuple[float, ...]:
    """``values`` of the first ``T - 1`` of ``T`` steps, at as many points as the guard has, or fewer."""
    steps = len(values)
    places = np.linspace(0, steps, min(POINTS, steps + 1))
    return tuple(float(f"{value:.4g}") for value in np.interp(places, np.arange(steps), values))


@dataclass(slots=True)
class _Course:
    """One run of one branch. ``inputs``: of each step; the rest from each step to the next."""

    inputs: list[torch.Tensor] = field(default_factory=list)
    output: list[float] = field(default_factory=list)
    by_input: list[float] = field(default_factory=list)
    by_time: list[float] = field(default_factory=list)
    before: tuple[_Arguments, torch.Tensor] | None = None  # the call of the step before, and its output

    def moved(self) -> np.ndarray:
        steps = len(self.inputs) - 1
        found = np.zeros((steps, steps))
        for step in range(steps):
            found[step, : step + 1] = [_change(self.inputs[step + 1], self.inputs[at]) for at in range(step + 1)]
        return found


class _Arguments:
    """The arguments of a call, copied, with the noisy input at ``place`` of their leaves."""

    def __init__(self, given: Any, place: int) -> None:
        leaves, self.structure = pytree.tree_flatten(given)
        self.leaves = [leaf.clone() if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]
        self.place = place

    @property
    def noisy(self) -> torch.Tensor:
        found: torch.Tensor = self.leaves[self.place]
        return found

    def output(self, model: torch.nn.Module, noisy: torch.Tensor) -> torch.Tensor:
        """What ``model`` returns for them with ``noisy`` in place of the noisy input."""
        leaves = [*self.leaves[: self.place], noisy, *self.leaves[self.place + 1 :]]
        args, kwargs = pytree.tree_unflatten(leaves, self.structure)
        return output_of(model(*args, **kwargs)).float().clone()


class _Observer:
    """Makes the calls of a run as they are, and measures between each and the one before."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.model = model
        self.courses: defaultdict[str, _Course] = defaultdict(_Course)

    def __call__(self, step: Step, call: Any, run: Callable[[], Any]) -> Any:
        value = run()
        given = call.given
        noisy = noisy_input(call.arguments(), output_of(value))
        place = next(at for at, leaf in enumerate(pytree.tree_leaves(given)) if leaf is noisy)
        self._measure(self.courses[step.context.name], _Arguments(given, place))
        return value

    def _measure(self, course: _Course, now: _Arguments) -> None:
        output = now.output(self.model, now.noisy)
        if course.before is not None:
            before, was = course.before
            if before.noisy.shape != now.noisy.shape:
                raise HiCacheError(
                    f"sensitivities.runs: the noisy input has the shape {tuple(now.noisy.shape)} after "
                    f"{tuple(before.noisy.shape)}: must be the same in all steps"
                )
            moved = _change(now.noisy, before.noisy)
            by_input = _change(before.output(self.model, now.noisy), was)
            course.by_input.append(by_input / moved if moved else 0.0)
            course.by_time.append(_change(now.output(self.model, before.noisy), was))
            course.output.append(_change(output, was))
        course.inputs.append(now.noisy)
        course.before = now, output


def noisy_input(arguments: Mapping[str, Any], output: torch.Tensor) -> torch.Tensor:
    """The argument that is denoised: of those shaped like the output, else of all that are large, one with a usual name
    of it, else the first.

    Raises:
        HiCacheError: there is none.
    """
    tensors = {name: value for name, value in arguments.items() if isinstance(value, torch.Tensor)}
    large = {name: value for name, value in tensors.items() if value.is_floating_point() and value.dim() > 2}
    alike = {name: value for name, value in large.items() if value.shape == output.shape}
    usual = next((name for name in SAMPLE_NAMES if name in (alike or large)), None)
    found = large[usual] if usual else next(iter((alike or large).values()), None)
    if found is None:
        raise HiCacheError("sensitivities: the denoiser must be given its noisy input as a floating-point tensor")
    return found


def _change(now: torch.Tensor, before: torch.Tensor) -> float:
    """``mean|now - before| / mean|before|``, the mean over samples."""
    return float(ratio(now.float(), before.float()).mean())
