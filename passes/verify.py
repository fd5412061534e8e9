"""What must hold of the graph at each level, as code. The verifier runs in the tests and under ``HICACHE_VERIFY=1``.

Each function raises ``HiCacheError`` naming the level, the node and what must hold.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import torch
from torch import fx

from hicache_compile.errors import HiCacheError
from hicache_compile.operators.anchors import forecast, full_or_forecast, remember
from hicache_compile.passes.graph import ops
from hicache_compile.passes.graph.choices import Choice, Kind
from hicache_compile.passes.graph.graphs import output_node, placeholders
from hicache_compile.passes.graph.inputs import Role, StateInput, is_ring, role_of, state_of
from hicache_compile.passes.work import Work
from hicache_compile.policy.sparsity.phases import Phase


def verify_captured(work: Work) -> None:
    """Every input knows its position, every computing node its module, and nothing is dead."""
    captured = work.captured
    for position, node in enumerate(placeholders(captured)):
        _require(node.meta.get("input") == position, "captured", node, f"input {position} of the denoiser")
    for node in captured.graph.nodes:
        _require("path" in node.meta, "captured", node, "given a module path")
        dead = not node.users and ops.is_pure(node)
        _require(not dead, "captured", node, "read by something")


def verify_guarded(work: Work) -> None:
    """Every op of the captured graph is there once, and every site's call fits its subgraph and rings."""
    guarded = work.guarded
    assert guarded is not None
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
        counts.update(_op_in_its_contexts(n) for n in full.graph.nodes if n.op.startswith("call"))
        for node in full.graph.nodes:
            _require(not ops.is_random(node), "guarded", node, "free of random numbers, being inside a branch")
    del counts[full_or_forecast.__name__]
    counts["getitem"] -= sum(len(call.users) for call in calls)
    _same_ops("guarded", +counts, _ops_of(work.module) if work.layout.sparsity else _ops_of(work.captured))


def verify_programs(work: Work) -> None:
    """Every program computes what its choice says, and full and forecast agree on the rings."""
    if work.guarded is None:
        return
    for choice, program in work.programs.items():
        verify_program(work, choice, program)
    if not work.layout.groups:  # where groups are decided each by itself every slot is remembered
        verify_pair(work.programs)


def verify_new(work: Work, choice: Choice, program: fx.GraphModule) -> None:
    """The same of a program that was made later."""
    if choice.phases:
        _outputs_are_computed(f"program {choice}", program)
    elif work.guarded is not None:
        verify_program(work, choice, program)


def verify_program(work: Work, choice: Choice, program: fx.GraphModule) -> None:
    """A straight-line program computes what its choice says and nothing else."""
    level = f"program {choice}"
    for node in program.graph.nodes:
        _require(node.target is not full_or_forecast, level, node, "inlined")
        into_ring = any(is_ring(written) for written in ops.mutated(node))
        _require(not into_ring, level, node, "kept from writing to a ring except through remember")
        if "probe" in node.meta or "tokens" in node.meta:
            continue
        if choice.forecasts:
            _require(choice.partial or node.target is not remember, level, node, "free of writes")
        else:
            _require(node.target is not forecast, level, node, "free of forecasts")
    for node in output_node(program.graph).all_input_nodes:
        _require(node.op != "placeholder", level, node, "computed: an output must not be an input")
    captured = work.captured if choice == Choice.PLAIN and _reordered(work) else work.module
    mine, theirs = _ops_of(program), _ops_of(captured)
    if choice.forecasts:
        assert work.guarded is not None
        live = _ops_of(work.guarded) + _ops_of_the_computed_sites(work.guarded, choice)
        for name in sorted(ops.HEAVY):
            _require(mine[name] <= live[name], level, name, "computed no more often than outside the forecast sites")
        return
    for name in (remember.__name__, "sub", "getitem") if choice == Choice.FULL else ():
        mine[name] = min(mine[name], theirs[name])
    _same_ops(level, +mine, theirs)


def verify_pair(programs: Mapping[Choice, fx.GraphModule]) -> None:
    """The full program writes exactly the rings that forecasts read, at the same shapes."""
    full, forecasting, tokenwise = (
        {n.meta["slot"]: tuple(ops.value(n).shape) for n in placeholders(programs[c]) if "slot" in n.meta}
        for c in (Choice.FULL, Choice.FORECAST, _with_tokens(programs))
    )
    forecasting |= tokenwise
    if full != forecasting:
        raise HiCacheError(
            f"programs: full writes rings {sorted(full.items())}, forecast reads {sorted(forecasting.items())}: "
            "must be the same"
        )


