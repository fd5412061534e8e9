"""The page of ``explain``: what it shows of findings."""

from __future__ import annotations

import pytest

from hicache_compile.inspection.decision_rows import Row
from hicache_compile.inspection.findings import BlockRow, Findings, ProgramRow, Ran, ScopeRow, SiteRow
from hicache_compile.inspection.page import page
from hicache_compile.inspection.page.block_states import block_states
from hicache_compile.inspection.page.notes import OTHERWISE, advice
from tests.support.findings import SHAPES, STEPS, findings
from tests.support.pages import Document


def states(found: Findings) -> list[str]:
    return [state.name for state in block_states(found).values()]


def test_blocks_that_are_computed_in_every_step_say_so() -> None:
    live = [BlockRow(f"blocks.{n}", 4, 500, 500 * (n != 1)) for n in range(3)]
    two = [SiteRow(f"blocks.{n}.mlp", "mlp", [f"blocks.{n}"], 4, 500, 0.5, SHAPES, 9) for n in (0, 2)]
    assert states(findings(blocks=live, sites=two)) == ["forecast", "live", "forecast"]
    assert states(findings(refused=[("blocks.1.mlp", "why")])) == ["forecast", "refused"]
    assert states(findings(refused=[("blocks.10.mlp", "why")])) == ["forecast", "last"]


def test_equal_refusals_are_one_note() -> None:
    reasons = [(f"blocks.{n}.mlp", f"`dropout_{n}` draws random numbers, which") for n in range(5)]
    (note,) = Document(page(findings(refused=reasons))).text("li.refused")
    assert "blocks.*.mlp: 5 sites" in note
    assert all(name in note for name, _ in reasons)
    assert advice("something new") == OTHERWISE


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sites": []}, "Nothing is cached"),
        ({"graphs": 3}, "The denoiser was captured in 3 graphs"),
        ({"decisions": "F" * STEPS}, "Every step is computed"),
        ({"flops_forecast": 501}, "A forecast step costs more than half of a full one"),
        ({"memory": "scope module, 2 anchors: fits"}, "scope module, 2 anchors: fits"),
    ],
)
def test_warnings(changes: dict[str, object], said: str) -> None:
    assert not Document(page(findings())).text("li.warning")
    (note,) = Document(page(findings(**changes))).text("li.warning")
    assert said in note


def test_every_letter_and_cell_has_a_meaning() -> None:
    letters, cells = "FS.spt", "factr-"
    one = Ran("pab", {"a": letters}, {"a": rows(cells)})
    text = " ".join(Document(page(findings(decisions=letters, ran=one))).text("#steps"))
    for said in (
        "full:",
        "sparse:",
        "forecast:",
        "inner forecast:",
        "in part:",
        "token-wise:",
        "as the anchor",
        "not known",
    ):
        assert said in text


def rows(cells: str) -> list[Row]:
    return [Row("blocks.0.mlp", "mlp", cells)]


def test_graphs_without_room_are_left_out() -> None:
    seen = page(findings(), {"captured": "x" * 300_000, "guarded": "y" * 200_000, "forecast": "z" * 1000})
    assert "x" * 300_000 not in seen
    assert "y" * 200_000 in seen
    assert "z" * 1000 in seen
    assert len(Document(seen).text("p.absent")) == 1


EVIL = "<script>alert('&\"</script>"


def test_all_text_is_escaped() -> None:
    block = f"blocks.{EVIL}"
    one = SiteRow(f"{block}.mlp", EVIL, [block], 4, 500, 0.5, SHAPES, 2048, [EVIL])
    found = findings(
        model=EVIL, memory=EVIL, refused=[(f"{block}.attn", f"`{EVIL}` is read")], sites=[one],
        blocks=[BlockRow(block, 4, 500, 500, {EVIL: 500})], ran=Ran(EVIL, {EVIL: "F."}, {EVIL: rows("fr")}),
        programs=[ProgramRow(EVIL, 1, 1)], scopes=[ScopeRow(EVIL, 1, 1, 1, 1, 1.0)], scope=EVIL,
        policy={"schedule": {"type": EVIL}, "forecaster": {"type": EVIL}, "guards": [{"type": EVIL}]},
    )  # fmt: skip
    shown = page(found, {EVIL: EVIL}, [f"01_{EVIL}.py"], {EVIL: EVIL}, [(EVIL, found)])
    assert shown.count("<script>") == 1  # the page's own
    assert "alert('" not in shown
    assert "alert(&#x27;" in shown
    assert Document(shown).text("h1") == [EVIL]


@pytest.mark.parametrize("steps", [1, 50, 1000])
def test_a_page_of_a_deep_model_is_small(steps: int) -> None:
    blocks = [
        BlockRow(f"single_transformer_blocks.{n}", 130, 500, 500, {"mlp": 250, "parallel": 250}) for n in range(100)
    ]
    sites = [
        SiteRow(f"{block.name}.{part}", "mlp", [block.name], 9, 5, 0.1, SHAPES, 2048, ["bfloat16"])
        for block in blocks
        for part in ("attn", "ff", "ff_context")
    ]
    found = findings(blocks=blocks, sites=sites, num_steps=steps, decisions=("F....." * steps)[:steps])
    shown = page(found)
    assert len(shown.encode()) < 500_000
    drawn = Document(shown).named("g.row")
    alike = [f"single_transformer_blocks.*.{part} (100)" for part in ("attn", "ff", "ff_context")]
    assert drawn == [*alike, "everything else"]
