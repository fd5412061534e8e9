"""The verifier of each level, tested with broken passes: each must be caught, by name."""

from __future__ import annotations

import operator
from collections.abc import Callable

import pytest
import torch
from torch import fx

from hicache_compile import HiCacheError, passes
from hicache_compile.operators.anchors import forecast, full_or_forecast, remember
from hicache_compile.passes import Choice, Rewrite
from hicache_compile.passes.graph.graphs import output_node, placeholders
from hicache_compile.passes.verify import verify_captured, verify_guarded, verify_pair, verify_program
from tests.support.captured_graphs import captured
from tests.support.models import ToyDiT


@pytest.fixture
def rewrite() -> Rewrite:
    graph = captured(ToyDiT(depth=2), torch.zeros(2, 5, 16), torch.zeros(2))
    return passes.build(graph, "module", depth=2, verify=True)


def find(module: fx.GraphModule, target: Callable[..., object]) -> fx.Node:
    return next(node for node in module.graph.nodes if node.target is target)


def verify_all(rewrite: Rewrite) -> None:
    verify_captured(rewrite.captured)
    verify_guarded(rewrite.guarded, rewrite.captured)
    for choice, program in rewrite.programs.items():
        verify_program(program, choice, rewrite.captured, rewrite.guarded)
    verify_pair(rewrite.programs)


def test_what_the_passes_make_is_accepted(rewrite: Rewrite) -> None:
    assert set(rewrite.programs) == set(Choice) - {Choice.EITHER}  # made of the others, where a backend asks for it
    verify_all(rewrite)  # raises where it finds fault


def leave_dead_code(rewrite: Rewrite) -> None:
    graph = rewrite.captured.graph
    with graph.inserting_before(output_node(graph)):
        node = graph.call_function(torch.neg, (placeholders(rewrite.captured)[0],))
    node.meta["path"] = ""


def forget_a_path(rewrite: Rewrite) -> None:
    del output_node(rewrite.captured.graph).all_input_nodes[0].meta["path"]


def lose_an_op(rewrite: Rewrite) -> None:
    node = next(n for n in rewrite.guarded.graph.nodes if n.target is operator.mul)
    node.replace_all_uses_with(node.args[1])
    rewrite.guarded.graph.erase_node(node)


def share_a_ring(rewrite: Rewrite) -> None:
    calls = [n for n in rewrite.guarded.graph.nodes if n.target is full_or_forecast]
    calls[1].update_arg(4, calls[0].args[4])


def drop_an_operand(rewrite: Rewrite) -> None:
    call = find(rewrite.guarded, full_or_forecast)
    call.update_arg(2, call.args[2][:-1])


def give_a_ring_of_another_shape(rewrite: Rewrite) -> None:
    ring = find(rewrite.guarded, full_or_forecast).args[4][0]
    ring.meta["example_value"] = ring.meta["example_value"][:, :1]


def compute_in_a_forecast(rewrite: Rewrite) -> None:
    graph = rewrite.programs[Choice.FORECAST].graph
    node = find(rewrite.programs[Choice.FORECAST], forecast)
    with graph.inserting_after(node):
        graph.call_function(torch.nn.functional.scaled_dot_product_attention, (node, node, node))


def write_in_a_forecast(rewrite: Rewrite) -> None:
    graph = rewrite.programs[Choice.FORECAST].graph
    node = find(rewrite.programs[Choice.FORECAST], forecast)
    with graph.inserting_after(node):
        graph.call_function(remember, (node.args[0], node.args[1], node))


def compute_twice_in_full(rewrite: Rewrite) -> None:
    graph = rewrite.programs[Choice.FULL].graph
    node = next(n for n in graph.nodes if n.target is torch._C._nn.linear)
    with graph.inserting_after(node):
        graph.node_copy(node)


def return_an_input(rewrite: Rewrite) -> None:
    program = rewrite.programs[Choice.FORECAST]
    output_node(program.graph).args = ((placeholders(program)[0],),)


def forget_to_remember(rewrite: Rewrite) -> None:
    program = rewrite.programs[Choice.FULL]
    node = find(program, remember)
    ring = node.args[0]
    program.graph.erase_node(node)
    program.graph.erase_node(ring)


BROKEN = {
    leave_dead_code: "captured: .* must be read by something",
    forget_a_path: "captured: .* must be given a module path",
    lose_an_op: r"guarded: ops added \{\}, ops lost \{'mul': 1\}",
    share_a_ring: "guarded: `anchors_0` must be the ring of one slot only",
    drop_an_operand: "guarded: .* must be given one operand per input of its site",
    give_a_ring_of_another_shape: "guarded: `anchors_0` must be shaped like its slot",
    compute_in_a_forecast: "program forecast: `scaled_dot_product_attention` must be computed no more often than",
    write_in_a_forecast: "program forecast: .* must be free of writes",
    compute_twice_in_full: r"program full: ops added \{'linear': 1\}",
    return_an_input: "program forecast: .* an output must not be an input",
    forget_to_remember: "programs: full writes rings .* must be the same",
}


@pytest.mark.parametrize("breaking", BROKEN, ids=lambda breaking: breaking.__name__)
def test_a_broken_pass_is_caught(rewrite: Rewrite, breaking: Callable[[Rewrite], None]) -> None:
    breaking(rewrite)
    with pytest.raises(HiCacheError, match=BROKEN[breaking]):
        verify_all(rewrite)
