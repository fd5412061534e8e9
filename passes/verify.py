"""What must hold of the graph at each level, as code. The verifier runs in the tests and under ``HICACHE_VERIFY=1``.

Each function raises ``HiCacheError`` naming the level, the node and what must hold.
"""

from __future__ import annotations

from collections import Counter

import torch
from torch import fx

from hicache_compile.errors import HiCacheError
from hicache_compile.operators.anchors import forecast, full_or_forecast, remember
from hicache_compile.passes.graph import ops
from hicache_compile.passes.graph.graphs import output_node, placeholders
from hicache_compile.passes.transforms.specialise import Choice
from hicache_compile.policy.sparsity.phases import Phase


def verify_captured(captured: fx.GraphModule) -> None:
    """Every input knows its position, every computing node its module, and nothing is dead."""
    for position, node in enumerate(placeholders(captured)):
        _require(node.meta.get("input") == position, "captured", node, f"input {position} of the denoiser")
    for node in captured.graph.nodes:
        _require("path" in node.meta, "captured", node, "given a module path")
        dead = not node.users and ops.is_pure(node)
        _require(not dead, "captured", node, "read by something")


def verify_guarded(guarded: fx.GraphModule, captured: fx.GraphModule) -> None:
    """Every op of the captured graph is there once, and every site's call fits its subgraph and rings."""
    counts = _ops_of(guarded)
    calls = [node for node in guarded.graph.nodes if node.target is full_or_forecast]
    rings: set[fx.Node] = set()
    for call in calls:
        submodule, _, operands, carried, anchors, _, _ = call.args
        full = guarded.get_submodule(str(submodule.target))
        assert isinstance(full, fx.GraphModule)
        slots = list(output_node(full.graph).args[0])  # type: ignore[arg-type]  # a tuple of nodes
        _require(len(placeholders(full)) == len(operands), "guarded", call, "given one operand per input of its site")
        _require(len(slots) == len(carried) == len(anchors), "guarded", call, "given one ring and stream per slot")
        kept_otherwise = call.kwargs.get("dtypes") or [ops.value(ring).dtype for ring in anchors]
        for ring, slot, dtype in zip(anchors, slots, kept_otherwise, strict=True):
            _require(ring not in rings, "guarded", ring, "the ring of one slot only")
            rings.add(ring)
            fits = ops.value(ring).shape[1:] == ops.value(slot).shape and dtype == ops.value(slot).dtype
            _require(fits, "guarded", ring, f"shaped like its slot, {slot.name}")
        counts.update(ops.op(n) for n in full.graph.nodes if n.op.startswith("call"))
        for node in full.graph.nodes:
            _require(not ops.is_random(node), "guarded", node, "free of random numbers, being inside a branch")
    del counts[full_or_forecast.__name__]
    counts["getitem"] -= sum(len(call.users) for call in calls)
    _same_ops("guarded", +counts, _ops_of(captured))


def verify_program(program: fx.GraphModule, choice: str, captured: fx.GraphModule, guarded: fx.GraphModule) -> None:
    """A straight-line program computes what its choice says and nothing else."""
    level = f"program {choice}"
    for node in program.graph.nodes:
        _require(node.target is not full_or_forecast, level, node, "inlined")
        written = ops.mutated(node)
        into_ring = written is not None and written.meta.get("state") == "anchors"
        _require(not into_ring, level, node, "kept from writing to a ring except through remember")
        if "probe" in node.meta:
            continue
        if choice.startswith(Choice.FORECAST):
            _require(node.target is not remember, level, node, "free of writes")
        else:
            _require(node.target is not forecast, level, node, "free of forecasts")
    for node in output_node(program.graph).all_input_nodes:
        _require(node.op != "placeholder", level, node, "computed: an output must not be an input")
    mine, theirs = _ops_of(program), _ops_of(captured)
    if choice.startswith(Choice.FORECAST):
        live = _ops_of(guarded) + _ops_of_the_computed_sites(guarded, choice)
        for name in sorted(ops.HEAVY):
            _require(mine[name] <= live[name], level, name, "computed no more often than outside the forecast sites")
        return
    for name in (remember.__name__, "sub", "getitem") if choice == Choice.FULL else ():
        mine[name] = min(mine[name], theirs[name])
    _same_ops(level, +mine, theirs)


def verify_pair(programs: dict[str, fx.GraphModule]) -> None:
    """The full program writes exactly the rings the forecast program reads, at the same shapes."""
    full, forecasting = (
        {n.meta["slot"]: tuple(ops.value(n).shape) for n in placeholders(programs[c]) if "slot" in n.meta}
        for c in (Choice.FULL, Choice.FORECAST)
    )
    if full != forecasting:
        raise HiCacheError(
            f"programs: full writes rings {sorted(full.items())}, forecast reads {sorted(forecasting.items())}: "
            "must be the same"
        )


def verify_phases(programs: dict[str, fx.GraphModule]) -> None:
    """What sparse steps read of a dense one, the step that selects has written, in the same form."""
    kept = {phase: _memory(programs[phase]) for phase in Phase if phase in programs}
    for phase, memory in kept.items():
        for state, node in memory.items():
            written = kept[Phase.SELECT].get(state)
            same = written is not None and ops.value(written).shape == ops.value(node).shape
            by_choice = state.startswith("memory:units")  # chosen in sparse steps
            _require(same or by_choice, f"program {phase}", node, "written by the step that selects")
        program = programs[phase]
        for node in output_node(program.graph).all_input_nodes:
            _require(node.op != "placeholder", f"program {phase}", node, "computed: an output must not be an input")


def _memory(program: fx.GraphModule) -> dict[str, fx.Node]:
    states = {str(node.meta.get("state")): node for node in placeholders(program)}
    return {state: node for state, node in states.items() if state.startswith("memory:")}


def _ops_of(module: torch.nn.Module) -> Counter[str]:
    assert isinstance(module, fx.GraphModule)
    called = (node for node in module.graph.nodes if node.op.startswith("call") and "probe" not in node.meta)
    return Counter(ops.op(node) for node in called)


def _ops_of_the_computed_sites(guarded: fx.GraphModule, choice: str) -> Counter[str]:
    """The ops of the sites that a choice which forecasts some groups only computes."""
    groups = choice.partition("_")[2].split("+")
    calls = [node for node in guarded.graph.nodes if node.target is full_or_forecast]
    computed = [call for call in calls if choice != Choice.FORECAST and call.meta["group"] not in groups]
    inside = (guarded.get_submodule(str(call.args[0].target)) for call in computed)
    return sum((_ops_of(module) for module in inside), Counter[str]())


def _same_ops(level: str, mine: Counter[str], theirs: Counter[str]) -> None:
    if mine != theirs:
        raise HiCacheError(
            f"{level}: ops added {dict(mine - theirs)}, ops lost {dict(theirs - mine)}: must hold every op of the "
            "captured graph exactly once"
        )


def _require(holds: bool, level: str, where: object, what: str) -> None:
    if not holds:
        raise HiCacheError(f"{level}: `{where}` must be {what}")
