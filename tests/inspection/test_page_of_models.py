"""The page of ``explain``: what it shows of a model and its runs."""

from __future__ import annotations

import json
from html import escape
from pathlib import Path

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from hicache_compile import (
    CompiledDenoiser,
    DiTango,
    FBCache,
    FBCacheTeaCache,
    HiCache,
    HiCacheError,
    Policy,
    hicache_compile,
)
from hicache_compile.cli import app
from hicache_compile.inspection.findings import Findings
from hicache_compile.inspection.page import page
from hicache_compile.inspection.page.block_states import block_states
from tests.support.denoisers import Painter
from tests.support.models import flux_inputs, random_flux, sample
from tests.support.pages import Document

STEPS = 8


class Noisy(Painter):
    """Its second block draws random numbers."""

    def __init__(self) -> None:
        super().__init__(depth=4)
        self.stages[1].mlp = nn.Sequential(self.stages[1].mlp, nn.Dropout(0.1))


def ran(model: nn.Module, policy: Policy, **options: object) -> CompiledDenoiser:
    """``model`` after a run of ``STEPS`` from noise."""
    torch._dynamo.reset()
    compiled = hicache_compile(model, policy, backend="eager", **options)  # type: ignore[call-overload]  # as given
    x = torch.randn(2, 9, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), compiled.trajectory(STEPS):
        for step in range(STEPS):
            x = x - compiled(x, torch.full((2,), 1 - step / STEPS)) / STEPS
    return compiled  # type: ignore[no-any-return]


def flux(policy: Policy) -> CompiledDenoiser:
    compiled = hicache_compile(random_flux(2, 3), policy, backend="eager")
    with compiled.trajectory(STEPS):
        sample(compiled, flux_inputs(), STEPS)
    return compiled


def test_the_headline_says_what_the_policy_does() -> None:
    found = flux(HiCache(interval=4)).explain(STEPS)
    seen = Document(page(found))
    assert seen.text("h1") == ["FluxTransformer2DModel"]
    head = " ".join(seen.text("header"))
    assert "Interval(interval=4, warmup=3, cooldown=0), Hermite(order=2, sigma=0.5), scope module" in head
    what = f"the outputs of {len(found.sites)} sites are forecast from their last 3 computed values (Hermite)"
    assert f"Of 8 steps, 4 are computed in full. In the other 4, {what}." in head
    assert f"{found.flops_speedup:.2f}x speed-up by FLOPs, 8 steps" in head
    assert json.loads(seen.text("pre")[0]) == found.policy


def test_a_guard_decides_during_the_run() -> None:
    found = flux(FBCache(0.1)).explain(STEPS)
    head = " ".join(Document(page(found)).text("header"))
    assert "Of 8 steps, 1 is always computed in full. In the other 7, FirstBlockGuard decides during the run" in head
    assert "where guards skip every step that they may" in head


def test_blocks_open_to_their_sites() -> None:
    found = flux(HiCache(interval=4)).explain(STEPS)
    seen = Document(page(found))
    assert seen.named("summary") == [block.name for block in found.blocks]
    panels = seen.text("details.block")
    assert len(panels) == len(found.blocks) == 5
    for block, panel in zip(found.blocks, panels, strict=True):
        sites = [site for site in found.sites if block.name in site.blocks]
        assert sites
        for site in sites:
            assert all(part in panel for part in (site.name, site.kind))
    assert "from 3 anchors of [2, 16, 32] float32" in panels[0]
    assert "not needed: nothing reads it" in panels[0]  # the MLP of the text in the last double block or before
    assert [set(block.kinds) for block in found.blocks] == [{"joint-attention", "mlp"}] * 2 + [{"parallel"}] * 3
    assert "joint-attention" in panels[0].replace("joint attention", "joint-attention")


@pytest.mark.parametrize("scope", ["module", "block", "stack", "output"])
def test_blocks_have_kinds_at_every_scope(scope: str) -> None:
    found = flux(HiCache(interval=4, scope=scope)).explain(STEPS)
    assert [set(block.kinds) for block in found.blocks] == [{"joint-attention", "mlp"}] * 2 + [{"parallel"}] * 3
    assert all(sum(block.kinds.values()) <= block.flops for block in found.blocks)
    assert {state.name for state in block_states(found).values()} == {"forecast"}


def states(found: Findings) -> list[str]:
    return [state.name for state in block_states(found).values()]


def test_blocks_that_are_kept_say_so() -> None:
    plain = HiCache(interval=4)
    kept = Policy(plain.schedule, plain.forecaster, "stack", first=1, last=2)
    assert states(ran(Painter(depth=5), kept).explain(STEPS)) == ["first", "forecast", "forecast", "last", "last"]
    # The first block is what the guard measures, though the site reaches into it.
    assert states(flux(FBCache(0.1)).explain(STEPS)) == ["first", *["forecast"] * 4]


