"""probed: what the guards measure is computed in the graph and written into memory that lasts from step to step.

before   m = modulated(x, t);  y = blocks(m, ...)
after    m = modulated(x, t);  keep(measured_0, change(m, before_0));  keep(before_0, m);  y = blocks(m, ...)

Requires   runs of blocks on a working copy of the captured graph
Ensures    the denoiser's own outputs are untouched; new inputs ``memory:...``; every write has
           ``meta["probe"]``: ``every`` step, or only ``computed`` ones, and ``meta["stage"]``: its guard
Raises     HiCacheError where the denoiser has no such signal
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from hicache_compile.errors import HiCacheError
from hicache_compile.operators import measurements
from hicache_compile.passes.analysis.signals import Signals
from hicache_compile.passes.graph import ops
from hicache_compile.passes.graph.graphs import call_node, fake_mode_of
from hicache_compile.passes.graph.inputs import MEASURED, add_input, memory
from hicache_compile.passes.work import Work
from hicache_compile.policy.guards import Measure, Probe, Signal, SpectralFilter


def insert_guard_probes(work: Work) -> int:
    """Write the probes of the layout; returns how many. ``work.verified``: what forecasts are verified against, by the
    number of its guard.

    Runs that a decision reads (one that refines the text) are computed before it in every step, so they are no longer
    among ``work.runs``.
    """
    if not work.runs:
        return 0
    signals = Signals(work.module, work.runs)
    for stage, probe in enumerate(work.layout.probes):
        writer = ProbeWriter(work.module.graph, stage, work.ranks)
        if probe.measure is Measure.VERIFY:
            work.verified[stage] = writer.value(torch.sub, *signals.last(probe.blocks))
        elif probe.signal is not Signal.SITES:
            _WRITERS[probe.measure](writer, probe, signals)
    early = [probe.blocks for probe in work.layout.probes if probe.before]
    if early:
        read = signals.read(max(1, *early))
        work.runs = [run for run in signals.runs if run not in read]
    work.module.recompile()
    return len(work.layout.probes)


class ProbeWriter:
    """Adds the nodes of one guard's probe to a graph, each as early as it can run; ``ranks``: what is measured is of
    the parts that all of them have."""

    def __init__(self, graph: fx.Graph, stage: int, ranks: tuple[str, ...]) -> None:
        self.graph = graph
        self.stage = stage
        self.ranks = ranks

    def value(self, function: Callable[..., Any], *args: Any) -> fx.Node:
        """A call of ``function``."""
        joined = self.ranks and function in measurements.OVER_RANKS
        with self.graph.inserting_after(self._latest(args)):
            kwargs = {"ranks": self.ranks} if joined else {}
            return call_node(self.graph, function, args, kwargs, calls=(), probe="value")

    def memory(self, name: str, like: fx.Node) -> fx.Node:
        """An input that lasts from step to step, made zero at the start of a run, of the form of ``like``."""
        example = ops.value(like)
        with fake_mode_of(example):
            made = torch.empty(example.shape, dtype=example.dtype, device=example.device)
        return add_input(self.graph, memory(name, self.stage), made)

    def keep(self, memory: fx.Node, value: fx.Node, when: str, after: fx.Node | None = None) -> fx.Node:
        """Write ``value`` into ``memory``, in ``every`` step or where it is ``computed``; not before ``after``."""
        with self.graph.inserting_after(self._latest([memory, value, *([after] if after else [])])):
            node = self.graph.call_function(measurements.keep, (memory, value))
        node.meta = {"path": "", "calls": (), "side_effect": True, "probe": when, "stage": self.stage}
        return node

    def measured(self, function: Callable[..., Any], *args: fx.Node, when: str = "every") -> fx.Node:
        """Measure: the value of ``function`` goes where the host reads it. Returns the node that wrote it."""
        found = self.value(function, *args)
        return self.keep(self.memory(MEASURED, found), found, when)

    def _latest(self, args: Sequence[Any]) -> fx.Node:
        """The last of ``args`` in the graph; the last of the inputs where they are inputs."""
        given = {argument for argument in args if isinstance(argument, fx.Node)}
        given.add(self.graph.find_nodes(op="placeholder")[-1])
        return next(node for node in reversed(self.graph.nodes) if node in given)


def _signal(writer: ProbeWriter, probe: Probe, signals: Signals, blocks: int) -> fx.Node:
    if probe.signal is Signal.RESIDUAL:
        return writer.value(torch.sub, *signals.after(blocks))
    return signals.find(probe.signal)


def _change(writer: ProbeWriter, probe: Probe, signals: Signals) -> None:
    signal = _signal(writer, probe, signals, probe.blocks)
    if probe.downsample > 1:
        signal = writer.value(_every, signal, probe.downsample)
    if probe.filter is not None:
        signal = _filtered(writer, probe.filter, signal, signals)
    before = writer.memory("before", signal)
    read = writer.measured(measurements.change, signal, before)
    writer.keep(before, signal, "every" if probe.every_step else "computed", after=read)


def _filtered(writer: ProbeWriter, spectral: SpectralFilter, signal: fx.Node, signals: Signals) -> fx.Node:
    shape, grid = tuple(ops.value(signal).shape), spectral.grid
    if len(shape) == 3 and (grid is None or math.prod(grid) != shape[1]):
        raise HiCacheError(
            f"SeaCacheGuard.grid = {grid!r}: must be (H, W) or (T, H, W) of the {shape[1]} tokens of the signal"
        )
    times = signals.times()
    if not times:
        raise HiCacheError("SeaCacheGuard reads sigma off the denoiser's time input: its graph must have one")
    tokens = grid if len(shape) == 3 else None
    return writer.value(measurements.low_passed, signal, times[0], spectral.exponent, tokens, spectral.rising)


def _rate(writer: ProbeWriter, probe: Probe, signals: Signals) -> None:
    x, y = signals.noise(), signals.output()
    x_before, x_computed = writer.memory("x_before", x), writer.memory("x_computed", x)
    y_computed = writer.memory("y_computed", y)
    now = writer.value(measurements.rate_factor, y, y_computed, x, x_computed)
    size = writer.value(measurements.size, y)
    factor, output_size = writer.memory("factor", now), writer.memory("output_size", size)
    read = writer.measured(measurements.rate, x, x_before, factor, output_size)
    writer.keep(x_before, x, "every", after=read)
    for kept, value in ((factor, now), (output_size, size)):
        writer.keep(kept, value, "computed")
    for kept, value in ((x_computed, x), (y_computed, y)):
        writer.keep(kept, value, "computed", after=now)


def _probed(writer: ProbeWriter, probe: Probe, signals: Signals) -> None:
    end, start = signals.after(probe.blocks)
    residual = writer.value(torch.sub, end, start)
    before = writer.memory("before", end)
    # The last two in one memory: as two, one copied from the other, Inductor writes the newer before it is read.
    pair = writer.memory("residuals", writer.value(measurements.shifted, residual, residual))
    newer, older = writer.value(measurements.newer, pair), writer.value(measurements.older, pair)
    if probe.measure is Measure.END:
        read = writer.measured(measurements.end, end, before, residual, newer, older)
    else:
        start_before = writer.memory("start_before", start)
        read = writer.measured(measurements.excess, end, before, start, start_before, residual, newer, older)
        writer.keep(start_before, start, "every", after=read)
    writer.keep(before, end, "every", after=read)
    writer.keep(pair, writer.value(measurements.shifted, residual, newer), "computed", after=read)


def _observe(writer: ProbeWriter, probe: Probe, signals: Signals) -> None:
    end, start = signals.last(len(signals.blocks))
    residual = writer.value(torch.sub, end, start)
    looked_into = [signals.after(count)[0] for count in range(1, min(probe.blocks, len(signals.blocks) - 1) + 1)]
    watched = [_signal(writer, probe, signals, 1), end, residual, *looked_into]
    before = [writer.memory(f"before_{number}", value) for number, value in enumerate(watched)]
    measures = [
        measurements.change,
        measurements.change,
        measurements.magnitude,
        *(measurements.change for _ in looked_into),
    ]
    made = [writer.value(*each) for each in zip(measures, watched, before, strict=True)]
    read = writer.measured(measurements.together, *made)
    for kept, value in zip(before, watched, strict=True):
        writer.keep(kept, value, "every", after=read)


_WRITERS = {
    Measure.CHANGE: _change,
    Measure.RATE: _rate,
    Measure.END: _probed,
    Measure.EXCESS: _probed,
    Measure.OBSERVE: _observe,
}


def _every(value: torch.Tensor, step: int) -> torch.Tensor:
    """Every ``step``-th channel."""
    return value[..., ::step]
