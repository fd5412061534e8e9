"""The guarded graph: golden text, runs as it is, loses no op; and the programs made from it."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from expecttest import assert_expected_inline

from hicache_compile.passes import Choice, rewrite
from hicache_compile.passes.graph.graphs import placeholders
from hicache_compile.passes.graph.inputs import is_ring
from hicache_compile.policy.layout import Layout
from tests.support.captured_graphs import captured, count, listing
from tests.support.models import ToyDiT, flux_inputs, random_flux

TOY_INPUTS = (torch.zeros(2, 5, 16), torch.zeros(2))


@pytest.fixture(scope="module")
def toy() -> torch.fx.GraphModule:
    return captured(ToyDiT(depth=2), *TOY_INPUTS)


@pytest.fixture(scope="module")
def flux() -> torch.fx.GraphModule:
    return captured(random_flux(3, 5), **flux_inputs(), timestep=torch.ones(2))


def test_golden_guarded_graph_at_module_scope(toy: torch.fx.GraphModule) -> None:
    made = rewrite(toy, Layout("module", depth=2))
    assert_expected_inline(
        listing(made.guarded),
        """\
1_: input[2]
0_: input[2, 5, 16]
computing: input
position: input[1]
weights: input[2]
anchors_0: input[2, 2, 5, 16]
anchors_1: input[2, 2, 5, 16]
anchors_2: input[2, 2, 5, 16]
anchors_3: input[2, 2, 5, 16]
getitem = getitem([1_, [slice(None, None, None), None]])
c = linear([getitem])
x = linear([0_])
linear_2 = linear([c])
unsqueeze = unsqueeze([linear_2, 1])
chunk = chunk([unsqueeze, 2])
gate_a = getitem([chunk, 0])
gate_m = getitem([chunk, 1])
full_or_forecast = full_or_forecast([layers_0_proj, [x], [None], [anchors_0]])
linear_4 = getitem([full_or_forecast, 0])
mul = mul([gate_a, linear_4])
x_1 = add([x, mul])
full_or_forecast_1 = full_or_forecast([layers_0_down, [x_1], [None], [anchors_1]])
linear_6 = getitem([full_or_forecast_1, 0])
mul_1 = mul([gate_m, linear_6])
x_2 = add([x_1, mul_1])
linear_7 = linear([c])
unsqueeze_2 = unsqueeze([linear_7, 1])
chunk_2 = chunk([unsqueeze_2, 2])
gate_a_1 = getitem([chunk_2, 0])
gate_m_1 = getitem([chunk_2, 1])
full_or_forecast_2 = full_or_forecast([layers_1_proj, [x_2], [None], [anchors_2]])
linear_9 = getitem([full_or_forecast_2, 0])
mul_2 = mul([gate_a_1, linear_9])
x_3 = add([x_2, mul_2])
full_or_forecast_3 = full_or_forecast([layers_1_down, [x_3], [None], [anchors_3]])
linear_11 = getitem([full_or_forecast_3, 0])
mul_3 = mul([gate_m_1, linear_11])
x_4 = add([x_3, mul_3])
linear_12 = linear([x_4])
return [linear_12]""",
    )


def test_golden_programs_at_stack_scope(toy: torch.fx.GraphModule) -> None:
    made = rewrite(toy, Layout("stack", depth=2))
    assert_expected_inline(
        listing(made.guarded),
        """\
1_: input[2]
0_: input[2, 5, 16]
computing: input
position: input[1]
weights: input[2]
anchors_0: input[2, 2, 5, 16]
x = linear([0_])
full_or_forecast = full_or_forecast([layers_0_layers_1, [1_, x], [x], [anchors_0]])
x_4 = getitem([full_or_forecast, 0])
linear_12 = linear([x_4])
return [linear_12]""",
    )
    assert_expected_inline(
        listing(made.programs[Choice.FORECAST]),
        """\
0_: input[2, 5, 16]
weights: input[2]
anchors_0: input[2, 2, 5, 16]
x = linear([0_])
forecast = forecast([anchors_0, weights])
add = add([x, forecast])
linear_12 = linear([add])
return [linear_12]""",
    )


@pytest.mark.parametrize("scope", ["module", "block", "stack", "output"])
def test_every_op_of_the_captured_graph_is_kept_once(flux: torch.fx.GraphModule, scope: str) -> None:
    made = rewrite(flux, Layout(scope, depth=3))
    full, original = count(made.programs[Choice.FULL]), count(flux)
    assert original - full == Counter()
    assert set(full - original) <= {"remember", "sub", "getitem"}
    assert count(made.programs[Choice.PLAIN]) == original


@pytest.mark.parametrize("scope", ["module", "block", "stack", "output"])
def test_a_forecast_program_computes_no_attention_and_no_mlp(flux: torch.fx.GraphModule, scope: str) -> None:
    ops = count(rewrite(flux, Layout(scope, depth=3)).programs[Choice.FORECAST])
    assert ops["scaled_dot_product_attention"] == ops["gelu"] == ops["remember"] == 0


def test_text_slots_that_nothing_reads_have_no_ring(flux: torch.fx.GraphModule) -> None:
    made = rewrite(flux, Layout("module", depth=3))
    assert sum(len(site.slots) for site in made.sites) == 17
    rings = [node for node in placeholders(made.programs[Choice.FORECAST]) if is_ring(node)]
    assert len(rings) == 3 * 2 + 5  # image attention and MLP of each double block, and the single blocks
    assert {tuple(ring.meta["example_value"].shape) for ring in rings} == {(3, 2, 16, 32)}  # image rows only


def test_the_incoming_graph_is_not_changed(flux: torch.fx.GraphModule) -> None:
    before = listing(flux)
    for scope in ("module", "block", "stack", "output"):
        rewrite(flux, Layout(scope, depth=3))
    assert listing(flux) == before


@pytest.mark.parametrize("scope", ["module", "block", "stack", "output"])
def test_the_guarded_graph_runs_as_it_is(scope: str) -> None:
    """Run it by hand with zero rings: full equals the captured graph and fills the rings; then reuse gives it back."""
    model = ToyDiT(depth=2)
    graph = captured(model, *TOY_INPUTS)
    made = rewrite(graph, Layout(scope, depth=2), without=("collapse",))
    names = {name: parameter.detach() for name, parameter in model.named_parameters()}
    given = {"l_args_0_": torch.randn(2, 5, 16), "l_args_1_": torch.rand(2)}
    inputs = [given[n.name] if n.name in given else _weight(n, names) for n in placeholders(graph)]
    rings = [torch.zeros(n.meta["example_value"].shape) for n in placeholders(made.guarded) if "slot" in n.meta]
    one = torch.tensor([1.0, 0.0])
    (full,) = made.guarded(*inputs, True, torch.tensor([0]), one, *rings)
    torch.testing.assert_close(full, model(given["l_args_0_"], given["l_args_1_"]), rtol=0, atol=0)
    assert all(ring[0].abs().sum() > 0 and ring[1].abs().sum() == 0 for ring in rings)
    (reused,) = made.guarded(*inputs, False, torch.tensor([0]), one, *rings)
    # The residual is stored as out - in, so in + (out - in) rounds once more: a few units in the last place.
    torch.testing.assert_close(reused, full, rtol=1e-5, atol=1e-6)


def _weight(node: torch.fx.Node, names: dict[str, torch.Tensor]) -> torch.Tensor:
    flat = {name.replace(".", "_"): value for name, value in names.items()}
    clean = node.name.removeprefix("l_model_").replace("dict_", "").replace("modules_", "").replace("parameters_", "")
    return flat[clean.strip("_")]
