"""What runs under many policies gave at one time, bit for bit: a change that means to change nothing is held to it.

``python -m tests.support.record`` writes ``tests/golden/record.json`` anew. Kernels differ between CPUs in their last
bits: where a run gives other bits here than in the record, its outputs are compared up to rounding instead.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hicache_compile import (
    DMD,
    FORA,
    PAB,
    SCM,
    AdaCache,
    Calibrated,
    Chipmunk,
    DBCache,
    DiCache,
    DiTango,
    EasyCache,
    FBCache,
    FBCacheTeaCache,
    FlexCache,
    HiCache,
    Interval,
    LeMiCa,
    MagCache,
    Newton,
    Policy,
    ResidualGate,
    Smoothing,
    SpeCa,
    Spectrum,
    StepMask,
    Table,
    TaylorSeer,
    TeaCache,
    Uncached,
    hicache_compile,
)
from tests.support.models import demo_inputs, flux_inputs, random_flux, trace

PATH = Path(__file__).parent.parent / "golden" / "record.json"
STEPS = 12
BACKENDS = ("eager", "aot_eager")
SPARSE = Chipmunk(top_keys=0.4, mlp_keys=0.3, full_every=3, first_dense=1, group=8, mlp_block=8)

Entry = dict[str, Any]
Case = tuple[Callable[[int], Policy], dict[str, Any]]


def _by_slot(slots: int) -> Table:
    """A table with weights of its own for each slot, for ``HiCache(interval=4)``'s anchors."""
    distances = tuple(0.001 * (b - a) for a in range(STEPS) for b in range(a + 1, STEPS))
    schedule = Interval(4)
    rows, anchors = [], list[int]()
    for step in range(STEPS):
        if schedule.computes(step, STEPS):
            anchors.insert(0, step)
        elif len(anchors) > 1:
            each = tuple((1.2 + 0.01 * slot, -0.2 - 0.01 * slot) for slot in range(slots))
            rows.append((step, tuple(anchors[:2]), each))
    return Table(STEPS, distances, tuple(rows), slots)


# By name: the policy, given how many slots the model has at scope module, and further options.
CASES: dict[str, Case] = {
    "uncached": (lambda _: Uncached(), {}),
    "hicache": (lambda _: HiCache(interval=3), {}),
    "hicache block": (lambda _: HiCache(interval=4, scope="block"), {}),
    "hicache stack": (lambda _: HiCache(interval=4, order=1, scope="stack"), {}),
    "hicache output": (lambda _: HiCache(interval=3, scope="output"), {}),
    "hicache stack, ends live": (lambda _: replace(HiCache(interval=3, scope="stack"), first=1), {}),
    "taylorseer": (lambda _: TaylorSeer(interval=3, order=2), {}),
    "fora": (lambda _: FORA(interval=3), {}),
    "newton": (lambda _: HiCache(interval=4, forecaster=Newton(2)), {}),
    "smoothed": (lambda _: replace(TaylorSeer(interval=3, order=2), smoothing=Smoothing()), {}),
    "scm": (lambda _: SCM("111010010100"), {}),
    "spectrum": (lambda _: Spectrum(warmup=3), {}),
    "dmd": (lambda _: HiCache(interval=2, scope="stack", forecaster=DMD()), {}),
    "residual gate": (lambda _: HiCache(interval=3, scope="stack", forecaster=ResidualGate(Newton(1))), {}),
    "by slot": (lambda slots: HiCache(interval=4, forecaster=Calibrated(_by_slot(slots))), {}),
    "by slot, other anchors": (lambda slots: HiCache(interval=5, forecaster=Calibrated(_by_slot(slots))), {}),
    "teacache": (lambda _: TeaCache(0.3, coefficients=(1.0, 0.0)), {}),
    "fbcache": (lambda _: FBCache(0.3), {}),
    "dbcache": (lambda _: DBCache(1, 1, 0.3, warmup=2), {}),
    "fbcache, teacache": (lambda _: FBCacheTeaCache(0.2, 0.2, coefficients=(1.0, 0.0)), {}),
    "easycache": (lambda _: EasyCache(0.2, warmup=2), {}),
    "dicache": (lambda _: DiCache(0.3), {}),
    "adacache": (lambda _: AdaCache(), {}),
    "speca": (lambda _: SpeCa(), {}),
    "magcache": (lambda _: MagCache(), {}),
    "lemica": (lambda _: LeMiCa(10), {}),
    "pab": (lambda _: PAB(cross=3, window=None, warmup=1), {}),
    "flexcache": (lambda _: FlexCache("teacache", warmup=2, cooldown=1), {}),
    "ditango": (lambda _: DiTango(0.5, warmup=2, cooldown=1), {}),
    "sparse": (lambda _: Uncached(), {"sparsity": SPARSE}),
    "hicache, sparse": (lambda _: HiCache(interval=3), {"sparsity": SPARSE}),
    "teacache, sparse": (lambda _: TeaCache(0.3, coefficients=(1.0, 0.0)), {"sparsity": SPARSE}),
    "hicache, offload": (lambda _: HiCache(interval=3), {"offload": True}),
    "hicache, budget": (lambda _: HiCache(interval=3), {"memory_budget": {"flux": 60_000, "demo": 700_000}}),
}


