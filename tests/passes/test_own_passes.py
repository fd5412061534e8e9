"""Passes of a user's run on every straight-line program, and are held to their contract."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from hicache_compile import (
    FORA,
    PAB,
    Chipmunk,
    CompiledDenoiser,
    DiTango,
    FBCache,
    HiCache,
    HiCacheError,
    Interval,
    KeySteps,
    PerRange,
    Policy,
    Reuse,
    ToCa,
    Uncached,
    bisect,
    hicache_compile,
    inspect,
)
from hicache_compile.operators.anchors import remember
from hicache_compile.passes.transforms.fuel import limited
from tests.support.models import ToyBlock, ToyDiT

POLICY = HiCache(interval=3, warmup=2)
KINDS = PAB(2, 3, 2, window=None, mlp=KeySteps((500,), None))
STACK = FORA(interval=3, scope="stack")
POLICIES = [POLICY, STACK, KINDS, FBCache(0.2), ToCa(interval=3), DiTango(0.9, warmup=2, cooldown=0)]
SPARSITY = Chipmunk(top_keys=0.4, mlp_keys=None, first_dense=0, group=2, mlp_block=2, full_every=3)
NOISE = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0))
STEPS = 6


class TanhBlock(ToyBlock):
    """The block as the pass ``tanh_gelu`` makes it."""

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        gate_a, gate_m = self.gates(c).unsqueeze(1).chunk(2, dim=-1)
        q, k, v = self.qkv(self.norm(x)).unsqueeze(1).chunk(3, dim=-1)
        x = x + gate_a * self.proj(functional.scaled_dot_product_attention(q, k, v).squeeze(1))
        return x + gate_m * self.down(functional.gelu(self.up(self.norm(x)), approximate="tanh"))


class TanhDiT(ToyDiT):
    block = TanhBlock


def toy(kind: type[nn.Module] = ToyDiT) -> nn.Module:
    torch.manual_seed(0)
    return kind()


def run(compiled: Any, handle: CompiledDenoiser | None = None) -> Tensor:
    x = NOISE
    with torch.no_grad(), (handle or compiled).trajectory(STEPS):
        for step in range(STEPS):
            x = x - compiled(x, torch.full((2,), 1 - step / STEPS)) / STEPS
    return x


def exact(program: fx.GraphModule) -> list[fx.Node]:
    """The calls of ``gelu`` that are not approximated."""
    calls = program.graph.find_nodes(op="call_function", target=functional.gelu)
    return [node for node in calls if node.kwargs.get("approximate") != "tanh"]


def tanh_gelu(program: fx.GraphModule) -> None:
    """Replaces ``gelu`` by the approximation with tanh, without metadata on what is new."""
    for node in exact(program):
        with program.graph.inserting_before(node):
            new = program.graph.call_function(functional.gelu, node.args, {"approximate": "tanh"})
        node.replace_all_uses_with(new)
        program.graph.erase_node(node)


def nothing(program: fx.GraphModule) -> None:
    """Changes nothing."""


def made_anew(program: fx.GraphModule) -> fx.GraphModule:
    """The same as a new module, as torch's own transformer writes it."""
    return fx.Transformer(program).transform()


def without_dead_code(program: fx.GraphModule) -> None:
    program.graph.eliminate_dead_code()
    program.recompile()


