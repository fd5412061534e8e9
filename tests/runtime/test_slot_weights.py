"""Weights of its own for each slot: the same graph with one more index, against hooks on the plain model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import expecttest
import numpy as np
import pytest
import torch
from torch import Tensor

from hicache_compile import (
    Calibrated,
    Chipmunk,
    HiCacheError,
    Interval,
    Policy,
    StepMask,
    Table,
    TeaCacheGuard,
    hicache_compile,
)
from hicache_compile.passes.graph.inputs import is_ring
from hicache_compile.policy.json_codec import from_json, to_json
from hicache_compile.tune import measure, with_weights
from tests.support.models import ToyDiT, flux_inputs, random_flux, trace

STEPS, SLOTS = 8, 6
MASK = "11001000"
RNG = np.random.default_rng(0)


def row(step: int, anchors: tuple[int, ...], slots: int = SLOTS) -> tuple[int, tuple[int, ...], Any]:
    older = RNG.normal(size=(slots, len(anchors) - 1)) * 0.3
    return step, anchors, tuple((1.0 - float(one.sum()), *one.tolist()) for one in older)


DISTANCES = tuple(float((i - j) ** 2) for i in range(STEPS) for j in range(i + 1, STEPS))
ROWS = tuple(row(s, (1, 0)) for s in (2, 3)) + tuple(row(s, (4, 1, 0)) for s in (5, 6, 7))
TABLE = Table(STEPS, DISTANCES, ROWS, SLOTS)
POLICY = Policy(StepMask(MASK), Calibrated(TABLE, 3), "module")


def walk(denoiser: Any) -> Tensor:
    x = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), denoiser.trajectory(STEPS):
        for step in range(STEPS):
            x = x - denoiser(x, torch.full((2,), 1 - step / STEPS)) / STEPS
    return x


def oracle(rows: dict[int, Any]) -> Tensor:
    """The same run by hooks: each attention's and each MLP's output is its own weighted sum."""
    model, kept, at = ToyDiT(), [[] for _ in range(SLOTS)], [0]  # type: ignore[var-annotated]
    modules = [module for layer in model.layers for module in (layer.proj, layer.down)]

    def hook(slot: int) -> Any:
        def replaced(module: Any, given: Any, output: Tensor) -> Tensor:
            if MASK[at[0]] == "1":
                kept[slot].insert(0, output)
                return output
            return sum(w * a for w, a in zip(rows[at[0]][slot], kept[slot], strict=False))  # type: ignore[return-value]

        return replaced

    for slot, module in enumerate(modules):
        module.register_forward_hook(hook(slot))
    x = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for step in range(STEPS):
            at[0] = step
            x = x - model(x, torch.full((2,), 1 - step / STEPS)) / STEPS
    return x


@pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])
def test_each_slot_is_forecast_with_its_own_weights(backend: str) -> None:
    denoiser = hicache_compile(ToyDiT(), POLICY, backend=backend)
    expected = oracle({step: weights for step, _, weights in ROWS})
    torch.testing.assert_close(walk(denoiser), expected, rtol=1e-4, atol=1e-5)
    first = walk(denoiser)
    assert torch.equal(first, walk(denoiser))
    report = denoiser.report()
    assert (report.programs, report.recompiles, report.decisions()) == (2, 0, "FF..F...")
    denoiser.policy = from_json(to_json(POLICY))  # other weights are data
    assert torch.equal(first, walk(denoiser))
    assert denoiser.report().programs == 2


def test_where_nothing_is_known_all_slots_share_what_distances_say() -> None:
    blank = Table(STEPS, DISTANCES, (), SLOTS)
    own = walk(hicache_compile(ToyDiT(), Policy(Interval(3), Calibrated(blank, 3), "module"), backend="eager"))
    shared = Calibrated(Table(STEPS, DISTANCES), 3)
    together = walk(hicache_compile(ToyDiT(), Policy(Interval(3), shared, "module"), backend="eager"))
    torch.testing.assert_close(own, together)


def test_slots_that_no_forecast_reads_have_no_row() -> None:
    """FLUX's text slots die where only the image is forecast: the rows are those of the rings that are left."""
    inputs = flux_inputs(batch=1)

    def run(denoiser: Any) -> Tensor:
        with torch.no_grad(), denoiser.trajectory(STEPS):
            return trace(denoiser, inputs, STEPS)

    known = Policy(Interval(3), Calibrated(Table(STEPS, DISTANCES), 3), "module")
    shared = hicache_compile(random_flux(1, 2), known, backend="eager")
    expected = run(shared)
    guarded = [node for node in shared.graphs["guarded"].graph.nodes if is_ring(node)]
    (state,) = shared._session.contexts["default"].states.values()
    assert 0 < len(state.rings) < len(guarded)
    blank = Calibrated(Table(STEPS, DISTANCES, (), len(state.rings)), 3)
    own = hicache_compile(random_flux(1, 2), Policy(Interval(3), blank, "module"), backend="eager")
    torch.testing.assert_close(run(own), expected)


