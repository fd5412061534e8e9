"""The digits model draws digits; `hicache demo` draws emoji and prints what it measured."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from hicache_compile import HiCache, hicache_compile
from hicache_compile.cli import app
from hicache_compile.cli.demo import fault
from hicache_compile.demo import digits
from hicache_compile.demo.compare import compare
from hicache_compile.demo.contestants import FirstBlockCache, Ours, Plain
from hicache_compile.demo.emoji import GUIDANCE, SIZE, TOKENS
from hicache_compile.demo.emoji.drawing import CAPTIONS, Drawing, load_pipeline
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


@pytest.fixture(scope="module")
def drawing() -> Drawing:
    return Drawing(CAPTIONS[:2], num_steps=6)


def test_it_draws_what_the_pipeline_draws(drawing: Drawing) -> None:
    *_, drawn = drawing.by_steps(drawing.model)
    pipeline = load_pipeline()
    pipeline.set_progress_bar_config(disable=True)
    wanted = pipeline(
        list(CAPTIONS[:2]),
        negative_prompt=["", ""],
        true_cfg_scale=GUIDANCE,
        num_inference_steps=6,
        height=SIZE,
        width=SIZE,
        max_sequence_length=TOKENS,
        generator=torch.Generator().manual_seed(0),
        output_type="pt",
    ).images
    assert torch.equal((drawing.pictures(drawn.latents) / 2 + 0.5), wanted)


def test_the_peer_is_counted(drawing: Drawing) -> None:
    """A threshold of 0 computes every block; an endless one, after the first step, the first block alone."""
    in_full, skipping = FirstBlockCache(drawing, "eager", 0.0), FirstBlockCache(drawing, "eager", float("inf"))
    pictures = {}
    for peer in (in_full, skipping):
        *_, drawn = peer.by_steps(drawing)
        pictures[peer] = drawn.latents
    *_, wanted = drawing.by_steps(drawing.model)
    assert torch.equal(pictures[in_full], wanted.latents)
    assert (in_full.decisions, in_full.flops_speedup) == ("FFFFFF", 1.0)
    assert skipping.decisions == "F....."
    assert 3 < skipping.flops_speedup < 6
    assert not torch.equal(pictures[skipping], wanted.latents)


def test_the_command_prints_data_and_draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hicache_compile.demo.compare.ROUNDS", 1)  # not timed here
    picture = tmp_path / "demo.png"
    arguments = ["demo", "--steps", "8", "--caption", "fox", "--backend", "eager", "--json", "--out", str(picture)]
    result = CliRunner().invoke(app, [*arguments, "--all", "--sparse"])
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)
    assert [row["name"] for row in rows[:3]] == ["uncached", "HiCache N=3", "HiCache N=4"]
    assert rows[0]["computed"] == 8
    assert rows[0]["psnr"] is None
    for row in rows[1:13]:
        assert row["decisions"].count("F") == row["computed"] < 8
        assert (row["programs"], row["recompiles"], row["graph_breaks"]) == (4, 0, 0)  # two a scope: all share them
        assert row["flops_speedup"] > 1
        assert row["psnr"] > 10
    assert [row["decisions"] for row in rows[13:]] == ["FFSSSSSS", "FFS.S.S.", "FFS..S..", "FFS....S"]
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_nothing_foreign_is_on_the_console(tmp_path: Path) -> None:
    """And the table fits a terminal of 80 columns."""
    arguments = ["--steps", "4", "--caption", "red heart", "--backend", "eager", "--out", str(tmp_path / "demo.png")]
    command = [sys.executable, "-m", "hicache_compile", "demo", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, "COLUMNS": "80"})
    assert all(line.startswith("compiling, then drawing") for line in done.stderr.splitlines())
    lines = done.stdout.splitlines()
    assert lines[0].rstrip() == "1 x 4 steps with guidance, eager"
    assert "diffusers' hooks" in done.stdout
    assert "…" not in done.stdout
    assert lines[-1] == f"picture: {tmp_path / 'demo.png'}"


def test_a_clock_that_saves_more_than_the_flops_is_a_fault(drawing: Drawing) -> None:
    denoiser = hicache_compile(drawing.model, HiCache(), backend="eager")
    results = compare(
        drawing, [Plain(drawing, "eager"), Ours(denoiser, "HiCache N=4", HiCache(interval=4), "module scope")]
    )
    too_fast = replace(results[1], clock_speedup=9.0)
    assert too_fast.faulty
    assert fault(too_fast).startswith("measuring fault: HiCache N=4, module scope: 9.00 by the clock")
    assert not replace(results[1], clock_speedup=results[1].flops_speedup).faulty


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--backend", "tvm"], "demo.backend = 'tvm': must be one of eager, aot_eager, inductor"), (["--steps", "1"], "")],
)
def test_a_bad_option_is_an_error(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(app, ["demo", *arguments])
    assert result.exit_code == 2
    assert message in result.output.replace("\n", " ")
