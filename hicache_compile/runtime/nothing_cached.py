"""Runs that were as slow as without a cache, and why."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from torch import nn

from hicache_compile.errors import is_real
from hicache_compile.passes.work import Rewrite
from hicache_compile.runtime.step import Step

FEW_CAPTURES = 3  # of a run: shapes and branches of a denoiser

log = logging.getLogger(__name__)


def why_nothing(rewrites: Sequence[Rewrite], model: nn.Module | None = None) -> str:
    """Why none of the graphs of a call of ``model`` caches anything: its hooks, else the reason of the largest graph;
    empty where one does."""
    reasons = [made.why_nothing for made in rewrites]
    if not all(reasons):
        return ""
    sizes = [len(made.captured.graph.nodes) for made in rewrites]
    found = max(zip(sizes, reasons, strict=True), default=(0, ""))[1]
    hooked = _hooked(model) if found and len(rewrites) > 1 and model is not None else 0
    if hooked:
        return (
            f"hooks on {hooked} of its submodules (offloading) break it into {len(rewrites)} graphs: offload the whole "
            "model (enable_model_cpu_offload) or whole blocks (group offloading at block_level) instead"
        )
    return found


def _hooked(model: nn.Module) -> int:
    """Submodules with a hook of accelerate or diffusers."""
    inner = (module for module in model.modules() if module is not model)
    return sum(bool({"_hf_hook", "_diffusers_hook"} & vars(module).keys()) for module in inner)


def say_what_never_hit(step: Step) -> None:
    """A run in which nothing was forecast that might have been was as slow as without a cache: say so."""
    context = step.context
    unknown = step.letter == "?"  # on the device
    if unknown or step.uncached or step.num_steps is None or step.index + 1 != step.num_steps:
        return
    letters = context.letters()
    if not letters or set(letters) - set("FS"):
        return
    # A branch may have joined later, and its first step is always computed.
    free = context.policy.decisions(step.num_steps)[-len(letters) :][1:].count(".")
    if not free:
        return
    if context.policy.guards:
        names = ", ".join(type(guard).__name__ for guard in context.policy.guards)
        log.warning(
            "0 hits: %s skipped none of the %d steps of context %r, of which %d were free to be%s; the run was as "
            "slow as without a cache. In a run of few steps too much changes from one to the next: raise the "
            "threshold, or drop the guard",
            names,
            len(letters),
            context.name,
            free,
            _nearest(step),
        )
    elif context.states and not context.ambiguous:  # else there was nothing to start over, or it is told before
        log.warning(
            "0 forecasts: all %d steps of context %r were computed, %d of them because the anchors had started over, "
            "as they do where weights, sizes or dtypes (autocast) change from step to step; the run was as slow as "
            "without a cache",
            len(letters),
            context.name,
            free,
        )


def say_what_was_compiled_anew(step: Step, graphs: int, warn: Callable[..., None]) -> None:
    """A run in which Dynamo captured the denoiser in every other step spent its time on that: say so. ``graphs``: of
    one call."""
    if step.num_steps is None or step.index + 1 != step.num_steps:
        return
    captured = len({graph for graph, _, _ in step.context.choices}) // max(1, graphs)
    if captured > FEW_CAPTURES and 2 * captured >= step.num_steps:
        warn(
            "compiled anew: the %d steps of context %r ran %d graphs, as a number or text that changes from step to "
            "step is a constant of each. Give the denoiser tensors (a timestep of Python that it makes a tensor of is "
            "such a constant); TORCH_LOGS=recompiles names what changed",
            step.num_steps,
            step.context.name,
            captured,
        )


def _nearest(step: Step) -> str:
    """What came nearest to a threshold, where guards that have one measured something."""
    guards = step.context.policy.guards
    found: dict[int, float] = {}
    for state in step.context.states.values():
        for number, value in (state.decider.smallest() if state.decider is not None else {}).items():
            found[number] = min(value, found.get(number, value))
    thresholds = {number: getattr(guards[number], "threshold", None) for number in found}
    said = [
        f"; {type(guards[number]).__name__} measured at least {value:.3g}, its threshold is {thresholds[number]:.3g}"
        for number, value in found.items()
        if is_real(thresholds[number])
    ]
    return "".join(said)