class TestGraph(expecttest.TestCase):
    def test_the_graph_says_whose_weights(self) -> None:
        policy = Policy(StepMask("10"), Calibrated(Table(2, (1.0,), (), 2), 1), "module")
        denoiser = hicache_compile(ToyDiT(depth=1), policy)
        denoiser.warmup({"x": torch.randn(2, 5, 16), "t": torch.ones(2)}, 2)
        lines = str(denoiser.graphs["forecast"]).splitlines()
        text = "\n".join(line.partition("  #")[0].strip() for line in lines if "weights" in line and "def " not in line)
        self.assertExpectedInline(
            text,
            """\
getitem_1: "f32[1]" = weights[0]
getitem_2: "f32[1]" = weights[1]""",
        )


def test_fitted_by_slot_is_truer_where_it_was_fitted() -> None:
    unknown = Policy(StepMask(MASK), Calibrated(Table(2, (0.0,)), 3), "module")
    denoiser = hicache_compile(ToyDiT(), unknown, backend="eager")
    measured = measure(denoiser, [lambda: walk(denoiser)], "module", reads=3)
    assert measured.references[0].slots == SLOTS
    shared = with_weights(measured, StepMask(MASK))
    own = with_weights(measured, StepMask(MASK), by_slot=True)
    assert own.error < 0.95 * shared.error
    table = own.policy.forecaster.table  # type: ignore[attr-defined]  # a Calibrated
    assert (table.slots, shared.policy.forecaster.table.slots) == (SLOTS, None)  # type: ignore[attr-defined]
    for _, anchors, weights in table.rows:
        assert [len(one) for one in weights] == [len(anchors)] * SLOTS
        np.testing.assert_allclose([sum(one) for one in weights], 1.0)
    denoiser.policy = own.policy
    reference = measured.references[0].result
    assert reference is not None
    assert own.error == pytest.approx(float((walk(denoiser) - reference).norm() / reference.norm()), rel=1e-3)


def test_the_dump_has_a_line_for_each_slot(tmp_path: Path) -> None:
    denoiser = hicache_compile(ToyDiT(), POLICY, backend="eager")
    walk(denoiser)
    denoiser.dump(tmp_path, STEPS)
    lines = [line.split("\t") for line in (tmp_path / "schedule.tsv").read_text().splitlines()]
    assert lines[0] == ["step", "decision", "group", "row", "weight_0", "weight_1", "weight_2"]
    fifth = [line for line in lines if line[0] == "5"]
    assert len(fifth) == SLOTS
    # Anchors 0, 1, 4 lie in rows 0, 1, 2; a table has the newest first.
    np.testing.assert_allclose([[float(w) for w in line[4:][::-1]] for line in fifth], ROWS[2][2])
    assert len([line for line in lines if line[0] == "4"]) == 1


@pytest.mark.parametrize(
    ("options", "tolerance"),
    [
        ({"backend": "cond_eager"}, 0.0),
        ({"offload": True}, 1e-6),  # the host sums in another order
        ({"sparsity": Chipmunk(top_keys=1.0, mlp_keys=1.0, first_dense=0, group=4, mlp_block=4)}, 1e-5),  # all of it
    ],
    ids=["cond", "offload", "sparsity"],
)
def test_it_goes_with_what_changes_how_a_run_is_made(options: dict[str, Any], tolerance: float) -> None:
    plain = walk(hicache_compile(ToyDiT(), POLICY, backend="eager"))
    denoiser = hicache_compile(ToyDiT(), POLICY, **{"backend": "eager", **options})
    found = walk(denoiser)
    assert denoiser.report().decisions().replace("S", "F") == "FF..F..."
    torch.testing.assert_close(found, plain, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("backend", ["eager", "cond_eager"])
def test_guards_decide_when_and_slots_how(backend: str) -> None:
    """A guard that skips all it may is the mask that computes the same steps."""
    if backend == "cond_eager":
        with pytest.raises(HiCacheError, match="the graph knows gaps between steps, not the run"):
            hicache_compile(ToyDiT(), guarded(), backend=backend)
        return
    denoiser = hicache_compile(ToyDiT(), guarded(), backend=backend)
    assert torch.equal(walk(denoiser), walk(hicache_compile(ToyDiT(), POLICY, backend=backend)))
    assert denoiser.report().decisions() == "FF..F..."


def guarded() -> Policy:
    guard = TeaCacheGuard(1e9, warmup=2)
    return Policy(StepMask(MASK), Calibrated(TABLE, 3), "module", (guard,))


def test_another_number_of_slots_is_refused() -> None:
    denoiser = hicache_compile(ToyDiT(depth=2), POLICY, backend="eager")
    with pytest.raises(HiCacheError, match=r"Calibrated\.table\.slots = 6: must be 4, the slots of this denoiser"):
        walk(denoiser)
    with pytest.raises(HiCacheError, match="a weight for each in each of 6 slots"):
        Table(STEPS, DISTANCES, (row(2, (1, 0), 5),), SLOTS)