def _with_tokens(programs: Mapping[Choice, fx.GraphModule]) -> Choice:
    """The forecast that computes some tokens, or where there is none the plain one."""
    tokenwise = Choice.FORECAST.with_tokens()
    return tokenwise if tokenwise in programs else Choice.FORECAST


def verify_parts(work: Work) -> None:
    """A probe and the rest of a computed step together compute every expensive op of the captured graph once."""
    if not work.stages:
        return
    made = sum((_ops_of(work.programs[stage.probe]) for stage in work.stages), _ops_of(work.programs[Choice.FULL]))
    theirs = _ops_of(work.module)
    for name in sorted(ops.HEAVY):
        _require(made[name] == theirs[name], "split programs", name, "computed as often as in the captured graph")
    for choice, program in work.programs.items():
        if choice.kind is not Kind.PROBE:
            _outputs_are_computed(f"program {choice}", program)


def verify_phases(work: Work) -> None:
    """What sparse steps read of a dense one, the step that selects has written, in the same form."""
    made = {dict(choice.phases)[""]: program for choice, program in work.programs.items() if choice.phases}
    kept = {phase: _memory(program) for phase, program in made.items()}
    for phase, memories in kept.items():
        for state, node in memories.items():
            written = kept[Phase.SELECT].get(state)
            same = written is not None and ops.value(written).shape == ops.value(node).shape
            by_choice = state.name.startswith("units")  # chosen in sparse steps
            kept_there = written is not None and same and _is_written(written)
            _require(
                kept_there or by_choice, f"program {phase}", node, "written by the step that selects, in this form"
            )
        _outputs_are_computed(f"program {phase}", made[phase])


def _outputs_are_computed(level: str, program: fx.GraphModule) -> None:
    for node in output_node(program.graph).all_input_nodes:
        _require(node.op != "placeholder", level, node, "computed: an output must not be an input")


def _memory(program: fx.GraphModule) -> dict[StateInput, fx.Node]:
    found = {state_of(node): node for node in placeholders(program)}
    return {state: node for state, node in found.items() if state is not None and state.role is Role.MEMORY}


def _is_written(memory: fx.Node) -> bool:
    return any(user.meta.get("side_effect") for user in memory.users)


def _is_row(node: fx.Node) -> bool:
    """Whether ``node`` picks a row of the weights or of the positions."""
    source = node.args[0] if node.args else None
    rows = (Role.WEIGHTS, Role.POSITION)
    return ops.op(node) == "getitem" and isinstance(source, fx.Node) and role_of(source) in rows


def _reordered(work: Work) -> bool:
    return work.layout.sparsity is not None and work.layout.sparsity.order is not None


def _ops_of(module: torch.nn.Module) -> Counter[str]:
    """How often each op is called; the parts of a linear of which only some outputs are made count as one."""
    assert isinstance(module, fx.GraphModule)
    added = {"probe", "carried", "tokens"}  # marks of what is no op of the captured graph
    calls = [n for n in module.graph.nodes if n.op.startswith("call")]
    called = [n for n in calls if added.isdisjoint(n.meta) and not _is_row(n)]
    counted = Counter(_op_in_its_contexts(node) for node in called)
    parts = [node.args[1].args[0] for node in called if ops.op(node) == "linear" and _is_part(node)]
    counted["linear"] -= len(parts) - len(set(parts))
    return +counted


def _op_in_its_contexts(node: fx.Node) -> str:
    return " in ".join([ops.op(node), *(str(context) for context in node.meta.get("context", ()))])


def _is_part(linear: fx.Node) -> bool:
    weight = linear.args[1] if len(linear.args) > 1 else None
    return isinstance(weight, fx.Node) and ops.op(weight) == "getitem" and isinstance(weight.args[0], fx.Node)


def _ops_of_the_computed_sites(guarded: fx.GraphModule, choice: Choice) -> Counter[str]:
    """The ops of the sites that a choice which forecasts some groups only computes."""
    calls = [node for node in guarded.graph.nodes if node.target is full_or_forecast]
    computed = [call for call in calls if choice.groups is not None and call.meta["group"] not in choice.groups]
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
