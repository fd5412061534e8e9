"""What cannot be combined, as one table; everything else can.

Each part of a policy says which ``traits`` it has, and so does each option and each way to run a policy. A pair of
traits that stands in ``CONFLICTS`` is refused with the reason.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from hicache_compile.errors import HiCacheError
from hicache_compile.policy.str_enum import StrEnum


class Trait(StrEnum):
    """What a part needs or does that another may not allow. The text names it in messages."""

    SITES_APART = "a schedule that decides about sites apart (PerKind, PerRange, DiTangoSchedule)"
    KINDS_APART = "what tells kinds of sites apart (PerKind, DiTangoSchedule, Tokens)"
    PARTITIONS = "attention over partitions of the keys (DiTangoSchedule)"
    GUARDS = "guards"
    REUSES = "plain reuse"
    FORECASTS = "a forecaster other than Reuse()"
    READS_ANCHORS = "a forecaster that is fitted to the anchors (DMD, ResidualGate)"
    PER_SLOT = "a forecaster with weights for each slot"
    IN_PARTS = "a forecaster with weights for each part of a slot (ByBand, ByChannel)"
    BY_RUN = "a forecaster that goes by the steps of the run"
    MANY_ANCHORS = "a forecaster that reads more than 3 anchors"
    BLOCKS_APART = "blocks that are told apart (first, last, PerRange)"
    NOT_MODULE = "a scope other than 'module'"
    NO_BLOCKS = "a scope that cuts no blocks ('output', 'none')"
    SPARSITY = "sparsity"
    SPARSE_ATTENTION = "sparse attention"
    OFFLOAD = "offload=True"
    ANCHOR_DTYPE = "anchors in a dtype of their own"
    GRAPH_DECIDES = "what is decided or measured in the graph (under a cond backend, in an export)"
    TOKENS = "tokens that are computed in skipped steps"
    EXPORTED = "an exported graph"


@dataclass(frozen=True, slots=True)
class Conflict:
    """Two traits that cannot be combined, and the reason, which says what to do."""

    one: Trait
    other: Trait
    reason: str


CONFLICTS = (
    Conflict(
        Trait.KINDS_APART,
        Trait.NOT_MODULE,
        "only at scope 'module' are attention and MLPs sites of their own: use scope='module'",
    ),
    Conflict(
        Trait.PARTITIONS,
        Trait.FORECASTS,
        "softmax makes attention states not linear, so they are only reused: use forecaster=Reuse()",
    ),
    Conflict(
        Trait.PARTITIONS,
        Trait.GUARDS,
        "DiTango decides for each group of keys by its own measurements: use one of the two",
    ),
    Conflict(
        Trait.PARTITIONS,
        Trait.SPARSE_ATTENTION,
        "both rewrite the same attentions: use Chipmunk(top_keys=None) for sparse MLPs alone",
    ),
    Conflict(
        Trait.PARTITIONS,
        Trait.ANCHOR_DTYPE,
        "what attention keeps of each group of keys has the dtype it is added up in: leave anchors out",
    ),
    Conflict(
        Trait.BLOCKS_APART, Trait.NO_BLOCKS, "it has no sites of single blocks: use scope 'module', 'block' or 'stack'"
    ),
    Conflict(
        Trait.GRAPH_DECIDES,
        Trait.OFFLOAD,
        "the host does not see which anchors a step needs: use a backend without cond",
    ),
    Conflict(
        Trait.GRAPH_DECIDES,
        Trait.READS_ANCHORS,
        "the host does not see the anchors: use a forecaster that goes by steps (Hermite, Taylor, Newton)",
    ),
    Conflict(
        Trait.GRAPH_DECIDES,
        Trait.MANY_ANCHORS,
        "the table of weights over all gaps between steps grows with 64 ** anchors: use order 2 or less",
    ),
    Conflict(
        Trait.GRAPH_DECIDES,
        Trait.BY_RUN,
        "the graph knows gaps between steps, not the run: use a forecaster that goes by gaps (Hermite, Taylor, Newton)",
    ),
    Conflict(
        Trait.GRAPH_DECIDES,
        Trait.SPARSITY,
        "how sparse a step is depends on decisions that the host does not see: use a backend without cond",
    ),
    Conflict(
        Trait.GRAPH_DECIDES,
        Trait.TOKENS,
        "how many steps were skipped in a row is not known in the graph: use a backend without cond",
    ),
    Conflict(
        Trait.SITES_APART,
        Trait.TOKENS,
        "sites that are decided each by itself have no skipped step in common: use one of the two",
    ),
    Conflict(
        Trait.EXPORTED,
        Trait.PARTITIONS,
        "its plan is made by the host from what each step measures: run it in Python",
    ),
)


def check(owner: str, traits: Iterable[Trait]) -> None:
    """Raise unless all ``traits`` can be combined.

    Args:
        owner: what is being made, for the message.

    Raises:
        HiCacheError: two of them conflict; the message has both and the reason.
    """
    given = frozenset(traits)
    for conflict in CONFLICTS:
        if {conflict.one, conflict.other} <= given:
            raise HiCacheError(f"{owner}: {conflict.one} cannot be combined with {conflict.other}; {conflict.reason}")


def traits_of(part: object) -> frozenset[Trait]:
    """What ``part`` says of itself; of your own parts, nothing."""
    found: frozenset[Trait] = getattr(part, "traits", frozenset())
    return found
