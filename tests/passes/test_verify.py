"""The verifier of each level, tested with broken passes: each must be caught, by name."""

from __future__ import annotations

import operator
from collections.abc import Callable

import pytest
import torch
from torch import fx

from hicache_compile import Chipmunk, HiCacheError
from hicache_compile.operators import measurements
from hicache_compile.operators.anchors import forecast, full_or_forecast, remember
from hicache_compile.passes import PASSES, Choice, rewrite
from hicache_compile.passes.graph.choices import Kind
from hicache_compile.passes.graph.graphs import copy_graph, output_node, placeholders
from hicache_compile.passes.graph.inputs import is_ring, state_of
from hicache_compile.passes.transforms.specialise import Specialiser
from hicache_compile.passes.verify import verify_new, verify_pair, verify_parts, verify_phases
from hicache_compile.passes.work import Work
from hicache_compile.policy.guards import Measure, Probe, Signal
from hicache_compile.policy.layout import Layout
from hicache_compile.policy.sparsity.phases import Phase
from tests.support.captured_graphs import captured
from tests.support.models import ToyDiT

TOGETHER = Layout("module", depth=2)
FIRST_BLOCK = Layout("stack", depth=2, probes=(Probe(Measure.CHANGE, Signal.RESIDUAL, 1, every_step=False),))
SPARSE = Layout("module", depth=2, sparsity=Chipmunk(top_keys=0.4, mlp_keys=0.25, first_dense=0, group=4, mlp_block=4))
PER_KIND = Layout("module", depth=2, groups=(("self-attention", None), ("mlp", None)))
MLPS = Choice.forecasting(["mlp"], of=["self-attention", "mlp"])


@pytest.fixture(scope="module")
def graph() -> fx.GraphModule:
    return captured(ToyDiT(depth=2), torch.zeros(2, 5, 16), torch.zeros(2))


def made(graph: fx.GraphModule, layout: Layout) -> Work:
    """What the passes make of a copy of ``graph``."""
    work = Work(copy_graph(graph)[0], layout, copy_graph(graph)[0])
    for step in PASSES:
        if step.applies(layout):
            step.run(work)
    return work


@pytest.fixture
def work(graph: fx.GraphModule) -> Work:
    return made(graph, TOGETHER)


def find(module: fx.GraphModule | None, target: Callable[..., object]) -> fx.Node:
    assert module is not None
    return next(node for node in module.graph.nodes if node.target is target)


def verify_all(work: Work) -> None:
    for step in PASSES:
        if step.applies(work.layout):
            step.ensures(work)


def test_what_the_passes_make_is_accepted(work: Work) -> None:
    assert set(work.programs) == {Choice.FULL, Choice.FORECAST, Choice.PLAIN}
    verify_all(work)  # raises where it finds fault


