"""cond over whole programs, where groups of sites are decided each by itself: a tree, a level for each group.

before   full, forecast_attention, forecast_mlp, forecast
after    cond(computing_attention, cond(computing_mlp, full, forecast_mlp), cond(computing_mlp, ...))

Requires   what ``cond`` requires
Ensures    the inputs and outputs of ``cond`` with one cond a site
Refuses    more groups than ``MOST_GROUPS``: the tree has a program for each choice of groups
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import torch
from torch import fx

from hicache_compile.errors import HiCacheError
from hicache_compile.passes.graph.choices import Choice
from hicache_compile.passes.graph.inputs import Role, StateInput
from hicache_compile.passes.lowering.branch_writer import Part
from hicache_compile.passes.lowering.cond_graph import CondGraph
from hicache_compile.passes.work import Rewrite

MOST_GROUPS = 4


class PerChoice(CondGraph):
    """A branch for each choice of groups."""

    def __init__(self, rewrite: Rewrite) -> None:
        self.groups = rewrite.groups
        if len(self.groups) > MOST_GROUPS:
            raise HiCacheError(
                f"program_passes with {len(self.groups)} groups of sites that are decided each by itself: must be at "
                f"most {MOST_GROUPS} in a cond backend or an export, which has a branch for each choice of them"
            )
        each = product((True, False), repeat=len(self.groups))
        super().__init__(rewrite, [rewrite.program(self._choice(computed)) for computed in each])

    def declared(self) -> dict[StateInput, torch.Tensor]:
        return {_computing(group): torch.empty((), dtype=torch.bool) for group in self.groups}

    def outputs(self, part: Part) -> list[fx.Node]:
        return self._level(part, ())

    def _level(self, part: Part, computed: Sequence[bool]) -> list[fx.Node]:
        """The outputs, where it is known of the first groups whether they are ``computed``."""
        if len(computed) == len(self.groups):
            outputs = part.inline(self.rewrite.program(self._choice(computed)))
            return part.owned([*outputs, *(part.names[state] for state in self.kept)])
        group = self.groups[len(computed)]
        predicate = part.names.pop(_computing(group))
        yes = part.branch(lambda inner: self._level(inner, (*computed, True)))
        no = part.branch(lambda inner: self._level(inner, (*computed, False)))
        return part.cond(predicate, yes, no, (f"{group}_computed", f"{group}_forecast"))

    def _choice(self, computed: Sequence[bool]) -> Choice:
        forecast = [group for group, is_computed in zip(self.groups, computed, strict=True) if not is_computed]
        return Choice.forecasting(forecast, self.groups)


def _computing(group: str) -> StateInput:
    return StateInput(Role.COMPUTING, group)
