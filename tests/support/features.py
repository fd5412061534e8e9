"""The features of policies and options that a user may combine, one entry each, for the composition test."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from hicache_compile import (
    DMD,
    PAB,
    AdaCacheGuard,
    ByBand,
    ByChannel,
    Calibrated,
    Chipmunk,
    DiTango,
    FirstBlockGuard,
    Free,
    HiCache,
    Interval,
    KeySteps,
    MagCacheSchedule,
    Newton,
    PerBranch,
    PerRange,
    Policy,
    Reuse,
    SeaCacheGuard,
    Smoothing,
    SpeCaGuard,
    StepMask,
    SteppedHermite,
    Table,
    Taylor,
    TeaCacheGuard,
    Tokens,
)

STEPS = 6
SLOTS = {"module": 8, "block": 1, "stack": 1, "output": 1}  # of the model of the composition test, by scope
SPARSE = Chipmunk(top_keys=1.0, mlp_keys=1.0, full_every=3, first_dense=0, group=4, mlp_block=4)


@dataclass(frozen=True)
class Feature:
    """Something a user asks for: it changes the policy, or is an option of ``hicache_compile``, or a way to run.

    Args:
        name: as the table of docs shows it.
        family: two of one family exclude one another (two schedules).
        apply: the policy with this feature.
        options: of ``hicache_compile``.
        way: how it is run: ``call``, ``export`` or ``entry`` (``torch.compile``).
        graphs: in how many graphs the denoiser is captured.
    """

    name: str
    family: str
    apply: Callable[[dict[str, Any]], None] = lambda fields: None
    options: tuple[tuple[str, Any], ...] = ()
    way: str = "call"
    graphs: int = 1


def _set(**fields: Any) -> Callable[[dict[str, Any]], None]:
    return lambda policy: policy.update(fields)


def _guard(guard: Any) -> Callable[[dict[str, Any]], None]:
    def add(policy: dict[str, Any]) -> None:
        policy["guards"] = (*policy.get("guards", ()), guard)
        policy.setdefault("schedule", Free(1))

    return add


def _by_slot(policy: dict[str, Any]) -> None:
    policy["forecaster"] = "by slot"  # made once the scope is known


def _by_channel(policy: dict[str, Any]) -> None:
    policy["forecaster"] = "by channel"  # likewise


def swap_sums(program: fx.GraphModule) -> None:
    """A pass of a user's that changes no number: ``b + a`` in place of ``a + b``."""
    for node in program.graph.nodes:
        if node.target in (operator.add, torch.add) and all(isinstance(given, fx.Node) for given in node.args):
            node.args = node.args[::-1]


FEATURES = (
    Feature("interval", "schedule", _set(schedule=Interval(3, warmup=1))),
    Feature("mask", "schedule", _set(schedule=StepMask("110100"))),
    Feature("MagCache", "schedule", _set(schedule=MagCacheSchedule(0.5))),
    Feature("kinds", "schedule", _set(schedule=PAB(2, 2, 2, window=None, mlp=KeySteps((500,), None)).schedule)),
    Feature("branches", "schedule", _set(schedule=PerBranch({"default": Interval(3, 1)}, Interval(2, 1)))),
    Feature("ranges", "schedule", _set(schedule=PerRange((Interval(3, 1), Interval(2, 1))))),
    Feature("DiTango", "schedule", _set(schedule=DiTango(0.5, 1, 1).schedule)),
    Feature("TeaCache", "guard", _guard(TeaCacheGuard(0.4))),
    Feature("SeaCache", "filtering guard", _guard(SeaCacheGuard(0.6, grid=(2, 4)))),
    Feature("FBCache", "inner guard", _guard(FirstBlockGuard(0.2))),
    Feature("AdaCache", "late guard", _guard(AdaCacheGuard())),
    Feature("SpeCa", "verifying guard", _guard(SpeCaGuard())),
    Feature("Hermite", "forecaster", _set(forecaster=HiCache().forecaster)),
    Feature("many anchors", "forecaster", _set(forecaster=Newton(3))),
    Feature("by the run", "forecaster", _set(forecaster=SteppedHermite(1, (0.5, 0.6)))),
    Feature("measured", "forecaster", _set(forecaster=DMD(1, 3))),
    Feature("by slot", "forecaster", _by_slot),
    Feature("by band", "forecaster", _set(forecaster=ByBand(cutoff=0.5, grid=(2, 4)))),
    Feature("by channel", "forecaster", _by_channel),
    Feature("smoothing", "smoothing", _set(smoothing=Smoothing())),
    Feature("block", "scope", _set(scope="block")),
    Feature("stack", "scope", _set(scope="stack")),
    Feature("output", "scope", _set(scope="output")),
    Feature("first", "ends", _set(first=1)),
    Feature("tokens", "tokens", _set(tokens=Tokens("grid", 3, every=2))),
    Feature("sparsity", "sparsity", options=(("sparsity", SPARSE),)),
    Feature("offload", "offload", options=(("offload", True),)),
    Feature("budget", "budget", options=(("memory_budget", "1MiB"),)),
    Feature("bfloat16 anchors", "anchors", options=(("anchors", "bfloat16"),)),
    Feature("int8 anchors", "anchors", options=(("anchors", "int8"),)),
    Feature("aot_eager", "backend", options=(("backend", "aot_eager"),)),
    Feature("cond", "backend", options=(("backend", "cond_eager"),)),
    Feature("mode", "mode", options=(("mode", "default"), ("backend", "inductor"))),
    Feature("own pass", "own pass", options=(("program_passes", (swap_sums,)),)),
    Feature("export", "way", way="export"),
    Feature("torch.compile", "way", way="entry"),
    Feature("two graphs", "graphs", graphs=2),
)


def policy_of(features: tuple[Feature, ...]) -> Policy:
    """The policy that ``features`` ask for together."""
    fields: dict[str, Any] = {}
    for feature in features:
        feature.apply(fields)
    fields = {"schedule": Interval(3, warmup=1), "forecaster": Reuse(), "scope": "module"} | fields
    if fields["forecaster"] == "by slot":
        fields["forecaster"] = Calibrated(_table(_slots(fields, max(f.graphs for f in features))), 2)
    if fields["forecaster"] == "by channel":
        slots = range(_slots(fields, max(f.graphs for f in features)))
        chosen = tuple("".join(str((slot + channel) % 3) for channel in range(8)) for slot in slots)
        fields["forecaster"] = ByChannel((Reuse(), Taylor(1), HiCache().forecaster), chosen)
    return Policy(**fields)


def _slots(fields: dict[str, Any], graphs: int) -> int:
    """Slots of the four blocks; live ones have none."""
    if fields["scope"] != "module":
        return SLOTS[fields["scope"]] * graphs
    starts = Policy(**{**fields, "forecaster": Reuse()}).layout
    return SLOTS["module"] - 2 * graphs * (min(starts.starts) + starts.last)


def _table(slots: int) -> Table:
    distances = tuple(0.01 * (b - a) for a in range(STEPS) for b in range(a + 1, STEPS))
    rows = ((4, (3, 0), tuple((1.0 + 0.1 * slot, -0.1 * slot) for slot in range(slots))),)
    return Table(STEPS, distances, rows, slots)