def model_of(name: str) -> tuple[nn.Module, dict[str, Tensor], int]:
    """The model, the inputs of a call, and how many slots it has at scope module."""
    if name == "demo":
        from hicache_compile.demo.sampling import load_model

        return load_model(), demo_inputs([3, 7]), 0
    return random_flux(2, 2), flux_inputs(), 0


def entry(model_name: str, backend: str, case: str) -> Entry:
    """What a run gives: a digest of its states, sums of them, and the counters of its report."""
    model, inputs, _ = model_of(model_name)
    made, options = CASES[case]
    slots = _slots(model, inputs) if case.startswith("by slot") else 0
    given = {name: value[model_name] if isinstance(value, dict) else value for name, value in options.items()}
    # The batch decides as one: what each of its samples decides by itself is what it decides alone (test_samples).
    compiled = hicache_compile(model, made(slots), backend=backend, together=True, **given)
    schedule = compiled.policy.schedule
    steps = len(schedule.mask) if isinstance(schedule, StepMask) else STEPS
    with compiled.trajectory(steps):
        states = trace(compiled, inputs, steps)
    report = compiled.report()
    return {
        "digest": hashlib.sha256(states.contiguous().numpy().tobytes()).hexdigest()[:32],
        "sums": [float(state.double().abs().sum()) for state in states[[0, steps // 2, -1]]],
        "decisions": report.decisions(),
        "syncs": report.host_syncs,
        "programs": report.programs,
        "recompiles": report.recompiles,
        "flops": [report.flops_full, report.flops_forecast, round(report.flops_speedup, 6)],
        "bytes": report.state_bytes,
        "rows": {name: [row.cells for row in rows] for name, rows in report.rows.items()},
    }


def _slots(model: nn.Module, inputs: Mapping[str, Tensor]) -> int:
    """Slots at scope module, counted by a first run."""
    compiled = hicache_compile(model, HiCache(interval=3), backend="eager")
    with compiled.trajectory(1):
        trace(compiled, dict(inputs), 1)
    forecast = compiled.graphs["forecast"]
    return len([node for node in forecast.graph.find_nodes(op="placeholder") if "slot" in node.meta])


def main() -> None:
    """Write the record: what is missing of it, or with names of cases those of them anew."""
    names = sys.argv[1:] or list(CASES)
    found = json.loads(PATH.read_text()) if PATH.exists() else {}
    for model in ("flux", "demo"):
        for backend in BACKENDS:
            for case in names:
                key = f"{model}, {backend}: {case}"
                if key in found and not sys.argv[1:]:
                    continue
                found[key] = entry(model, backend, case)
                print(key, found[key]["decisions"], found[key]["programs"], flush=True)
                PATH.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
