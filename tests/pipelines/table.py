"""Every pipeline class of diffusers, cached: ``python -m tests.pipelines.table`` writes ``docs/pipelines.md``.

What was examined is kept in ``docs/pipelines.md.unfinished`` until the page is written; the same command goes on there.
"""

from __future__ import annotations

import itertools
import logging
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hicache_compile import HiCache, hicache_compile
from hicache_compile.evaluation.journal import Journal, once, unfinished
from hicache_compile.frontend.denoiser import CompiledDenoiser
from hicache_compile.policy.files import write_whole
from hicache_compile.policy.progress import progress, script
from hicache_compile.runtime.compiled_graph import CompiledGraph
from tests.pipelines import (
    images_dit,
    images_dit_2,
    images_text,
    images_text_2,
    modular_images,
    modular_video,
    unets,
    unets_2,
    video,
    video_2,
)
from tests.pipelines.cases import CASES, PipelineCase
from tests.pipelines.hooked import hooked

PAGE = Path(__file__).parents[2] / "docs" / "pipelines.md"
INTERVAL = 3
MODULES = (
    images_dit,
    images_dit_2,
    images_text,
    images_text_2,
    video,
    video_2,
    unets,
    unets_2,
    modular_images,
    modular_video,
)
ALL: list[PipelineCase] = [*CASES, *(case for module in MODULES for case in module.CASES)]
LEFT_OUT: dict[str, str] = {name: reason for module in MODULES for name, reason in module.LEFT_OUT.items()}
FAILING = {
    "StableDiffusionAttendAndExcitePipeline": "it differentiates through its UNet: a cached denoiser has no gradients",
    "StableDiffusionPix2PixZeroPipeline": "it differentiates through its UNet: a cached denoiser has no gradients",
    "StableDiffusionPanoramaPipeline": "several views a step, the scheduler is set back for each: uncached",
    "StableDiffusionParadigmsPipeline": "one call holds a window of timesteps, of which the mean is taken for the time",
    "ScoreSdeVePipeline": "two calls at one timestep without a context may be branches: uncached, and it says so",
    "KarrasVePipeline": "two calls at one timestep without a context may be branches: uncached, and it says so",
}
UNLIKE = {
    "ShapEPipeline": "Heun calls twice at one timestep, which the hooks take for two branches",
    "ShapEImg2ImgPipeline": "Heun calls twice at one timestep, which the hooks take for two branches",
    "VisualClozePipeline": "one call is two runs, which the hooks take for one",
    "SkyReelsV2DiffusionForcingVideoToVideoPipeline": "one call is several runs, which the hooks take for one",
    "SanaVideoPipeline": "the site is a part of what its feed-forward module returns, which adds to it",
    "SanaImageToVideoPipeline": "the site is a part of what its feed-forward module returns, which adds to it",
    "EchoModularPipeline": "fresh noise in each step: a run begins (trajectory() says where), and the hooks go on",
    "SkyReelsV2DiffusionForcingPipeline, asynchronous": "hooks tell steps by the mean time of frames, which stays",
}
Row = dict[str, Any]


def examine(case: PipelineCase) -> Row:
    """Run ``case`` uncached, at interval 1, at ``INTERVAL`` twice, and by hooks on the same modules."""
    torch._dynamo.reset()
    expected = case.run(case.build())
    pipeline = hicache_compile(case.build(), HiCache(interval=1), backend="eager")
    identical = torch.equal(case.run(pipeline), expected)
    denoisers: list[CompiledDenoiser] = [getattr(pipeline, name) for name in case.denoisers]
    names = [_modules_of(denoiser) for denoiser in denoisers]
    found = _cached(case, pipeline, denoisers, expected)
    result = found.pop("result")
    reference = _by_hooks(case, names)
    if reference is not None:
        found |= {"reference_error": _error(reference, expected), "apart": _error(result, reference)}
    return {"name": case.name, "identical": identical, **found}


def _cached(case: PipelineCase, pipeline: Any, denoisers: Sequence[CompiledDenoiser], expected: Tensor) -> Row:
    for denoiser in denoisers:
        denoiser.policy = HiCache(interval=INTERVAL)
    result = case.run(pipeline)
    reports = [denoiser.report() for denoiser in denoisers]
    before = sum(report.recompiles for report in reports)
    again = case.run(pipeline)
    return {
        "result": result,
        "decisions": [sorted({runs[-1] for runs in report.history.values()}) for report in reports],
        "contexts": sum(len(report.history) for report in reports),
        "programs": sum(report.programs for report in reports),
        "breaks": sum(report.graph_breaks for report in reports),
        "recompiles": sum(denoiser.report().recompiles for denoiser in denoisers) - before,
        "twice": torch.equal(again, result),
        "error": _error(result, expected),
        "forecast": sum(report.forecast for report in reports),
    }


