"""What the compiler makes of a denoiser: run it uncached and cached, and write down what was found and what it did.

``python -m tests.coverage`` does so for every denoiser of diffusers and writes ``docs/coverage.md``.
"""

from __future__ import annotations

import contextlib
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from hicache_compile import HiCache, hicache_compile
from hicache_compile.frontend.denoiser import CompiledDenoiser
from hicache_compile.runtime.compiled_graph import CompiledGraph
from tests.zoo import CASES, Case

STEPS = 12
PAGE = Path(__file__).parent.parent / "docs" / "coverage.md"


@dataclass(frozen=True, slots=True)
class Coverage:
    """What was found in one denoiser at one scope, and how its cached run went.

    ``recompiles`` counts captures after the first run; ``error`` is the distance of the cached run's end from the
    uncached one's, relative to the way the sample went.
    """

    blocks: int
    sites: int
    kinds: Counter[str]
    graphs: int
    recompiles: int
    identical: bool
    error: float
    flops_full: int
    flops_forecast: int
    state_bytes: int
    decisions: str
    refused: list[tuple[str, str]]


def trajectory(case: Case, model: nn.Module, x: Tensor, size: int = 0) -> Tensor:
    """Euler steps from t=1 to 0; returns the last state."""
    run = model.trajectory(STEPS) if isinstance(model, CompiledDenoiser) else contextlib.nullcontext()
    with torch.no_grad(), run:
        for step in range(STEPS):
            x = x - case.call(model, x, 1 - step / STEPS, size) / STEPS
    return x


def examine(
    case: Case,
    scopes: Sequence[str] = ("module",),
    layers: int = 2,
    size: int = 0,
    dtype: torch.dtype = torch.float32,
    backend: str = "aot_eager",
) -> dict[str, Coverage]:
    """Run ``case`` from the same noise uncached, and at each scope with interval 1 and interval 4 (order 1)."""
    torch._dynamo.reset()
    model = case.build(layers).to(dtype)
    x = case.noise(size=size).to(dtype)
    expected = trajectory(case, model, x, size)
    compiled = hicache_compile(model, HiCache(interval=1, order=1, scope=scopes[0]), backend=backend)
    return {scope: _at(scope, case, compiled, x, size, expected) for scope in scopes}


def _at(scope: str, case: Case, compiled: CompiledDenoiser, x: Tensor, size: int, expected: Tensor) -> Coverage:
    compiled.policy = HiCache(interval=1, order=1, scope=scope)
    identical = torch.equal(trajectory(case, compiled, x, size), expected)
    captured = len(compiled._graphs)
    compiled.policy = HiCache(interval=4, order=1, scope=scope)
    cached = trajectory(case, compiled, x, size)
    report = compiled.report()
    session = compiled._session
    used = [graph for graph in session.last_graphs if isinstance(graph, CompiledGraph)]
    rewrites = [session.live[graph].programs.rewrite for graph in used if graph in session.live]
    sites = [site for rewrite in rewrites for site in rewrite.sites]
    moved = (expected - x).float().norm()
    return Coverage(
        blocks=sum(rewrite.blocks for rewrite in rewrites),
        sites=len(sites),
        kinds=Counter(site.kind for site in sites),
        graphs=len(used),
        recompiles=len(compiled._graphs) - captured,
        identical=identical,
        error=float((cached - expected).float().norm() / moved),
        flops_full=report.flops_full,
        flops_forecast=report.flops_forecast,
        state_bytes=report.state_bytes,
        decisions=report.decisions(),
        refused=list(report.refused),
    )


def table(found: dict[str, dict[str, Coverage]]) -> str:
    """The page: one row a denoiser."""
    rows = [
        "| denoiser | graphs | blocks | sites (module scope) | forecast FLOPs: module | stack | state: module | stack "
        "| error: module | stack | interval 1 |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for case in CASES:
        if case.reason:
            rows.append(f"| {case.title} | | | {case.reason} | | | | | | | |")
            continue
        module, stack = found[case.title]["module"], found[case.title]["stack"]
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(module.kinds.items()))
        rows.append(
            f"| {case.title} | {module.graphs} | {module.blocks} | {kinds} "
            f"| {module.flops_forecast / module.flops_full:.1%} | {stack.flops_forecast / stack.flops_full:.1%} "
            f"| {module.state_bytes / 1024:.1f} KiB | {stack.state_bytes / 1024:.1f} KiB "
            f"| {module.error:.3f} | {stack.error:.3f} "
            f"| {'equal' if module.identical and stack.identical else 'DIFFERENT'} |"
        )
    return "\n".join(rows)


HEAD = """# Coverage

Every transformer class that diffusers exports and its main UNets, built small with random weights and the structure of
the published checkpoints, two blocks a list, and run for 12 steps in `aot_eager`. No class name is read anywhere.

- **graphs**: what runs of one call. What the model's own `forward` reads of data on the host (a mask, a size) is
  constant in its graph, which checks it in each step; a submodule that does (a router of experts) is one operator.
- **sites**: what is cached at module scope, by what it computes. `parallel`: attention and MLP in one;
  `blocks`: more than that; `other`: neither (convolutions, linear attention written out, a router of experts).
- **forecast FLOPs**: of a forecast step, relative to a full one. At this width embedders and modulations weigh more
  than in the published sizes; towers with a fixed width (ByT5 in the Hunyuan models) dominate.
- **state**: anchors of a policy of order 1, one guidance branch.
- **error**: of HiCache(interval=4, order=1), `FFF...F...F.`, relative to how far the sample moved. The weights are
  random: it says that forecasts are near, not how good pictures would be.
- **interval 1**: compared with the uncached model, bit for bit.

[Pipelines](pipelines.md) has the pipelines around them; [Troubleshooting](troubleshooting.md) says what to do where a
denoiser of your own is not cached.

```bash
.venv/bin/python -m tests.coverage
```

"""


def main() -> None:
    """Examine everything and write the page."""
    from tqdm import tqdm

    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    found = {}
    for case in tqdm([case for case in CASES if not case.reason]):
        found[case.title] = examine(case, ("module", "stack"))
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(HEAD + table(found) + "\n", encoding="utf-8")
    print(table(found))


if __name__ == "__main__":
    main()
