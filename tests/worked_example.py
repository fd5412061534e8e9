"""The worked example of the documentation: the graphs of a model of two blocks before and after each pass.

``python -m tests.worked_example`` writes them into ``docs/example.md``, between its two markers.
"""

from __future__ import annotations

import difflib
import inspect
import re
from functools import cache
from pathlib import Path

import torch
from torch import fx

from hicache_compile import Chipmunk, DiTango, FBCache, Tokens
from hicache_compile.passes.graph.graphs import copy_graph
from hicache_compile.passes.lowering.cond import both_branches
from hicache_compile.passes.pipeline import PASSES, rewrite
from hicache_compile.passes.transforms.fuel import limited
from hicache_compile.passes.work import Rewrite, Work
from hicache_compile.policy.layout import Layout
from hicache_compile.policy.sparsity.phases import Phase
from tests.support.captured_graphs import captured, listing
from tests.support.models import ToyBlock, ToyDiT

PAGE = Path(__file__).parents[1] / "docs" / "example.md"
GENERATED = re.compile(r"(?<=<!-- worked example -->\n).*?(?=<!-- end -->)", flags=re.DOTALL)
TOKENS = 16
SPARSE = {"top_keys": 0.4, "mlp_keys": 0.25, "first_dense": 0, "group": 4, "mlp_block": 4}


@cache
def graph() -> fx.GraphModule:
    """The captured graph of the model; no pass changes it."""
    return captured(ToyDiT(depth=2), torch.zeros(2, TOKENS, 16), torch.zeros(2))


