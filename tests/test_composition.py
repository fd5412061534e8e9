"""Every pair of features runs right, or stands in the table of conflicts with its reason.

The reference is plain and eager (``tests.support.reference_toy``): it is given the decisions of the run and makes every
forecast by hand. Sparse steps read every key and compute every unit here, so they are dense up to rounding; attention
over partitions (DiTango) is compared with itself without the other feature.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from hicache_compile import HiCacheError, Policy, hicache_compile
from hicache_compile.export.stepping import stepping
from hicache_compile.frontend.dynamo_backend import inspect
from hicache_compile.policy.compatibility import CONFLICTS
from hicache_compile.runtime.replay.capture import capture_call
from tests.support.features import FEATURES, SPARSE, STEPS, Feature, policy_of
from tests.support.reference_toy import CachedToy, Toy

MOST_CONFLICTS = 14
TOKENWISE = "computing_forecast_tokens"  # the predicate of that branch in an exported graph
# What a denoiser cannot have because its graph breaks: refused for the model, not for the policy.
OF_THE_MODEL = {
    frozenset(
        {"export", "two graphs"}
    ): "export.model cannot be captured as one graph: must be one; Call to `torch._dynamo.graph_break()`",
    frozenset(
        {"by channel", "two graphs"}
    ): "ByChannel.chosen: of 8 slots, must be at most 4, the slots of this graph at scope "
    "'module'; fit it to this model, which must be captured as one graph",
    frozenset({"SeaCache", "two graphs"}): "SeaCacheGuard reads sigma off the denoiser's time input: its graph must "
    "have one",
}
PAIRS = [
    pair
    for pair in itertools.combinations_with_replacement(FEATURES, 2)
    if pair[0] is pair[1] or pair[0].family != pair[1].family
]


def noise() -> Tensor:
    return torch.randn(1, 8, 8, generator=torch.Generator().manual_seed(0))


def sampled(denoise: Any) -> Tensor:
    x = noise()
    for step in range(STEPS):
        with torch.no_grad():
            x = x - denoise(x, torch.full((1,), 1 - step / STEPS)) / STEPS
    return x


def breaks(features: tuple[Feature, ...]) -> bool:
    return any(feature.graphs > 1 for feature in features)


def run(features: tuple[Feature, ...], policy: Policy) -> tuple[Tensor, list[str], str, str]:
    """The sample, the cells of each site, the decisions, and the scope that a budget chose."""
    toy = Toy(breaks=breaks(features))
    options: dict[str, Any] = {"backend": "eager"}
    for feature in features:
        options |= dict(feature.options)
    way = next((feature.way for feature in features if feature.way != "call"), "call")
    if way == "export":
        options.pop("backend")
        return exported(toy, policy, **options)
    if way == "entry":
        compiled = torch.compile(toy, backend="hicache", options={"policy": policy, **options})
        handle = inspect(compiled)
    else:
        compiled = handle = hicache_compile(toy, policy, **options)
    with handle.trajectory(STEPS):
        x = sampled(compiled)
    report = handle.report()
    rows = next(iter(report.rows.values()), [])
    chosen = report.memory.split(",")[0].removeprefix("scope ") or policy.scope
    return x, [row.cells for row in rows], report.decisions(), chosen


def exported(
    toy: Toy, policy: Policy, sparsity: Any = None, anchors: str | None = None, program_passes: Any = (), **_: Any
) -> tuple[Tensor, list[str], str, str]:
    """The same by the exported graph, driven by its manifest."""
    call = capture_call(toy, {"x": noise(), "t": torch.ones(1)}, "export")
    module, manifest, _ = stepping(call, policy, STEPS, sparsity, anchors, program_passes)
    state = [torch.zeros(port.shape, dtype=getattr(torch, port.dtype)) for port in manifest.state]  # type: ignore[arg-type]
    names = [port.name for port in manifest.state]
    for name, first in manifest.first.items():
        state[names.index(name)] = torch.tensor(first, dtype=torch.float64)
    letters, cells = "", dict.fromkeys(manifest.groups, "")
    x = noise()
    for step in range(STEPS):
        controls = []
        for port in manifest.controls:
            value = manifest.constants.get(port.name)
            value = manifest.plan[port.name][step] if value is None else value
            if isinstance(value, dict):
                made = torch.zeros(value["shape"])
                made[value["index"]] = torch.tensor(value["rows"])
            else:
                made = torch.tensor(value, dtype=getattr(torch, port.dtype)).reshape(port.shape)  # type: ignore[arg-type]
            controls.append(made)
        with torch.no_grad():
            out, *state = module(x, torch.full((1,), 1 - step / STEPS), *controls, *state)
        x = x - out / STEPS
        code = int(state[names.index("run")][3]) if "run" in names else 0
        for group in cells:
            taken = manifest.plan.get(f"computing_{group.replace('-', '_')}" if group else "computing", [True] * STEPS)
            on = [name for name in manifest.plan if name.startswith("computing") and manifest.plan[name][step]]
            others = [name for name in on if name != TOKENWISE]
            computed = (not code) if "run" in names else taken[step] or (not group and bool(others))
            cells[group] += "c" if computed else "t" if TOKENWISE in on else "r"
        letters += "F" if all(row[-1] == "c" for row in cells.values()) else "."
    places = manifest.group_of
    found = [cells[manifest.groups[place]] for place in places]  # slots of attention, MLP, attention, ...
    return x, [row if slot % 2 else row.replace("t", "r") for slot, row in enumerate(found)], letters, policy.scope


def kinds_of(policy: Policy, cells: list[str]) -> dict[int, int]:
    """The group of each slot: of kinds in the order attention, MLP, ..., of ranges by block, else all in one."""
    ranges = len(policy.layout.ranges)
    if ranges:
        return {slot: slot * ranges // len(cells) for slot in range(len(cells))}
    return {slot: slot % 2 if policy.layout.groups else 0 for slot in range(len(cells))}


def name_of(pair: tuple[Feature, Feature]) -> str:
    return " x ".join(dict.fromkeys(feature.name for feature in pair))


def is_compiled(pair: tuple[Feature, Feature]) -> bool:
    return any(feature.name in ("aot_eager", "mode", "torch.compile") for feature in pair)


@pytest.mark.parametrize("pair", [pair for pair in PAIRS if not is_compiled(pair)], ids=name_of)
def test_a_pair(pair: tuple[Feature, Feature]) -> None:
    assert_it_is_right_or_refused(pair)


@pytest.mark.parametrize("pair", [pair for pair in PAIRS if is_compiled(pair)], ids=name_of)
def test_a_pair_compiled(pair: tuple[Feature, Feature]) -> None:
    assert_it_is_right_or_refused(pair)


def assert_it_is_right_or_refused(pair: tuple[Feature, Feature]) -> None:
    torch._dynamo.reset()  # models of one class reach its limit of recompiling where the graph breaks
    features = tuple(dict.fromkeys(pair))
    refused = None
    try:
        policy = policy_of(features)
        x, cells, decisions, scope = run(features, policy)
    except HiCacheError as error:
        refused = str(error)
    of_the_model = OF_THE_MODEL.get(frozenset(feature.name for feature in features))
    if of_the_model is not None:
        assert refused == of_the_model
        return
    if refused is not None:
        assert any(refused.endswith(conflict.reason) for conflict in CONFLICTS), refused
        return
    if policy.layout.partitions is not None:
        expected, _, same, _ = run((), policy)
        assert decisions.replace("S", "F") == same or breaks(features)
    else:
        reference = CachedToy(
            Toy(breaks=breaks(features)), replace(policy, scope=scope), cells, kinds_of(policy, cells), STEPS
        )
        expected = sampled(reference)
        if not any(f.family == "verifying guard" for f in features):
            assert any("r" in row for row in cells), decisions
    stored_narrow = any(feature.family == "anchors" for feature in features)
    planned_apart = policy.layout.partitions is not None and breaks(features)
    rough = stored_narrow or planned_apart
    assert (x - expected).norm() / expected.norm() < (2e-2 if rough else 1e-5)


def test_conflicts_are_few_and_explained() -> None:
    assert len(CONFLICTS) <= MOST_CONFLICTS
    assert len({conflict.reason for conflict in CONFLICTS}) == len(CONFLICTS)
    assert SPARSE.top_keys == SPARSE.mlp_keys == 1.0