def test_every_pass_that_promises_something_is_verified_in_a_rewrite(
    graph: fx.GraphModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(program: fx.GraphModule) -> fx.GraphModule:
        output_node(program.graph).args = ((placeholders(program)[0],),)
        return program

    honest = Specialiser.programs
    monkeypatch.setattr(Specialiser, "programs", lambda self: {c: broken(p) for c, p in honest(self).items()})
    with pytest.raises(HiCacheError, match="an output must not be an input"):
        rewrite(graph, TOGETHER)
    monkeypatch.setenv("HICACHE_VERIFY", "0")
    assert rewrite(graph, TOGETHER).programs


def leave_dead_code(work: Work) -> None:
    graph = work.captured.graph
    with graph.inserting_before(output_node(graph)):
        node = graph.call_function(torch.neg, (placeholders(work.captured)[0],))
    node.meta["path"] = ""


def forget_a_path(work: Work) -> None:
    del output_node(work.captured.graph).all_input_nodes[0].meta["path"]


def forget_which_input_it_is(work: Work) -> None:
    placeholders(work.captured)[0].meta["input"] = 1


def guarded_of(work: Work) -> fx.GraphModule:
    assert work.guarded is not None
    return work.guarded


def lose_an_op(work: Work) -> None:
    node = next(n for n in guarded_of(work).graph.nodes if n.target is operator.mul)
    node.replace_all_uses_with(node.args[1])
    guarded_of(work).graph.erase_node(node)


def share_a_ring(work: Work) -> None:
    calls = [n for n in guarded_of(work).graph.nodes if n.target is full_or_forecast]
    calls[1].update_arg(4, calls[0].args[4])


def drop_an_operand(work: Work) -> None:
    call = find(work.guarded, full_or_forecast)
    call.update_arg(2, call.args[2][:-1])


def give_a_ring_of_another_shape(work: Work) -> None:
    ring = find(work.guarded, full_or_forecast).args[4][0]
    ring.meta["example_value"] = ring.meta["example_value"][:, :1]


def leave_out_a_stream(work: Work) -> None:
    call = find(work.guarded, full_or_forecast)
    call.update_arg(3, [])


def draw_random_numbers_in_a_site(work: Work) -> None:
    """In the place of something else, so that no op is lost or added by number."""
    site = guarded_of(work).get_submodule("layers_0_proj")
    assert isinstance(site, fx.GraphModule)
    node = next(n for n in site.graph.nodes if n.op == "call_function")
    node.target = torch.rand_like


def compute_in_a_forecast(work: Work) -> None:
    graph = work.programs[Choice.FORECAST].graph
    node = find(work.programs[Choice.FORECAST], forecast)
    with graph.inserting_after(node):
        graph.call_function(torch.nn.functional.scaled_dot_product_attention, (node, node, node))


def write_in_a_forecast(work: Work) -> None:
    graph = work.programs[Choice.FORECAST].graph
    node = find(work.programs[Choice.FORECAST], forecast)
    with graph.inserting_after(node):
        graph.call_function(remember, (node.args[0], node.args[1], node))


def forecast_in_full(work: Work) -> None:
    graph = work.programs[Choice.FULL].graph
    node = find(work.programs[Choice.FULL], remember)
    with graph.inserting_after(node):
        graph.call_function(forecast, (node.args[0], node.args[1]))


def write_to_a_ring_by_other_means(work: Work) -> None:
    graph = work.programs[Choice.FULL].graph
    node = find(work.programs[Choice.FULL], remember)
    with graph.inserting_after(node):
        graph.call_method("zero_", (node.args[0],))


def leave_a_guarded_call(work: Work) -> None:
    graph = work.programs[Choice.PLAIN].graph
    with graph.inserting_before(output_node(graph)):
        graph.call_function(full_or_forecast, ())


def lose_an_op_of_plain(work: Work) -> None:
    program = work.programs[Choice.PLAIN]
    node = next(n for n in program.graph.nodes if n.target is operator.mul)
    node.replace_all_uses_with(node.args[1])
    program.graph.erase_node(node)


def compute_twice_in_full(work: Work) -> None:
    graph = work.programs[Choice.FULL].graph
    node = next(n for n in graph.nodes if n.target is torch._C._nn.linear)
    with graph.inserting_after(node):
        graph.node_copy(node)


def return_an_input(work: Work) -> None:
    program = work.programs[Choice.FORECAST]
    output_node(program.graph).args = ((placeholders(program)[0],),)


def forget_to_remember(work: Work) -> None:
    program = work.programs[Choice.FULL]
    node = find(program, remember)
    ring = node.args[0]
    program.graph.erase_node(node)
    program.graph.erase_node(ring)


BROKEN = {
    leave_dead_code: "captured: .* must be read by something",
    forget_a_path: "captured: .* must be given a module path",
    forget_which_input_it_is: "captured: .* must be input 0 of the denoiser",
    lose_an_op: r"guarded: ops added \{\}, ops lost \{'mul': 1\}",
    share_a_ring: "guarded: `anchors_0` must be the ring of one slot only",
    drop_an_operand: "guarded: .* must be given one operand per input of its site",
    give_a_ring_of_another_shape: "guarded: `anchors_0` must be shaped like its slot",
    leave_out_a_stream: "guarded: .* must be given one ring and stream per slot",
    draw_random_numbers_in_a_site: "guarded: .* must be free of random numbers",
    compute_in_a_forecast: "program forecast: `scaled_dot_product_attention` must be computed no more often than",
    write_in_a_forecast: "program forecast: .* must be free of writes",
    forecast_in_full: "program full: .* must be free of forecasts",
    write_to_a_ring_by_other_means: "program full: .* must be kept from writing to a ring except through remember",
    leave_a_guarded_call: "program plain: .* must be inlined",
    lose_an_op_of_plain: r"program plain: ops added \{\}, ops lost \{'mul': 1\}",
    compute_twice_in_full: r"program full: ops added \{'linear': 1\}",
    return_an_input: "program forecast: .* an output must not be an input",
    forget_to_remember: "programs: full writes rings .* must be the same",
}


@pytest.mark.parametrize("breaking", BROKEN, ids=lambda breaking: breaking.__name__)
def test_a_broken_pass_is_caught(work: Work, breaking: Callable[[Work], None]) -> None:
    breaking(work)
    with pytest.raises(HiCacheError, match=BROKEN[breaking]):
        verify_all(work)


def test_rings_of_another_shape_are_caught(work: Work) -> None:
    """By the comparison of the two programs alone."""
    ring = next(filter(is_ring, placeholders(work.programs[Choice.FORECAST])))
    ring.meta["example_value"] = ring.meta["example_value"][:, :, :1]
    with pytest.raises(HiCacheError, match=r"programs: full writes rings .* must be the same"):
        verify_pair(work.programs)


# programs that are split where a guard decides


def compute_twice_in_the_probe(work: Work) -> None:
    probe = work.programs[Choice.probe(0)]
    node = next(n for n in probe.graph.nodes if n.target is torch._C._nn.linear)
    with probe.graph.inserting_after(node):
        probe.graph.node_copy(node)


def lose_an_op_of_the_rest(work: Work) -> None:
    rest = work.programs[Choice.FULL]
    node = find(rest, torch.nn.functional.scaled_dot_product_attention)
    node.replace_all_uses_with(node.args[0])
    rest.graph.erase_node(node)


def return_an_input_of(choice: Choice) -> Callable[[Work], None]:
    def breaking(work: Work) -> None:
        program = work.programs[choice]
        output_node(program.graph).args = ((placeholders(program)[0],),)

    breaking.__name__ = f"return_an_input_of_{choice}"
    return breaking


SPLIT = {
    compute_twice_in_the_probe: "split programs: `linear` must be computed as often as in the captured graph",
    lose_an_op_of_the_rest: "split programs: `scaled_dot_product_attention` must be computed as often as",
    return_an_input_of(Choice.FULL): "program full: .* an output must not be an input",
    return_an_input_of(Choice.FORECAST): "program forecast: .* an output must not be an input",
}


@pytest.mark.parametrize("breaking", SPLIT, ids=lambda breaking: breaking.__name__)
def test_a_broken_split_is_caught(graph: fx.GraphModule, breaking: Callable[[Work], None]) -> None:
    work = made(graph, FIRST_BLOCK)
    assert set(work.programs) == {Choice.FULL, Choice.FORECAST, Choice.PLAIN, Choice.probe(0)}
    verify_parts(work)
    breaking(work)
    with pytest.raises(HiCacheError, match=SPLIT[breaking]):
        verify_parts(work)


# phases of sparse steps


def in_phase(phase: Phase) -> Choice:
    return Choice.FULL.with_phases((("", phase),))


def kept_in(program: fx.GraphModule, name: str) -> fx.Node:
    return next(n for n in placeholders(program) if (state := state_of(n)) is not None and state.name == name)


def forget_to_write(name: str) -> Callable[[Work], None]:
    def breaking(work: Work) -> None:
        program = work.programs[in_phase(Phase.SELECT)]
        for user in list(kept_in(program, name).users):
            if user.target is measurements.keep:
                program.graph.erase_node(user)

    breaking.__name__ = f"forget_to_write_{name}"
    return breaking


def forget_what_is_kept(work: Work) -> None:
    forget_to_write("out_2")(work)
    program = work.programs[in_phase(Phase.SELECT)]
    program.graph.erase_node(kept_in(program, "out_2"))


def keep_it_in_another_form(work: Work) -> None:
    node = kept_in(work.programs[in_phase(Phase.REFRESH)], "columns_0")
    node.meta["example_value"] = node.meta["example_value"][:1]


PHASES = {
    forget_to_write("rest_0"): "program select: `rest_0` must be written by the step that selects",
    forget_to_write("columns_1"): "program .*: `columns_1` must be written by the step that selects",
    forget_what_is_kept: "program .*: `out_2` must be written by the step that selects",
    keep_it_in_another_form: "program refresh: `columns_0` must be written by the step that selects, in this form",
    return_an_input_of(in_phase(Phase.SPARSE)): "program sparse: .* an output must not be an input",
    return_an_input_of(in_phase(Phase.SELECT)): "program select: .* an output must not be an input",
}


@pytest.mark.parametrize("breaking", PHASES, ids=lambda breaking: breaking.__name__)
def test_a_broken_phase_is_caught(graph: fx.GraphModule, breaking: Callable[[Work], None]) -> None:
    work = made(graph, SPARSE)
    assert {choice for choice in work.programs if choice.phases} == {
        in_phase(phase) for phase in (Phase.SELECT, Phase.REFRESH, Phase.SPARSE)
    }
    verify_phases(work)
    breaking(work)
    with pytest.raises(HiCacheError, match=PHASES[breaking]):
        verify_phases(work)


# programs that are made when they are first needed


def attend_again(program: fx.GraphModule) -> None:
    node = find(program, torch.nn.functional.scaled_dot_product_attention)
    with program.graph.inserting_after(node):
        program.graph.node_copy(node)


def compute_what_is_forecast(program: fx.GraphModule) -> None:
    node = find(program, forecast)
    with program.graph.inserting_after(node):
        program.graph.call_function(torch._C._nn.linear, (node, node))


def hand_out_an_input(program: fx.GraphModule) -> None:
    output_node(program.graph).args = ((placeholders(program)[0],),)


def zero_a_ring(program: fx.GraphModule) -> None:
    node = find(program, remember)
    with program.graph.inserting_after(node):
        program.graph.call_method("zero_", (node.args[0],))


def call_a_site(program: fx.GraphModule) -> None:
    with program.graph.inserting_before(output_node(program.graph)):
        program.graph.call_function(full_or_forecast, ())


LAZY = {
    attend_again: "program forecast_mlp: `scaled_dot_product_attention` must be computed no more often than",
    compute_what_is_forecast: "program forecast_mlp: `linear` must be computed no more often than",
    hand_out_an_input: "program forecast_mlp: .* an output must not be an input",
    zero_a_ring: "program forecast_mlp: .* must be kept from writing to a ring except through remember",
    call_a_site: "program forecast_mlp: .* must be inlined",
}


@pytest.mark.parametrize("breaking", LAZY, ids=lambda breaking: breaking.__name__)
def test_a_broken_program_that_is_made_lazily_is_caught(
    graph: fx.GraphModule, breaking: Callable[[fx.GraphModule], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Choice(Kind.FORECAST, frozenset({"mlp"})) == MLPS
    work = made(graph, PER_KIND)
    program = work.specialiser.make(MLPS)
    verify_new(work, MLPS, program)
    breaking(program)
    with pytest.raises(HiCacheError, match=LAZY[breaking]):
        verify_new(work, MLPS, program)
    monkeypatch.setattr(Specialiser, "make", lambda self, choice: program)
    with pytest.raises(HiCacheError, match=LAZY[breaking]):
        rewrite(graph, PER_KIND).program(MLPS)
    monkeypatch.setenv("HICACHE_VERIFY", "0")
    assert rewrite(graph, PER_KIND).program(MLPS) is program


def test_a_lazily_made_phase_is_verified(graph: fx.GraphModule) -> None:
    work = made(graph, Layout("module", depth=2, groups=PER_KIND.groups, sparsity=SPARSE.sparsity))
    choice = MLPS.with_phases((("self-attention", Phase.SPARSE),))
    program = work.specialiser.make(choice)
    verify_new(work, choice, program)
    hand_out_an_input(program)
    with pytest.raises(HiCacheError, match=r"program forecast_mlp_self-attention=sparse: .* must not be an input"):
        verify_new(work, choice, program)
