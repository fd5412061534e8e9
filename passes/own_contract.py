"""What a pass of your own must leave as it is: inputs, outputs, and what the program keeps from step to step."""

from __future__ import annotations

from collections import Counter
from typing import Any

from torch import fx

from hicache_compile.errors import HiCacheError
from hicache_compile.operators.anchors import remember
from hicache_compile.operators.measurements import keep
from hicache_compile.passes.graph import ops
from hicache_compile.passes.graph.examples import form
from hicache_compile.passes.graph.graphs import output_node, placeholders
from hicache_compile.passes.graph.inputs import KEPT, role_of, state_of


def check_returned(owner: str, returned: object) -> None:
    """Raise unless ``returned`` is a graph that can run."""
    if not isinstance(returned, fx.GraphModule):
        raise HiCacheError(
            f"{owner} returned {type(returned).__name__}: must return a torch.fx.GraphModule, or None where it changed "
            "the program in place"
        )
    try:
        returned.graph.lint()
    except Exception as error:  # lint raises what it likes
        raise HiCacheError(f"{owner} left a graph that is not valid: {error}") from error
    module = next(iter(returned.graph.find_nodes(op="call_module", sort=False)), None)
    if module is not None:
        raise HiCacheError(
            f"{owner} calls the module `{module.target}`: must call functions and methods; weights are inputs"
        )
    held = [node for node in returned.graph.find_nodes(op="get_attr") if not _holds_a_graph(returned, node)]
    if held:
        raise HiCacheError(f"{owner} reads the attribute `{held[0].target}`: must make what is constant in the graph")


def _holds_a_graph(program: fx.GraphModule, node: fx.Node) -> bool:
    return any(name == node.target for name, _ in program.named_modules())


def check_kept(owner: str, before: fx.GraphModule, after: fx.GraphModule) -> None:
    """Raise unless ``after`` has the inputs and outputs of ``before`` and writes to what lasts as often."""
    for what, theirs, mine in (
        ("inputs", [_input(node) for node in placeholders(before)], [_input(node) for node in placeholders(after)]),
        ("outputs", _outputs(before), _outputs(after)),
        ("writes to what is kept from step to step", _writes(before), _writes(after)),
    ):
        if theirs != mine:
            raise HiCacheError(f"{owner} changed the {what}: {_difference(theirs, mine)}; must leave them as they are")


def _input(node: fx.Node) -> str:
    """An input as it is told from others: its place or its role, and what it looks like."""
    state = state_of(node)
    name = f"input {node.meta['input']}" if "input" in node.meta else str(state) if state else f"`{node.name}`"
    return f"{name} {_shown(ops.value(node))}"


def _outputs(program: fx.GraphModule) -> list[str]:
    returned: Any = output_node(program.graph).args[0]
    values = returned if isinstance(returned, tuple | list) else [returned]
    return [_output(value) for value in values] if values is returned else ["no tuple"]


def _output(value: object) -> str:
    if not isinstance(value, fx.Node):
        return repr(value)
    return f"{'an input ' if value.op == 'placeholder' else ''}{_shown(ops.value(value))}"


def _shown(value: Any) -> str:
    """Size, dtype and device; strides may change."""
    if not hasattr(value, "shape"):
        return str(form(value))
    return f"{str(value.dtype).removeprefix('torch.')}{[*map(str, value.shape)]} {value.device}".replace("'", "")


def _writes(program: fx.GraphModule) -> list[str]:
    """How often each input that lasts is among what an op that writes in place reads."""
    found: Counter[str] = Counter()
    for node in program.graph.nodes:
        if _writes_in_place(node):
            found.update(str(argument) for argument in node.all_input_nodes if _lasts(argument))
    return [f"{count} of {name}" for name, count in sorted(found.items())]


def _writes_in_place(node: fx.Node) -> bool:
    ours = node.target in (remember, keep) or bool(node.meta.get("side_effect"))
    return ours or bool(ops.mutated(node))


def _lasts(node: fx.Node) -> bool:
    """Whether ``node`` outlives the call: an anchor, memory, or a buffer of the denoiser."""
    return node.op == "placeholder" and (role_of(node) in KEPT or bool(node.meta.get("weight")))


def _difference(theirs: list[str], mine: list[str]) -> str:
    """The first that differs."""
    if len(theirs) != len(mine):
        return f"{len(theirs)} became {len(mine)}"
    return next(f"{one} became {other}" for one, other in zip(theirs, mine, strict=True) if one != other)
