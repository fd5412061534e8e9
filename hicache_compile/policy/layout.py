"""Layout: the part of a policy and its options that determines the compiled graphs."""

from __future__ import annotations

from dataclasses import dataclass, replace

from hicache_compile.key_partitions import KeyPartitions
from hicache_compile.policy.forecasters.parts import Bands, Channels
from hicache_compile.policy.guards import Measure, Probe, Signal
from hicache_compile.policy.program_passes import ProgramPass
from hicache_compile.policy.sparsity.chipmunk import Chipmunk
from hicache_compile.policy.tokens import Tokens

SCOPES = ("module", "block", "stack", "output")
ANCHORS = ("float32", "float16", "bfloat16", "float8_e4m3fn", "int8")  # dtypes that anchors can be kept in
QUANTISED = ("float8_e4m3fn", "int8")  # with a scale for each anchor
NOWHERE = "none"  # the scope of a policy that computes every step and keeps nothing
WITH_ENDS = ("module", "block", "stack")  # scopes at which the first and last blocks can stay live

Group = tuple[str, int | None]  # a kind of sites that is decided by itself, and in how many first blocks (None: all)


@dataclass(frozen=True, slots=True)
class Layout:
    """Everything that determines a graph: policies with equal layouts share programs.

    Args:
        scope, first, last: where the sites are cut, see ``Policy``.
        probes: what guards measure, in their order.
        groups: the sites that are decided each by itself, by their kind (``PerKind``) or by where they are in the run
            of blocks (``PerRange``); none: all are decided together.
        ranges: where each range of blocks begins, as a part of the run (``PerRange``).
        per_slot: each slot has weights of its own.
        parts: the parts of a slot that have a row of weights each (``ByBand``, ``ByChannel``).
        partitions: how the keys of attentions are partitioned (``DiTangoSchedule``).
        sparsity: how sparse attention and MLPs are in computed steps.
        tokens: which tokens are computed in token-wise steps.
        depth: anchors a ring holds.
        anchors: the dtype anchors are kept in, by torch's name; ``None``: each in the dtype of its slot.
        together: which ranks decide as one, see ``CompileOptions.decide_together``.
        program_passes: functions of your own, run on each program when all else is done.
    """

    scope: str
    first: int = 0
    last: int = 0
    probes: tuple[Probe, ...] = ()
    groups: tuple[Group, ...] = ()
    ranges: tuple[float, ...] = ()
    per_slot: bool = False
    parts: Bands | Channels | None = None
    partitions: KeyPartitions | None = None
    sparsity: Chipmunk | None = None
    tokens: Tokens | None = None
    depth: int = 1
    anchors: str | None = None
    together: bool | None = None
    program_passes: tuple[ProgramPass, ...] = ()

    @property
    def starts(self) -> tuple[int, ...]:
        """The block from which on each guard skips; one that measures after the step skips as late as any other."""
        measured = [probe.blocks if probe.signal is Signal.RESIDUAL else 0 for probe in self.probes if probe.before]
        starts = [max(self.first, count) for count in measured]
        last = max(starts, default=self.first)
        early = iter(starts)
        return tuple(next(early) if probe.before else last for probe in self.probes) or (self.first,)

    def range_of(self, block: int, blocks: int) -> int:
        """The range that ``block`` of a run of ``blocks`` is in."""
        return sum(self.start_of(place, blocks) <= block for place in range(len(self.ranges))) - 1

    def start_of(self, place: int, blocks: int) -> int:
        """The first block of range ``place`` in a run of ``blocks``."""
        return int(self.ranges[place] * blocks + 1e-9)  # a third of 9 blocks are 3

    @property
    def rows(self) -> int:
        """The rows of weights that a forecast of one slot reads."""
        return 1 if self.parts is None else self.parts.count

    @property
    def observed(self) -> bool:
        """Whether every step is computed and only measured."""
        return any(probe.measure is Measure.OBSERVE for probe in self.probes)

    @property
    def staged(self) -> bool:
        """Whether guards decide in the middle of a step."""
        return any(probe.before for probe in self.probes)

    @property
    def fixed_scope(self) -> bool:
        """Whether something is measured or told apart that only this scope has."""
        return (
            bool(self.probes or self.groups or self.per_slot or self.parts or self.partitions) or self.scope == NOWHERE
        )

    def at(self, scope: str) -> Layout:
        """The same at another scope: what only this scope has is left out."""
        if scope == self.scope:
            return self
        first, last = (self.first, self.last) if scope in WITH_ENDS else (0, 0)
        whole = {"probes": (), "groups": (), "ranges": (), "tokens": None, "per_slot": False, "parts": None}
        return replace(self, scope=scope, first=first, last=last, **whole)  # type: ignore[arg-type]  # of each field

    def __str__(self) -> str:
        kept = f" in {self.anchors}" if self.anchors else ""
        return f"scope {self.scope}, {self.depth} anchor{'s' * (self.depth > 1)}{kept}"
