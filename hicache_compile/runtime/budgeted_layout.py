"""Where to cut one graph so that its anchors fit a memory budget."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable
from dataclasses import replace
from functools import cache

from torch import fx

from hicache_compile.passes import rewrite
from hicache_compile.passes.graph.inputs import Role
from hicache_compile.passes.graph.shapes import Bindings
from hicache_compile.policy.layout import Layout
from hicache_compile.policy.policy import Policy
from hicache_compile.runtime.options import CompileOptions
from hicache_compile.runtime.program_set import ProgramSet
from hicache_compile.runtime.storage.budget import SlotShapes, choose

log = logging.getLogger(__name__)


class BudgetedLayout:
    """The layouts of one captured graph under ``options.memory_budget``, each chosen once."""

    def __init__(self, captured: fx.GraphModule, options: CompileOptions) -> None:
        self.captured = captured
        self.options = options
        self._chosen: dict[Hashable, tuple[Layout, str]] = {}

    def __call__(self, policy: Policy, bindings: Bindings, taken: int, contexts: int) -> tuple[Layout, str]:
        """The layout for ``policy`` at the sizes ``bindings``, and why.

        Args:
            policy: the policy in force.
            bindings: the symbolic sizes of the step.
            taken: bytes that graphs called earlier in the step keep.
            contexts: contexts that share the budget.
        """
        budget, wanted = self.options.memory_budget, self.options.layout(policy)
        assert budget is not None
        key = (wanted, taken, contexts, *bindings.values())
        if key not in self._chosen:
            rows = 1 if self.options.offload else None
            layout, why = choose(wanted, budget // contexts - taken, rows, self._slots_at(wanted, bindings))
            log.info("memory budget for %d contexts: %s", contexts, why)
            self._chosen[key] = layout, why
        return self._chosen[key]

    def _slots_at(self, wanted: Layout, bindings: Bindings) -> Callable[[str], SlotShapes]:
        """The slots each scope keeps anchors of, from shapes alone: nothing is lowered."""

        @cache
        def slots_at(scope: str) -> SlotShapes:
            at_scope = replace(wanted.at(scope), depth=1, anchors=None, sparsity=None, program_passes=())
            shapes = ProgramSet(rewrite(self.captured, at_scope), 1).shapes(bindings)
            if wanted.partitions is not None:
                return [(shape, dtype) for shape, dtype, _ in shapes.values()]
            return [(shape[1:], dtype) for state, (shape, dtype, _) in shapes.items() if state.role is Role.ANCHORS]

        return slots_at