@pytest.mark.parametrize("policy", POLICIES, ids=["all", "stack", "kinds", "guards", "tokens", "partitions"])
@pytest.mark.parametrize("own", [made_anew, without_dead_code])
def test_a_pass_that_changes_nothing_changes_no_bit(
    own: Callable[..., Any], policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HICACHE_VERIFY", "1")
    expected = run(hicache_compile(toy(), policy, backend="eager"))
    assert torch.equal(run(hicache_compile(toy(), policy, backend="eager", program_passes=[own])), expected)


@pytest.mark.parametrize("backend", ["eager", "aot_eager", "cond_eager"])
@pytest.mark.parametrize("policy", [POLICY, KINDS, FBCache(0.2)], ids=["all", "kinds", "guards"])
@pytest.mark.filterwarnings("ignore")
def test_an_op_is_replaced_in_all_programs(policy: Policy, backend: str) -> None:
    expected = run(hicache_compile(toy(TanhDiT), policy, backend=backend, together=True))
    compiled = hicache_compile(toy(), policy, backend=backend, together=True, program_passes=[tanh_gelu])
    assert torch.equal(run(compiled), expected)
    programs = {name: graph for name, graph in compiled.graphs.items() if name not in ("captured", "guarded")}
    assert {"full", "forecast"} <= set(programs)
    assert all(not exact(graph) for graph in programs.values())
    assert exact(compiled.graphs["captured"])
    assert "own pass tanh_gelu: changed" in str(compiled.explain(STEPS))


@pytest.mark.slow
def test_inductor_compiles_what_a_pass_made() -> None:
    expected = run(hicache_compile(toy(TanhDiT), POLICY))
    found = run(hicache_compile(toy(), POLICY, program_passes=[tanh_gelu]))
    assert (found - expected).norm() < 1e-5 * expected.norm()


def test_steps_without_a_cache_and_sparse_ones_run_it_too() -> None:
    expected = hicache_compile(toy(TanhDiT), POLICY, backend="eager", sparsity=SPARSITY)
    compiled = hicache_compile(toy(), POLICY, backend="eager", sparsity=SPARSITY, program_passes=[tanh_gelu])
    assert torch.equal(run(compiled), run(expected))
    with compiled.disabled(), expected.disabled():
        assert torch.equal(run(compiled), run(expected))


def test_passes_run_in_order_and_know_the_program() -> None:
    seen: list[tuple[str, int]] = []

    def look(program: fx.GraphModule) -> None:
        left = len(exact(program))
        seen.append((program.meta["program"], left))

    run(hicache_compile(toy(), POLICY, backend="eager", program_passes=[look, tanh_gelu, look]))
    first, second = dict(seen[::2]), dict(seen[1::2])
    assert list(first) == ["full", "forecast", "plain"]
    assert first["full"] == 3
    assert set(second.values()) == {0}


def test_every_new_node_gets_its_value_and_its_place() -> None:
    found: list[fx.Node] = []

    def look(program: fx.GraphModule) -> None:
        found.extend(program.graph.find_nodes(op="call_function", target=functional.gelu))

    run(hicache_compile(toy(), POLICY, backend="eager", program_passes=[tanh_gelu, look]))
    assert {tuple(node.meta["example_value"].shape) for node in found} == {(2, 5, 32)}
    assert {node.meta["path"] for node in found} == {f"layers.{i}.up" for i in range(3)}


# what the contract forbids


def raises(program: fx.GraphModule) -> None:
    raise KeyError("no such node")


def returns_a_number(program: fx.GraphModule) -> int:
    return 3


def adds_an_input(program: fx.GraphModule) -> None:
    with program.graph.inserting_before(next(iter(program.graph.nodes))):
        program.graph.placeholder("more")


def renumbers_an_input(program: fx.GraphModule) -> None:
    program.graph.find_nodes(op="placeholder")[0].meta["input"] = 7


def output_of(program: fx.GraphModule) -> fx.Node:
    return next(iter(reversed(program.graph.nodes)))


def adds_an_output(program: fx.GraphModule) -> None:
    output = output_of(program)
    output.args = ((*output.args[0], output.args[0][0]),)  # type: ignore[misc,index]  # a tuple of nodes


def rounds_the_output(program: fx.GraphModule) -> None:
    output = output_of(program)
    with program.graph.inserting_before(output):
        rounded = program.graph.call_method("half", (output.args[0][0],))  # type: ignore[index]
    output.args = ((rounded,),)


def returns_an_input(program: fx.GraphModule) -> None:
    like = program.graph.find_nodes(op="placeholder")
    output = output_of(program)
    given = next(node for node in like if node.meta["example_value"].shape == NOISE.shape)
    output.args = ((given,),)


def forgets_to_remember(program: fx.GraphModule) -> None:
    for node in program.graph.find_nodes(op="call_function", target=remember)[:1]:
        program.graph.erase_node(node)


def calls_what_does_not_run(program: fx.GraphModule) -> None:
    for node in exact(program):
        node.kwargs = {"approximate": "cosh"}


def uses_before_definition(program: fx.GraphModule) -> None:
    nodes = program.graph.find_nodes(op="call_function", target=torch._C._nn.linear)
    nodes[0].append(nodes[0])
    nodes[-1].prepend(nodes[0])


def calls_a_module(program: fx.GraphModule) -> None:
    program.add_module("own", nn.Identity())
    output = output_of(program)
    with program.graph.inserting_before(output):
        called = program.graph.call_module("own", (output.args[0][0],))  # type: ignore[index]
    output.args = ((called,),)


def holds_a_tensor(program: fx.GraphModule) -> None:
    program.register_buffer("table", torch.ones(16))
    output = output_of(program)
    with program.graph.inserting_before(output):
        held = program.graph.get_attr("table")
        total = program.graph.call_function(torch.mul, (output.args[0][0], held))  # type: ignore[index]
    output.args = ((total,),)


BROKEN = {
    raises: r"raised KeyError: 'no such node'",
    returns_a_number: r"returned int: must return a torch.fx.GraphModule, or None",
    adds_an_input: r"changed the inputs: \d+ became \d+; must leave them as they are",
    renumbers_an_input: r"changed the inputs: input \d+ .* became input 7 .*; must",
    adds_an_output: r"changed the outputs: 1 became 2",
    rounds_the_output: r"changed the outputs: float32\[2, 5, 16\] cpu became float16",
    returns_an_input: r"changed the outputs: float32\[2, 5, 16\] cpu became an input float32",
    forgets_to_remember: r"changed the writes to what is kept from step to step",
    calls_what_does_not_run: r"left a graph that is not valid: `.*gelu.*` does not run: RuntimeError",
    uses_before_definition: r"left a graph that is not valid: ",
    calls_a_module: r"calls the module `own`: must call functions and methods; weights are inputs",
    holds_a_tensor: r"reads the attribute `table`: must make what is constant in the graph",
}


@pytest.mark.parametrize("own", BROKEN, ids=lambda own: own.__name__)
def test_a_pass_that_breaks_the_contract_is_refused_by_name(own: Callable[..., Any]) -> None:
    model = toy()
    before = model(NOISE, torch.ones(2))
    compiled = hicache_compile(model, POLICY, backend="eager", program_passes=[nothing, own])
    with pytest.raises(HiCacheError, match=rf"^program_passes\[1\] \({own.__name__}\) on program \w+: {BROKEN[own]}"):
        run(compiled)
    assert torch.equal(model(NOISE, torch.ones(2)), before)
    assert torch.equal(
        run(hicache_compile(model, POLICY, backend="eager")), run(hicache_compile(toy(), POLICY, backend="eager"))
    )


def test_a_pass_that_fails_for_one_policy_leaves_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def not_for_stacks(program: fx.GraphModule) -> None:
        if compiled.policy.scope == "stack":
            raise ValueError("stacks")

    compiled = hicache_compile(toy(), POLICY, backend="eager", program_passes=[not_for_stacks])
    before = run(compiled)
    compiled.policy = STACK
    with pytest.raises(HiCacheError, match=r"not_for_stacks.*raised ValueError: stacks"):
        run(compiled)
    compiled.policy = POLICY
    assert torch.equal(run(compiled), before)
    assert compiled.report().recompiles == 0


def test_the_verifier_sees_a_pass_that_reaches_behind_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    def reaches_behind(program: fx.GraphModule) -> None:
        if compiled.policy.scope == "stack":
            calls_what_does_not_run(captured)

    monkeypatch.setenv("HICACHE_VERIFY", "1")
    compiled = hicache_compile(toy(), POLICY, backend="eager", program_passes=[reaches_behind])
    run(compiled)
    captured = compiled.graphs["captured"]
    compiled.policy = STACK
    with pytest.raises(HiCacheError, match="changed the captured or the guarded graph"):
        run(compiled)


@pytest.mark.parametrize("given", [tanh_gelu, [3], "tanh", [None]])
def test_passes_are_a_list_of_functions(given: Any) -> None:
    with pytest.raises(HiCacheError, match=r"hicache_compile.program_passes = .*: must be a list of functions"):
        hicache_compile(toy(), POLICY, program_passes=given)


# other ways in


@pytest.mark.parametrize("policy", [POLICY, Uncached()], ids=["cached", "uncached"])
def test_torch_compile_takes_them_as_an_option(policy: Policy) -> None:
    torch._dynamo.reset()
    options = {"policy": policy, "backend": "eager"}
    expected = torch.compile(toy(TanhDiT), backend="hicache", options=options)
    compiled = torch.compile(toy(), backend="hicache", options={**options, "program_passes": [tanh_gelu]})
    assert torch.equal(run(compiled, inspect(compiled)), run(expected, inspect(expected)))


def test_two_denoisers_of_one_model_have_passes_of_their_own() -> None:
    model = toy()
    plain = hicache_compile(model, POLICY, backend="eager")
    tanh = hicache_compile(model, POLICY, backend="eager", program_passes=[tanh_gelu])
    alone = run(hicache_compile(toy(), POLICY, backend="eager"))
    assert torch.equal(run(plain), alone)
    assert not torch.equal(run(tanh), alone)
    assert torch.equal(run(plain), alone)


def test_many_groups_are_refused_where_one_graph_has_every_branch() -> None:
    policy = Policy(PerRange(tuple(Interval(2 + place, 1) for place in range(5))), Reuse(), scope="module")

    class Deep(ToyDiT):
        def __init__(self) -> None:
            super().__init__()
            self.layers.extend([ToyBlock(16), ToyBlock(16)])

    with pytest.raises(HiCacheError, match=r"program_passes with 5 groups of sites .*: must be at most 4"):
        run(hicache_compile(toy(Deep), policy, backend="cond_eager", program_passes=[nothing]))
    run(hicache_compile(toy(Deep), policy, backend="cond_eager"))


def test_fuel_is_spent_on_passes_last() -> None:
    compiled = hicache_compile(toy(), POLICY, backend="eager", program_passes=[nothing, tanh_gelu])
    with limited(7):
        run(compiled)
        assert ("tanh_gelu", "the fuel for 7 rewrites was spent") in compiled.report().refused
        assert "own pass tanh_gelu: changed 0 of 3 programs" in str(compiled.explain(STEPS))


def test_bisection_names_a_guilty_pass() -> None:
    def wrong(program: fx.GraphModule) -> None:
        for node in exact(program):
            node.target, node.kwargs = torch.tanh, {}

    exactly = HiCache(interval=1)
    good = run(hicache_compile(toy(), exactly, backend="eager"))

    def is_good(compiled: CompiledDenoiser) -> bool:
        return bool((run(compiled) - good).norm() < 1e-3 * good.norm())

    assert bisect(toy(), exactly, is_good, program_passes=[tanh_gelu, wrong]) is None  # no gelu is left for it
    assert bisect(toy(), exactly, is_good, program_passes=[nothing, wrong]) == "wrong"
