"""The demo model draws digits, and `hicache demo` prints what it measured."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from hicache_compile import HiCache, hicache_compile
from hicache_compile.cli import app
from hicache_compile.cli.demo import fault, table
from hicache_compile.demo import digits
from hicache_compile.demo.compare import compare
from hicache_compile.demo.picture import draw
from hicache_compile.demo.sampling import load_model, sample
from hicache_compile.demo.train import loss_of


def test_packing_is_undone() -> None:
    images = torch.randn(3, 16, 16)
    assert torch.equal(digits.unpack(digits.pack(images)), images)
    assert torch.equal(digits.pack(images)[0, 1], images[0, :2, 2:4].flatten())  # tokens run along rows


def test_a_prompt_names_its_class_and_the_empty_one_names_none() -> None:
    prompt = digits.prompt(torch.tensor([7, digits.NO_CLASS]))
    assert prompt["pooled_projections"].argmax(1)[0] == 7
    assert prompt["pooled_projections"][1].abs().sum() == 0
    assert prompt["encoder_hidden_states"].shape == (2, digits.TEXT_TOKENS, digits.TEXT_DIM)


def test_the_model_is_trained() -> None:
    images, labels = digits.dataset()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        loss = loss_of(load_model(), images[:256], labels[:256], generator)
    assert loss < 0.2  # it starts at 1.84


@pytest.mark.slow
def test_a_classifier_reads_its_digits() -> None:
    """98.6 % of 1,200 (six seeds of 200); of 150, four standard deviations below that is 94.8 %."""
    labels = torch.arange(10).repeat(15)
    read = digits.classify(sample(load_model(), labels, num_steps=50, seed=0).images)
    assert float((read == labels).float().mean()) >= 0.95


@pytest.mark.slow
def test_a_cached_sample_is_nearer_to_the_uncached_one_than_reuse() -> None:
    """Fidelity on the trained model: a quarter of the steps, and Hermite beats plain reuse."""
    model, labels = load_model(), torch.arange(10)
    reference = sample(model, labels).images
    compiled = hicache_compile(model, HiCache(interval=4), backend="aot_eager")
    errors = {}
    for name, policy in (("hermite", HiCache(interval=4)), ("reuse", HiCache(interval=4, order=0))):
        compiled.policy = policy
        errors[name] = float((sample(compiled, labels).images - reference).norm() / reference.norm())
    assert errors["hermite"] < errors["reuse"] < 0.1


def test_the_command_prints_data_and_draws(tmp_path: Path) -> None:
    picture = tmp_path / "demo.png"
    arguments = ["demo", "--steps", "8", "--per-class", "1", "--backend", "eager", "--json", "--out", str(picture)]
    arguments += ["--all", "--sparse"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)
    assert [row["policy"] for row in rows[:3]] == ["uncached", "HiCache N=4", "HiCache N=6"]
    assert rows[0]["computed"] == 8
    assert rows[0]["psnr"] is None
    for row in rows[1:13]:
        assert row["decisions"].count("F") == row["computed"] < 8
        assert (row["programs"], row["recompiles"], row["graph_breaks"]) == (2, 0, 0)
        assert row["flops_speedup"] > 1
        assert row["psnr"] > 10
    assert [row["decisions"] for row in rows[13:]] == ["FFSSSSSS", "FFS.S.S.", "FFS..S..", "FFS....S"]
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_table_fits_a_terminal_of_80_columns(tmp_path: Path) -> None:
    from rich.console import Console

    results = compare(1, 6, 0, "eager", (("HiCache N=4", HiCache(interval=4)), ("stack", HiCache(scope="stack"))))
    results = [replace(r, report=replace(r.report, state_bytes=999_900_000), accuracy=1.0) for r in results]
    console = Console(width=80, record=True, file=(tmp_path / "out").open("w"))
    console.print(table(results, "eager"))
    text = console.export_text()
    assert "…" not in text
    assert "module scope" in text
    too_fast = replace(results[1], clock_speedup=9.0)
    assert too_fast.faulty
    assert fault(too_fast).startswith("measuring fault: HiCache N=4, module scope: 9.00 by the clock")
    assert not replace(results[1], clock_speedup=results[1].report.flops_speedup).faulty
    draw(results, tmp_path / "few.png")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--backend", "tvm"], "demo.backend = 'tvm': must be one of eager, aot_eager, inductor"), (["--steps", "1"], "")],
)
def test_a_bad_option_is_an_error(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(app, ["demo", *arguments])
    assert result.exit_code == 2
    assert message in result.output.replace("\n", " ")
