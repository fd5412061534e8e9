"""What is asked for besides the denoiser, checked in one place for every way in."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch

from hicache_compile.backends import BACKENDS, keeps_both_branches, takes_mode
from hicache_compile.errors import HiCacheError, one_of, true_or_false
from hicache_compile.internals import list_mode_options
from hicache_compile.operators.collectives import require_ranks
from hicache_compile.policy.compatibility import Trait, check
from hicache_compile.policy.json_codec import as_policy
from hicache_compile.policy.layout import ANCHORS, QUANTISED, Layout
from hicache_compile.policy.packs import IN_FULL, Contract, Entry, Signature, as_pack, is_pack
from hicache_compile.policy.plain_data import plain_arguments
from hicache_compile.policy.policy import Policy
from hicache_compile.policy.presets import HiCache, Uncached
from hicache_compile.policy.program_passes import ProgramPass, as_program_passes
from hicache_compile.policy.published import PublishedModel
from hicache_compile.policy.sparsity.chipmunk import Chipmunk, as_sparsity
from hicache_compile.runtime.following.pipeline_calls import WatchedPipeline
from hicache_compile.runtime.replay.attributes import Attributes
from hicache_compile.runtime.replay.replay import registrations
from hicache_compile.runtime.storage.budget import parse_bytes
from hicache_compile.runtime.storage.pages import Pools

log = logging.getLogger(__name__)

OWNER = "hicache_compile"
PROMISES = ("max_error", "max_seconds")


@dataclass(frozen=True, slots=True)
class CompileOptions:
    """The options of ``hicache_compile``, as they are used.

    Args:
        policy: of the first trajectory.
        backend, mode, dynamic: how programs are compiled.
        sparsity: of computed steps.
        memory_budget: bytes of anchors on the device, over all contexts.
        offload: anchors are kept on the CPU.
        anchors: the dtype they are kept in, by torch's name; ``None``: their own.
        decide_together: which ranks of ``torch.distributed`` run one sampling: ``None``: those that the denoiser's
            graph has collectives with; all; or each by itself.
        together: the samples of a batch decide as one.
        program_passes: of your own, run on each program before it is compiled.
        contract: what was promised, where the policy is one of a pack.
    """

    policy: Policy
    backend: str = "inductor"
    sparsity: Chipmunk | None = None
    mode: str | None = None
    dynamic: bool | None = None
    memory_budget: int | None = None
    offload: bool = False
    anchors: str | None = None
    decide_together: bool | None = None
    together: bool = False
    program_passes: tuple[ProgramPass, ...] = ()
    contract: Contract | None = None

    @classmethod
    @plain_arguments
    def of(cls, policy: Any = None, **given: Any) -> CompileOptions:
        """The options in the forms a caller may give them.

        Raises:
            HiCacheError: one of them is not what is allowed, or two cannot be combined.
        """
        sparsity = as_sparsity(given.pop("sparsity", None))
        contract = _contract(policy, {name: given.pop(name, None) for name in PROMISES})
        policy = policy if contract is None else contract.entry.policy
        wanted = Uncached() if policy is None and sparsity is not None else as_policy(policy)
        for name in ("sparsity", "memory_budget", "anchors", "program_passes"):
            value = sparsity if name == "sparsity" else given.get(name) or None
            if contract is not None and value is not None:
                raise HiCacheError(f"{OWNER}.{name} = {value!r}: must be None with a pack, measured without it")
        budget = parse_bytes(given.pop("memory_budget", None))
        own = as_program_passes(OWNER, given.pop("program_passes", ()))
        options = cls(wanted, sparsity=sparsity, memory_budget=budget, contract=contract, program_passes=own, **given)
        one_of(OWNER, "backend", options.backend, BACKENDS)
        if options.mode is not None and not takes_mode(options.backend):
            raise HiCacheError(f"{OWNER}.mode = {options.mode!r}: must be None with backend {options.backend!r}")
        if options.mode is not None:
            one_of(OWNER, "mode", options.mode, list_mode_options())
        if not isinstance(options.dynamic, bool | None):
            raise HiCacheError(f"{OWNER}.dynamic = {options.dynamic!r}: must be None, True or False")
        true_or_false(OWNER, "offload", options.offload)
        if options.anchors is not None:
            one_of(OWNER, "anchors", options.anchors, ANCHORS)
        if options.decide_together is not None:
            true_or_false(OWNER, "decide_together", options.decide_together)
        true_or_false(OWNER, "together", options.together)
        for each in (wanted, *(entry.policy for entry in (contract.pack.entries if contract else ()))):
            options.check(each)
        return options

    @classmethod
    def from_mapping(cls, options: Mapping[str, Any], mode: str | None) -> CompileOptions:
        """The options of ``torch.compile(backend="hicache", mode=..., options=...)``.

        Raises:
            HiCacheError: an unknown key, or see ``of``.
        """
        known = [field.name for field in fields(cls) if field.name not in ("dynamic", "contract")]
        known += PROMISES
        for name in options:
            if name not in known:
                raise HiCacheError(f"options[{name!r}]: must be one of {', '.join(known)}")
        return cls.of(**{"policy": HiCache(), "mode": mode, **options})

    @property
    def cond(self) -> bool:
        """Whether one program holds every branch."""
        return keeps_both_branches(self.backend)

    @property
    def quantised_on_the_host(self) -> torch.dtype | None:
        """The dtype that offloaded anchors are quantised to; the one row on the device is not."""
        return getattr(torch, self.anchors) if self.offload and self.anchors in QUANTISED else None

    def check(self, policy: Policy) -> None:
        """Raise unless ``policy`` can run with these options."""
        check(OWNER, policy.traits | self._traits(policy))
        partitions = policy.layout.partitions
        if partitions is not None and partitions.distributed:
            ranks = require_ranks("DiTangoSchedule.distributed")
            if partitions.partitions not in (0, ranks) or ranks % partitions.groups or ranks < 2:
                raise HiCacheError(
                    f"DiTangoSchedule.partitions = {partitions.partitions or None}, groups = {partitions.groups}: must "
                    f"be the {ranks} ranks, at least 2, in equal groups"
                )

    def check_model(self, model: object) -> None:
        """Raise where the policy is of a pack that was measured on another model than ``model``."""
        if self.contract is not None:
            self.contract.pack.signature.check(Signature.of(model))

    def _traits(self, policy: Policy) -> frozenset[Trait]:
        sparse = self.sparsity is not None
        own = {
            Trait.SPARSITY: sparse,
            Trait.SPARSE_ATTENTION: sparse and self.sparsity.top_keys is not None,  # type: ignore[union-attr]
            Trait.OFFLOAD: self.offload,
            Trait.ANCHOR_DTYPE: self.anchors is not None,
            Trait.GRAPH_DECIDES: self.cond and bool(policy.guards),
        }
        return frozenset(trait for trait, has in own.items() if has)

    def layout(self, policy: Policy) -> Layout:
        """The layout of ``policy`` with these options, before a memory budget."""
        on_device = None if self.quantised_on_the_host else self.anchors
        layout = replace(policy.layout, sparsity=self.sparsity, anchors=on_device, together=self.decide_together)
        layout = replace(layout, program_passes=self.program_passes)
        if layout.partitions is not None and layout.partitions.distributed:
            ranks = require_ranks("DiTangoSchedule.distributed")
            layout = replace(layout, partitions=replace(layout.partitions, partitions=ranks))
        return layout


def _contract(policy: Any, promise: dict[str, float | None]) -> Contract | None:
    """The contract of a pack and a promise; ``None``: ``policy`` is no pack."""
    asked = any(value is not None for value in promise.values())
    if is_pack(policy) or (asked and str(policy).endswith(".json")):  # a file that is none says so
        made = Contract(as_pack(policy), **promise)
        warn_if_in_full(made.entry, promise)
        return made
    for name, value in promise.items():
        if value is not None:
            raise HiCacheError(
                f"{OWNER}.{name} = {value!r}: must be given with a pack as policy, which says what each policy keeps; "
                "`hicache eval --pack` measures one"
            )
    return None


def warn_if_in_full(entry: Entry, promise: dict[str, float | None]) -> None:
    """``entry`` was picked for ``promise``: it may be that of runs without a cache."""
    if entry.name == IN_FULL:
        log.warning("no policy of the pack keeps the promise in less time, so every step is computed: %s", promise)


@dataclass(slots=True)
class Shared:
    """What the threads of one compiled denoiser share and what changes."""

    policy: Policy  # of the next trajectory
    parameters_epoch: int = 0  # counts changes of parameters that their versions do not show
    touched: int = 0  # counts what may have changed the denoiser in another way
    model: Callable[[], torch.nn.Module | None] | None = None  # weak
    pipelines: list[WatchedPipeline] = field(default_factory=list)  # that the denoiser is a component of
    said: set[str] = field(default_factory=set)  # warnings
    lock: threading.Lock = field(default_factory=threading.Lock)  # of what begins a run, and of what frees anchors
    sessions: Any = None  # of the threads
    attributes: tuple[int, Attributes, Hashable] | None = None  # of its modules; found after so many registrations
    pools: Pools = field(default_factory=Pools)  # of rows of several runs

    def changes(self) -> Hashable:
        """Different when the denoiser may have changed."""
        registered = registrations()
        model = self.model() if self.model is not None else None
        before, found, known = self.attributes or (None, None, None)
        state = found.state() if found is not None else None
        if model is not None and (before != registered or state != known):  # other lists and processors may be held now
            found = Attributes(model)
            state = found.state()
            self.attributes = registered, found, state
        return self.parameters_epoch, self.touched, registered, state

    def watch(self, pipeline: Any, begun: bool = False) -> WatchedPipeline | None:
        """Follow the runs of ``pipeline``, if there is one. ``begun``: its call is running."""
        if pipeline is None:
            return None
        for each in self.pipelines:
            if each.pipeline is pipeline:
                return each
        self.pipelines.append(WatchedPipeline(pipeline, begun))
        return self.pipelines[-1]

    def watched(self) -> Sequence[WatchedPipeline]:
        """The pipelines that still exist."""
        if any(each.pipeline is None for each in self.pipelines):
            self.pipelines = [each for each in self.pipelines if each.pipeline is not None]
        return self.pipelines

    def fitted(self, policy: Policy, model: object | None) -> Policy:
        """``policy`` with what is published for ``model`` where it leaves values open; one warning where nothing is."""
        if model is None:  # not known, or a function
            return policy
        known = PublishedModel.of(model)
        found = policy.for_model(known)
        for text in known.missing:
            self.warn_once(text)
        return found

    def warn_once(self, message: str, *values: object) -> None:
        """Log the warning ``message`` for the first time only."""
        if message not in self.said:
            self.said.add(message)
            log.warning(message, *values)