def graph_of_a_rank() -> fx.GraphModule:
    """What one of two ranks captures of an MLP whose weights are spread by tensor parallelism. No other rank exists."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
    from torch.testing._internal.distributed.fake_pg import FakeStore

    torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    try:
        model, plan = ToyDiT(depth=1), {"up": ColwiseParallel(), "down": RowwiseParallel()}
        parallelize_module(model.layers[0], init_device_mesh("cpu", (2,)), plan)
        return captured(model, torch.zeros(2, TOKENS, 16), torch.zeros(2))
    finally:
        torch.distributed.destroy_process_group()


def before_pass(layout: Layout, name: str, source: fx.GraphModule | None = None) -> Work:
    """The work of the passes of ``layout`` before the one that is called ``name``."""
    source = source or graph()
    work = Work(source, layout, copy_graph(source)[0])
    for step in PASSES:
        if step.name == name:
            return work
        if step.applies(layout):
            step.run(work)
    raise AssertionError(name)


def after_pass(layout: Layout, name: str, source: fx.GraphModule | None = None) -> Work:
    """The same after it."""
    work = before_pass(layout, name, source)
    next(step for step in PASSES if step.name == name).run(work)
    return work


def text(module: fx.GraphModule | None) -> str:
    """One line a node; weights are left out."""
    assert module is not None
    listed = re.sub(r"\bmodel_modules_\w*cell_contents", "mesh", listing(module))
    return re.sub(r"\b1_\b", "time", re.sub(r"\b0_\b", "latents", listed))


def block(content: str, language: str = "text") -> str:
    return f"```{language}\n{content}\n```\n"


def difference(one: str, other: str) -> str:
    """What is lost (-) and added (+), with two lines around each change."""
    lines = difflib.unified_diff(one.splitlines(), other.splitlines(), lineterm="", n=2)
    return block("\n".join("..." if line.startswith("@@") else line for line in [*lines][2:]), "diff")


def marked(work: Work) -> str:
    """The listing with a heading for each block."""
    owner = {name: path for path, names in work.block_nodes.items() for name in names}
    lines, last = [], ""
    for line in text(work.module).splitlines():
        found = owner.get(re.split(r"[ :]", line)[0], "")
        if found != last:
            lines.append(f"# {found or 'outside of the blocks'}")
        lines.append(line)
        last = found
    return "\n".join(lines)


def sites(work: Work | Rewrite) -> str:
    rows = [
        f"| `{site.name}` | {site.kind} | {', '.join(f'`{slot.node.name}`' for slot in site.slots)} "
        f"| {len(site.region)} |"
        for site in work.sites
    ]
    return "\n".join(["| site | kind | slots | operations in it |", "|---|---|---|---|", *rows, ""])


def refusals(work: Work | Rewrite) -> str:
    return block("\n".join(map(str, work.refused)))


def model() -> str:
    return block("\n\n\n".join(inspect.getsource(part).strip() for part in (ToyBlock, ToyDiT)), "py")


def main_line() -> list[str]:
    """Capture, find blocks, cut sites, guard, specialise: what every policy goes through."""
    layout = Layout("module", depth=2)
    source = text(graph())
    made = rewrite(graph(), layout)
    guarded = text(made.guarded)
    return [
        "## The model\n",
        model(),
        "## Captured\n",
        f"One call, with `x` of shape `[2, {TOKENS}, 16]` (`latents` below) and `t` of shape `[2]` (`time`), as Dynamo "
        "traced it.\n",
        block(source),
        "## Pass: find blocks\n",
        "Modules of one list whose outputs are residual sums of their inputs are blocks. Nothing is rewritten.\n",
        block(marked(after_pass(layout, "find blocks"))),
        "## Pass: cut sites\n",
        "At scope `module` each attention and each MLP is a site. A slot is the value that leaves it and is kept.\n",
        sites(after_pass(layout, "cut sites")),
        "## Pass: spend fuel\n",
        "With `HICACHE_FUEL=3` three sites are kept; the fourth is computed in every step, and is listed:\n",
        fuelled(layout),
        "## Pass: guard\n",
        "Each site becomes one call of `full_or_forecast`, with the rings of its anchors as new inputs. From here on "
        "no pass knows the model.\n",
        block(guarded),
        "One of the submodules that it calls:\n",
        block(text(inside(made))),
        "## Pass: specialise\n",
        "**Full**: the sites are inlined again, and slots are written to the rings. Against the captured graph:\n",
        difference(source, text(made.programs[choice(made, "full")])),
        "**Forecast**: each site is replaced by a weighted sum of its ring, and what is dead goes.\n",
        block(text(made.programs[choice(made, "forecast")])),
    ]


def choice(made: Rewrite, name: str):  # type: ignore[no-untyped-def]
    return next(one for one in made.programs if str(one) == name)


def inside(made: Rewrite) -> fx.GraphModule:
    found = made.guarded.get_submodule("layers_0_down")
    assert isinstance(found, fx.GraphModule)
    return found


def fuelled(layout: Layout) -> str:
    with limited(3):
        return refusals(after_pass(layout, "spend fuel"))


def other_scopes() -> list[str]:
    block_scope, stack = Layout("block", depth=2), Layout("stack", depth=2)
    return [
        "## Pass: collapse, at scope `block`\n",
        "Residuals of blocks in a row add up, and so do their forecasts. Before:\n",
        sites(before_pass(block_scope, "collapse")),
        "After:\n",
        sites(after_pass(block_scope, "collapse")),
        "Its forecast program:\n",
        block(text(rewrite(graph(), block_scope).programs[choice(rewrite(graph(), block_scope), "forecast")])),
        "## Scope `stack`\n",
        "The residual over the whole run of blocks is one site. Guarded:\n",
        block(text(rewrite(graph(), stack).guarded)),
    ]


def with_guards() -> list[str]:
    layout = FBCache(0.1).layout
    plain, probed = before_pass(layout, "insert probes"), after_pass(layout, "insert probes")
    made = rewrite(graph(), layout)
    return [
        "## Pass: insert probes, under `FBCache`\n",
        "What the guard measures, the change of the first block's residual, is computed in the graph.\n",
        difference(text(plain.module), text(probed.module)),
        "## Pass: split at probes\n",
        "The program of a step is cut where the guard decides. The probe, which every step runs:\n",
        block(text(made.programs[made.stages[0].probe])),
        "The end of a step that is skipped:\n",
        block(text(made.programs[made.stages[0].skip])),
    ]


def other_passes() -> list[str]:
    sparse = Layout("module", depth=2, sparsity=Chipmunk(**SPARSE))
    made = rewrite(graph(), sparse)
    full = choice(made, "full")
    ordered = Layout("module", depth=2, sparsity=Chipmunk(order="patches", grid=(4, 4), **SPARSE))
    tokens = rewrite(graph(), Layout("module", depth=2, tokens=Tokens("clusters", 2, spread="value", iterations=2)))
    split = graph_of_a_rank()
    partitioned = DiTango(0.5, groups=2, partitions=4).layout
    both = both_branches(rewrite(graph(), Layout("stack", depth=2)))
    marks = "\n".join(f"- `{name}`" for name in after_pass(sparse, "mark sparse").sparse)
    return [
        "## Pass: local linears, under `Chipmunk`\n",
        "Where tensor parallelism gives each rank a part of the weights (here of one MLP, over two ranks):\n",
        difference(text(split), text(after_pass(sparse, "local linears", split).module)),
        '## Pass: order tokens, under `Chipmunk(order="patches")`\n',
        difference(text(graph()), text(after_pass(ordered, "order tokens").module)),
        "## Pass: mark sparse, under `Chipmunk`\n",
        "What may be sparse in computed steps; blocks that are dense or run in forecast steps are left out:\n",
        marks + "\n",
        "## Pass: sparsify\n",
        "The full program of a sparse step, against the dense one:\n",
        difference(text(made.programs[full]), text(made.program(full.with_phases((("", Phase.SPARSE),))))),
        "## Pass: plan tokens, under `Tokens`\n",
        "The program of a token-wise step, against that of a forecast step:\n",
        difference(
            text(tokens.programs[choice(tokens, "forecast")]),
            text(tokens.programs[choice(tokens, "forecast").with_tokens()]),
        ),
        "## Pass: partition attention, under `DiTango`\n",
        difference(text(graph()), text(after_pass(partitioned, "partition attention").module)),
        "## Both branches in one graph\n",
        "What a `cond` backend compiles and an export writes, at scope `stack`:\n",
        block(text(both)),
    ]


def generated() -> str:
    """The part of the page that is generated."""
    return "\n".join([*main_line(), *other_scopes(), *with_guards(), *other_passes()])


if __name__ == "__main__":
    PAGE.write_text(GENERATED.sub(lambda _: generated(), PAGE.read_text(encoding="utf-8")), encoding="utf-8")
