"""Choices: what a step does, as values. Text is only how they print."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import ClassVar

from hicache_compile.policy.sparsity.phases import Phase
from hicache_compile.policy.str_enum import StrEnum

Phases = tuple[tuple[str, Phase], ...]  # of the computed groups that are not plainly dense


class Kind(StrEnum):
    """What a program is for."""

    FULL = "full"  # every site is computed and remembered
    FORECAST = "forecast"  # some or all sites are forecast
    PLAIN = "plain"  # the denoiser as it was captured
    EITHER = "either"  # one program that takes one of the branches itself
    PROBE = "probe"  # measures what a guard decides by


@dataclass(frozen=True, slots=True)
class Choice:
    """What a step, or a part of one, does.

    Args:
        kind: see there.
        groups: forecast: the groups of sites that are; ``None``: all.
        phases: how computed groups are sparse, by group; none: dense.
        stage: probe: its number. Forecast: the stage whose guard ended the step, where an earlier one has the same
            groups.
        tokens: forecast: sites that can compute some of their tokens do.
    """

    kind: Kind
    groups: frozenset[str] | None = None
    phases: Phases = ()
    stage: int | None = None
    tokens: bool = False

    FULL: ClassVar[Choice]
    FORECAST: ClassVar[Choice]
    PLAIN: ClassVar[Choice]
    EITHER: ClassVar[Choice]

    @classmethod
    def forecasting(cls, groups: Iterable[str], of: Iterable[str]) -> Choice:
        """The choice to forecast ``groups`` out of the groups ``of``."""
        chosen = frozenset(groups)
        if not chosen:
            return cls.FULL
        return cls.FORECAST if chosen == frozenset(of) else cls(Kind.FORECAST, chosen)

    @classmethod
    def probe(cls, stage: int) -> Choice:
        """The choice to measure for the guard of ``stage``."""
        return cls(Kind.PROBE, stage=stage)

    def with_phases(self, phases: Phases) -> Choice:
        """The same with computed groups in ``phases``."""
        return replace(self, phases=phases)

    def with_tokens(self) -> Choice:
        """The same with some tokens computed in sites that are forecast."""
        return replace(self, tokens=True)

    @property
    def forecasts(self) -> bool:
        """Whether something is forecast."""
        return self.kind is Kind.FORECAST

    @property
    def partial(self) -> bool:
        """Whether some groups are forecast and others are not."""
        return self.groups is not None

    @property
    def is_sparse(self) -> bool:
        """Whether some group is computed sparsely."""
        return any(phase.is_sparse for _, phase in self.phases)

    def __str__(self) -> str:
        parts = [str(self.kind)] if not (self.kind is Kind.FULL and self.phases) else []
        if self.groups is not None:
            parts.append("+".join(sorted(self.groups)))
        if self.stage is not None:
            parts.append(str(self.stage) if self.kind is Kind.PROBE else f"after_{self.stage}")
        parts += ["tokens"] if self.tokens else []
        parts += [str(phase) if not group else f"{group}={phase}" for group, phase in self.phases]
        return "_".join(parts)


Choice.FULL = Choice(Kind.FULL)
Choice.FORECAST = Choice(Kind.FORECAST)
Choice.PLAIN = Choice(Kind.PLAIN)
Choice.EITHER = Choice(Kind.EITHER)