def test_a_refusal_says_why_and_what_to_do() -> None:
    found = ran(Noisy().train(), HiCache(interval=4)).explain(STEPS)
    assert [name for name, _ in found.refused] == ["stages.1.mlp"]
    seen = Document(page(found))
    (note,) = seen.text("li.refused")
    assert "draws random numbers, which a forecast step would skip" in note
    assert "What to do Call model.eval()" in note
    panel = seen.text("details.block")[1]
    assert "stages.1.mlp refused:" in panel
    assert "in part refused" in panel
    assert "No site was refused" not in page(found)
    assert "No site was refused" in page(ran(Painter(), HiCache(interval=4)).explain(STEPS))


def test_a_budget_and_anchors_are_under_memory() -> None:
    text = " ".join(
        Document(page(ran(Painter(), HiCache(interval=4), memory_budget="10KB").explain(STEPS))).text("#memory")
    )
    assert "scope module, 3 anchors in int8" in text
    assert "3 anchors of [2, 9, 16] int8" in text


@pytest.mark.parametrize("policy", [HiCache(interval=4), FBCache(0.3), FBCacheTeaCache(1e9, 0.0, max_skips=3)])
def test_the_last_run_is_on_the_page(policy: Policy) -> None:
    compiled = ran(Painter(), policy)
    found, report = compiled.explain(STEPS), compiled.report()
    assert found.ran is not None
    assert found.ran.letters == {name: runs[-1] for name, runs in report.history.items()}
    assert found.ran.rows == report.rows
    strips = Document(page(found)).labels("div.strip")
    full = [step for step, letter in enumerate(report.decisions()) if letter == "F"]
    assert strips[0].startswith("plan, by step: full in 0")
    assert strips[1].startswith(f"last run, {next(iter(report.rows))}, by step: full in {full[0]}")


def test_without_a_run_there_is_none_on_the_page() -> None:
    compiled = hicache_compile(Painter(), HiCache(interval=4), backend="eager")
    compiled.warmup([torch.randn(2, 9, 16), torch.rand(2)])
    found = compiled.explain(STEPS)
    assert found.ran is None
    assert "The last run" not in page(found)


def test_attention_by_groups_of_keys() -> None:
    found = flux(DiTango(0.5, 3, 2)).explain(STEPS)
    assert found.partitioned
    assert set(states(found)) == {"keys"}
    assert "each group of keys of 5 attentions is computed or reused by itself" in " ".join(
        Document(page(found)).text("header")
    )


def test_programs_are_counted_and_shown() -> None:
    compiled = flux(FBCache(0.1))
    found = compiled.explain(STEPS)
    by_name = {row.name: row for row in found.programs}
    assert by_name.keys() == compiled.graphs.keys()
    assert by_name["captured"].flops == found.flops_full
    assert by_name["guarded"].flops is None
    assert (by_name["probe_0"].flops or 0) + (by_name["forecast"].flops or 0) == found.flops_forecast
    calls = [node for node in compiled.graphs["forecast"].graph.nodes if node.op.startswith("call_")]
    assert by_name["forecast"].ops == len(calls)
    texts = {name: str(graph) for name, graph in compiled.graphs.items()}
    shown = page(found, texts)
    assert escape(texts["forecast"]) in shown


def test_explain_writes_the_page(tmp_path: Path) -> None:
    path = tmp_path / "new" / "page.html"
    done = CliRunner().invoke(app, ["explain", "demo", "--steps", "12", "--html", str(path)])
    assert done.exit_code == 0, done.output
    assert f"wrote {path}" in done.stdout.replace("\n", "")
    seen = Document(path.read_text(encoding="utf-8"))
    assert seen.text("h1") == ["demo"]
    assert len(seen.named("summary")) == 8
    assert any("FORA N=3" in text for text in seen.text("#elsewhere"))
    assert path.stat().st_size < 1_000_000


def test_a_path_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    found = ran(Painter(), HiCache(interval=4)).explain(STEPS)
    assert found.html(tmp_path / "page.html") == tmp_path / "page.html"
    with pytest.raises(HiCacheError, match=r"html\.path = 3: must be a path"):
        found.html(3)  # type: ignore[arg-type]  # what a caller may do
    with pytest.raises(HiCacheError, match="must be a file, or not be there"):
        found.html(tmp_path)
    done = CliRunner().invoke(app, ["explain", "flux.1-dev", "--html", str(tmp_path)])
    assert done.exit_code == 2
    assert "must be a file, or not be there" in done.output
