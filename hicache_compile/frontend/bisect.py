"""Finding the site whose forecast, or whose rewrite, is to blame."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from hicache_compile.errors import HiCacheError
from hicache_compile.frontend.compile import hicache_compile
from hicache_compile.frontend.denoiser import CompiledDenoiser
from hicache_compile.passes.transforms.fuel import limited
from hicache_compile.policy.program_passes import ProgramPass, name_of_pass
from hicache_compile.runtime.compiled_graph import CompiledGraph


def bisect(
    model: nn.Module,
    policy: Any,
    is_good: Callable[[CompiledDenoiser], bool],
    *,
    backend: str = "eager",
    sparsity: Any = None,
    program_passes: Sequence[ProgramPass] = (),
) -> str | None:
    """The first rewrite (a site, an attention over partitions, a sparse attention or MLP, a pass of your own) without
    which ``is_good`` holds and with which it does not; ``None`` when it holds with all.

    The same as setting ``HICACHE_FUEL`` by hand: a binary search over how many rewrites are made, in graph order.

    Args:
        model, policy, backend, sparsity, program_passes: as in ``hicache_compile``.
        is_good: samples with the compiled denoiser it is given, and judges the result.

    Raises:
        HiCacheError: ``is_good`` does not hold even with nothing rewritten, so no rewrite is to blame.
    """

    def holds(rewrites: int) -> bool:
        with limited(rewrites):
            return is_good(compiled())

    def compiled() -> CompiledDenoiser:
        return hicache_compile(model, policy, backend=backend, sparsity=sparsity, program_passes=program_passes)

    everything = compiled()
    if is_good(everything):
        return None
    names = [name for graph in everything._graphs for name in _rewritten(everything, graph)]
    if not holds(0):
        raise HiCacheError("bisect.is_good: must hold for the denoiser with nothing rewritten")
    good, bad = 0, len(names)
    while bad - good > 1:
        middle = (good + bad) // 2
        good, bad = (middle, bad) if holds(middle) else (good, middle)
    return names[bad - 1]


def _rewritten(denoiser: CompiledDenoiser, graph: CompiledGraph) -> list[str]:
    """What fuel is spent on, in the order of the passes."""
    made = graph.programs(graph.layout(denoiser.policy)[0]).rewrite
    own = map(name_of_pass, made.layout.program_passes)
    return [*made.sparse, *made.partitioned, *(site.name for site in made.sites), *own]