def _modules_of(denoiser: CompiledDenoiser) -> list[str]:
    """The sites at module scope, which are called like the modules that return them, where a module does.

    The MLP of a block that takes apart what it returns is called like the block, and so are an attention and an MLP
    of which the sum is forecast.
    """
    session = denoiser._session
    sites_of = {graph: live.programs.rewrite.sites for graph, live in session.live.items()}
    last = [graph for graph in session.last_graphs if isinstance(graph, CompiledGraph)]
    sites = [site for graph in last for site in sites_of[graph]]
    others = [{site.name for site in found} for graph, found in sites_of.items() if graph not in last]
    if any(not names <= {site.name for site in sites} for names in others):
        return ["", ""]  # a branch of guidance leaves something out: each has sites of its own
    modules = {name for name, _ in denoiser.named_modules()}
    parts = {"mlp": ("ff",), "parallel": ("attn", "ff")}
    found = [(site.name, [f"{site.name}.{part}" for part in parts.get(site.kind, ())]) for site in sites]
    return [name for site, inner in found for name in (inner if inner and modules.issuperset(inner) else [site])]


def _by_hooks(case: PipelineCase, names: Sequence[Sequence[str]]) -> Tensor | None:
    """The result by hooks; ``None`` where a site is not what a module returns."""
    pipeline = case.build()
    try:
        with ExitStack() as stack:
            for denoiser, mine in zip(case.denoisers, names, strict=True):
                if any(f"{one}.".startswith(f"{other}.") for one, other in itertools.permutations(mine, 2)):
                    return None
                stack.enter_context(hooked(getattr(pipeline, denoiser), mine, INTERVAL))
            return case.run(pipeline)
    except (LookupError, AttributeError, RuntimeError):  # the last: the windows of one step differ in size
        return None


def _error(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


def examined(case: PipelineCase) -> Row:
    """``examine``, or what went wrong."""
    try:
        return examine(case)
    except Exception as error:  # a row that says so
        return {"name": case.name, "failed": f"{type(error).__name__}: {error}".splitlines()[0][:200]}


HEAD = f"""# Pipelines

Every pipeline class that diffusers exports and that can be built offline: real classes, small random weights, 8 steps,
`backend="eager"`. `hicache_compile(pipeline, HiCache(interval={INTERVAL}))`; nothing of a pipeline is read but its
denoisers' graphs and its scheduler.

- **contexts**: of all denoisers; **decisions**: of each denoiser, of its contexts where they differ.
- **interval 1**: the result, compared with the plain pipeline's, bit for bit. **twice**: two runs, likewise.
- **recompiles**: in the second run.
- **error**: at interval {INTERVAL}, module scope, relative to the plain pipeline's result. The weights are random, 8
  steps are few: it is large where the denoiser is.
- **by hooks**: the error of the same forecast by forward hooks on the modules of the plain pipeline, in float64;
  **apart**: from that result to ours. Empty where a site is not what a module returns.

[Coverage](coverage.md) has the denoisers by themselves; the [recipes](recipes/index.md) use some of these pipelines.

```bash
.venv/bin/python -m tests.pipelines.table
```

"""


def page(rows: Sequence[Row]) -> str:
    """The page, with a line for each of ``rows``."""
    lines = [
        "| pipeline | contexts | decisions | programs | recompiles | interval 1 | twice | error | by hooks | apart |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        if "failed" in row:
            lines.append(f"| {row['name']} | | {row['failed'].replace('|', '/')} | | | | | | | |")
            continue
        decisions = "; ".join(", ".join(letters) for letters in row["decisions"])
        reference = f"{row['reference_error']:.3g} | {row['apart']:.1e}" if "apart" in row else "|"
        lines.append(
            f"| {row['name']} | {row['contexts']} | `{decisions}` | {row['programs']} | {row['recompiles']} "
            f"| {'equal' if row['identical'] else 'DIFFERENT'} | {'equal' if row['twice'] else 'DIFFERENT'} "
            f"| {row['error']:.3g} | {reference} |"
        )
    lines += ["", "## Where hooks do something else", "", "| pipeline | why |", "|---|---|"]
    lines += [f"| {name} | {reason} |" for name, reason in sorted(UNLIKE.items())]
    lines += ["", "## Not cached, or not rightly", "", "| pipeline | why |", "|---|---|"]
    lines += [f"| {name} | {reason} |" for name, reason in sorted(FAILING.items())]
    lines += ["", "## Left out", "", "| pipeline | why |", "|---|---|"]
    lines += [f"| {name} | {reason} |" for name, reason in sorted(LEFT_OUT.items())]
    return HEAD + "\n".join(lines) + "\n"


def main() -> None:
    """Examine everything and write the page."""
    warnings.filterwarnings("ignore")
    logging.getLogger("diffusers").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    journal = Journal(unfinished(PAGE), {"steps": 8, "interval": INTERVAL}, "pipelines")
    rows = []
    with script():
        for case in progress(ALL, what="pipelines", unit="pipeline"):
            rows += once(journal, case.name, 0, lambda case=case: [examined(case)])  # type: ignore[misc]
    write_whole(PAGE, page(rows))
    journal.path.unlink()


if __name__ == "__main__":
    main()
