"""What happened: decisions, FLOPs, bytes, programs. Plain data."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from hicache_compile.errors import HiCacheError
from hicache_compile.inspection.decision_map import DecisionMap, merged, rows_of, strategy_of
from hicache_compile.inspection.decision_rows import Row
from hicache_compile.inspection.findings import Ran
from hicache_compile.inspection.tables import opaque_lines
from hicache_compile.operators.opaque import opaque_modules
from hicache_compile.passes import Choice
from hicache_compile.passes.work import Rewrite
from hicache_compile.policy.run import DEFAULT_CONTEXT
from hicache_compile.runtime.compiled_graph import CompiledGraph
from hicache_compile.runtime.nothing_cached import why_nothing
from hicache_compile.runtime.session import Session
from hicache_compile.runtime.step import Context


@dataclass(frozen=True, slots=True)
class Report:
    """Counters of one compiled denoiser in the calling thread.

    ``computed`` and ``forecast`` count the steps of the newest trajectory, over all its contexts; a step of which a
    part is forecast counts as forecast.
    ``flops_full`` and ``flops_forecast`` are those of one step, uncached and forecast, at the shape last seen (two for
    each multiply-add, as FlopCounterMode counts); where the samples of a batch decide each for itself, steps and FLOPs
    are those of a sample; ``flops_speedup`` is uncached steps over what that trajectory cost.
    ``collectives_full`` and ``collectives_forecast`` are the operators of one step that communicate with other ranks,
    ``bytes_sent_full`` and ``bytes_sent_forecast`` what this rank puts into them; FLOPs and bytes are of this rank too.
    ``state_bytes`` are the bytes of the live rings, ``programs`` the lowered programs, ``recompiles`` the
    captures beyond one for each graph and set of input shapes, ``host_syncs`` the values read back from a
    device, ``memory`` what a memory budget made of the policy. ``strategy`` names what decides, ``rows`` what happened
    to each site in each step of the newest trajectory, by context (``groups``: rows that belong to one attention).
    ``graph_breaks`` are the graphs of a call beyond one, ``nonfinite_probes`` the measurements that were no finite
    number, ``opaque`` the submodules that are one operator each because Dynamo cannot trace them, with the code that it
    cannot, ``refused`` the sites that are not cached with the reason, ``history`` the decisions of the remembered
    trajectories by context.
    """

    computed: int
    forecast: int
    flops_full: int
    flops_forecast: int
    flops_speedup: float
    state_bytes: int
    programs: int
    recompiles: int
    graph_breaks: int
    host_syncs: int
    collectives_full: int
    collectives_forecast: int
    bytes_sent_full: int
    bytes_sent_forecast: int
    nonfinite_probes: int
    refused: list[tuple[str, str]]
    memory: str = ""
    history: dict[str, list[str]] = field(default_factory=dict)
    strategy: str = ""
    rows: dict[str, list[Row]] = field(default_factory=dict)
    groups: int = 1
    opaque: list[tuple[str, str]] = field(default_factory=list)

    def __str__(self) -> str:
        """The newest trajectory in a few lines: decisions by context, FLOPs, memory, programs, what is not cached."""
        runs = [f"{name}: {letters[-1]}" for name, letters in self.history.items() if letters]
        steps = (
            f"{self.computed} of {self.computed + self.forecast} steps computed, {self.flops_speedup:.2f}x fewer FLOPs"
        )
        counts = (
            f"{self.state_bytes / 2**20:.1f} MiB of anchors, {self.programs} programs, {self.recompiles} recompiles"
        )
        refused = [f"not cached: {site}: {reason}" for site, reason in self.refused]
        return "\n".join([*(runs or ["no run yet"]), steps, counts, *opaque_lines(self.opaque), *refused])

    def decisions(self, context: str = DEFAULT_CONTEXT, trajectory: int = -1) -> str:
        """One letter a step of a trajectory (by default the newest): ``F`` full, ``S`` computed
        sparsely, ``.`` forecast, ``s`` ended in a
        forecast by an inner guard, ``p`` some kinds of sites forecast, ``t`` some tokens computed.

        Where every call was made in a named context, ``"default"`` is the first of them.

        Raises:
            HiCacheError: no such context or trajectory.
        """
        if context == DEFAULT_CONTEXT and context not in self.history:
            context = next(iter(self.history), context)
        if context not in self.history:
            if not self.history:
                if self.refused:
                    raise HiCacheError("decisions(): no step was counted: nothing is cached, as `refused` says")
                raise HiCacheError("decisions(): there was no run yet: must be called after a step")
            raise HiCacheError(f"decisions.context = {context!r}: must be one of {', '.join(self.history)}")
        runs = self.history[context]
        if not -len(runs) <= trajectory < len(runs):
            raise HiCacheError(f"decisions.trajectory = {trajectory}: must be within the {len(runs)} remembered")
        return runs[trajectory]

    def map(self, context: str | None = None) -> DecisionMap:
        """Step x site (x group) of the newest trajectory: ``.png(path)`` draws it, ``.ppm(folder)`` as FlexCache does.

        Args:
            context: whose; by default the first one's, and of DiTango all, merged.

        Raises:
            HiCacheError: there is no such context, or none at all.
        """
        if not self.rows or (context is not None and context not in self.rows):
            known = ", ".join(self.rows) or "none yet"
            raise HiCacheError(f"map.context = {context!r}: must be one of {known}")
        chosen = {context: self.rows[context]} if context is not None else self.rows
        if context is None and self.strategy != "ditango":
            chosen = dict(list(self.rows.items())[:1])
        return DecisionMap(self.strategy, merged(chosen), self.groups)

    def ran(self) -> Ran | None:
        """The letters and cells of the newest trajectory, or None where there was none."""
        letters = {name: self.history[name][-1] for name in self.rows if self.history.get(name)}
        return Ran(self.strategy, letters, self.rows, self.groups) if any(letters.values()) else None

    def to_json(self) -> str:
        """The same as JSON."""
        return json.dumps(asdict(self), indent=2)


def gather(session: Session, graphs: Sequence[CompiledGraph], plain: Sequence[Rewrite] = ()) -> Report:
    """The report of ``session``'s thread over the captured ``graphs``; ``plain``: of those that run outside of steps,
    because nothing of them is cached.
    """
    contexts = list(session.contexts.values())
    states = [state for context in contexts for state in context.states.values()]
    deciders = [state.decider for state in states if state.decider is not None]
    session.syncs += sum(decider.settle() for decider in deciders)
    called = [graph for graph in session.last_graphs if isinstance(graph, CompiledGraph) and graph in session.live]
    live = [session.live[graph] for graph in dict.fromkeys(called)]
    newest = max((context.trajectory for context in contexts), default=-1)
    current = [context for context in contexts if context.trajectory == newest]
    letters = "".join(context.letters() for context in current)
    computed = letters.count("F") + letters.count("S")
    full = sum(graph.flops(session.live[graph].uncached) for graph in called)
    cheap = sum(graph.flops(Choice.FORECAST) for graph in called)
    computing, forecasting = (
        [part for graph in called for part in graph.costs(choice)] for choice in (Choice.FULL, Choice.FORECAST)
    )
    spent = sum(
        count * graph.flops(choice, reused)
        for context in current
        for (graph, choice, reused), count in context.choices.items()
        if isinstance(graph, CompiledGraph)
    )
    policy = current[0].policy if current else session.shared.policy
    partitions = policy.layout.partitions
    return Report(
        computed=computed,
        forecast=len(letters) - computed,
        flops_full=full,
        flops_forecast=cheap,
        flops_speedup=len(letters) * full / spent if spent else 1.0,
        state_bytes=sum(
            state.nbytes
            for each in session.shared.sessions.all()
            for context in list(each.contexts.values())
            for state in list(context.states.values())
        ),
        programs=sum(len(made.programs) for graph in graphs for made in graph.program_sets.values()),
        recompiles=len(graphs) - len({graph.signature for graph in graphs}),
        graph_breaks=max(0, session.most_graphs - 1),
        host_syncs=session.syncs,
        collectives_full=sum(part.collectives for part in computing),
        collectives_forecast=sum(part.collectives for part in forecasting),
        bytes_sent_full=sum(part.bytes_sent for part in computing),
        bytes_sent_forecast=sum(part.bytes_sent for part in forecasting),
        nonfinite_probes=sum(decider.nonfinite for decider in deciders),
        refused=_refused(session, [*(one.programs.rewrite for one in live), *([] if graphs else plain)]),
        memory="; ".join(one.why for one in live if one.why),
        strategy=strategy_of(policy),
        rows={context.name: _rows(context, session) for context in current},
        groups=partitions.groups if partitions else 1,
        opaque=opaque_modules([name for graph in called for name in graph.opaque]),
        history={context.name: ["".join(run) for run in context.history] for context in contexts},
    )


def _refused(session: Session, rewrites: Sequence[Rewrite]) -> list[tuple[str, str]]:
    """What is not cached and why; of the whole denoiser where nothing is."""
    model = session.shared.model() if session.shared.model is not None else None
    why = why_nothing(rewrites, model)
    sites = sorted({(entry.site, entry.reason) for made in rewrites for entry in made.refused})
    said = any(reason in why for _, reason in sites)
    return [("the denoiser", f"nothing is cached: {why}"), *sites] if why and not said else sites


def _rows(context: Context, session: Session) -> list[Row]:
    """What happened to each site in the newest run of ``context``, over all graphs of a call."""
    rows: list[Row] = []
    for place, state in sorted(context.states.items()):
        graph = next((graph for number, graph in enumerate(session.last_graphs, 1) if number == place), None)
        if state.decider is None or state.run != context.trajectory or graph not in session.live:
            continue
        rows += rows_of(session.live[graph].programs.rewrite, state.decider, context.policy, context.letters())
    return rows
