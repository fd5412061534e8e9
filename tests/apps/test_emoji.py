"""The emoji model: its parts, its folder, its judge, and that a training which is killed goes on as if it was not."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxPipeline
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from typer.testing import CliRunner

from hicache_compile import HiCache
from hicache_compile.cli import app
from hicache_compile.demo.emoji import SIZE, TOKENS, examine, flow, icons, judge, pipeline, twin
from hicache_compile.demo.emoji.autoencoder import new_autoencoder
from hicache_compile.demo.emoji.captions import STYLES, Subject, every_caption
from hicache_compile.demo.emoji.drawing import load_pipeline
from hicache_compile.demo.emoji.text import TextEncoders
from hicache_compile.demo.training import Plan, Training

SUBJECTS = [Subject(name, style) for name in ("fox", "owl", "red heart") for style in STYLES]


def test_tokens_are_packed_as_the_pipeline_packs() -> None:
    latents = torch.randn(2, 8, 16, 16)
    assert torch.equal(flow.pack(latents), FluxPipeline._pack_latents(latents, 2, 8, 16, 16))


def test_the_tokenizers_keep_words_whole_and_outlive_a_save(tmp_path: Path) -> None:
    encoders = TextEncoders(every_caption(SUBJECTS))
    captions = ["red heart, flat style", "", "a well-known fox"]
    for name in ("clip_tokenizer", "t5_tokenizer"):
        tokenizer = getattr(encoders, name)
        tokenizer.save_pretrained(tmp_path / name)
        again = type(tokenizer).from_pretrained(tmp_path / name)
        assert again(captions).input_ids == tokenizer(captions).input_ids
        assert again.model_max_length == TOKENS
    assert encoders.t5_tokenizer.tokenize("red heart, flat") == ["▁red", "▁heart", ",", "▁flat"]
    assert encoders.clip_tokenizer.tokenize("Red heart, flat") == ["red</w>", "heart</w>", ",</w>", "flat</w>"]
    ids = encoders.clip_tokenizer("well-known").input_ids
    assert ids.count(encoders.clip_tokenizer.eos_token_id) == 1  # what follows an unknown word still counts


def test_the_folder_is_a_pipeline_of_plain_diffusers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = flow.TextToPicture(every_caption(SUBJECTS))
    nn.init.normal_(model.transformer.proj_out.weight, std=0.2)  # which is 0 before training
    made = pipeline.assemble(model, new_autoencoder())
    pipeline.save(made, tmp_path)
    assert "Copyright (c) Microsoft" in (tmp_path / "LICENCES.md").read_text()
    loaded = FluxPipeline.from_pretrained(tmp_path)
    weights = sum(path.stat().st_size for path in tmp_path.rglob("*.safetensors"))
    assert weights + 2 * sum(p.numel() for p in judge.Judge(727).parameters()) < 12e6
    captions = ["a red heart, flat style", "fox"]
    wanted = pipeline.draw(made.to(torch.float32), captions, steps=2).float()
    found = pipeline.draw(loaded, captions, steps=2).float()
    assert found.shape == (2, 3, SIZE, SIZE)
    assert (found - wanted).abs().max() <= 1  # of 255: the same weights, rounding of the pixels


@pytest.mark.slow
def test_what_is_drawn_follows_the_caption() -> None:
    torch.manual_seed(0)
    training = Training(flow.TextToPicture(every_caption(SUBJECTS)), Plan(steps=30, rate=3e-3, warmup=1))
    clean, captions = torch.randn(2, 64, 32).repeat(4, 1, 1), ["fox", "owl"] * 4
    losses = [float(training.advance(lambda m, g: flow.loss_of(m, clean, captions, g))) for _ in range(30)]
    assert losses[0] > 1.8  # of the velocity, which has variance 2
    with torch.no_grad():
        right, wrong = (
            float(flow.loss_of(training.model, clean, captions[shift:] + captions[:shift], torch.Generator()))
            for shift in (0, 1)
        )
    assert right < 0.8 * wrong


def test_pairs_are_made_once_and_the_twin_learns_their_lines(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = flow.TextToPicture(every_caption(SUBJECTS))
    path, made = tmp_path / "00000.safetensors", []
    for _ in range(2):
        twin.make_pairs(pipeline.assemble(model, new_autoencoder()), SUBJECTS, 1, tmp_path, steps=2)
        made.append(path.stat().st_mtime_ns)
    assert made[0] == made[1]
    pair = load_file(path)
    assert torch.equal(pair["noise"], pair["clean"])  # an untrained model moves nothing
    assert len(set(twin.captions_of(0, SUBJECTS))) > len(SUBJECTS)
    pairs = twin.read_pairs(pipeline.assemble(model, new_autoencoder()), SUBJECTS, tmp_path)
    with torch.no_grad():
        pooled, words = model.text(twin.captions_of(0, SUBJECTS))
    assert torch.equal(pairs.pooled, pooled)
    assert torch.equal(pairs.words, words)


def test_the_loss_of_a_straight_line_is_nothing() -> None:
    noise, clean = torch.randn(2, 4, 64, 32)
    numbers = torch.arange(4.0)
    pairs = twin.Pairs(noise, clean, numbers, numbers, torch.zeros(16, 3), torch.zeros(64, 3))

    def straight(hidden_states: torch.Tensor, timestep: torch.Tensor, **given: Any) -> tuple[torch.Tensor]:
        chosen = given["pooled_projections"].long()
        assert torch.equal(given["encoder_hidden_states"].long(), chosen)
        wanted = torch.lerp(clean[chosen], noise[chosen], timestep[:, None, None])
        assert torch.equal(hidden_states, wanted)
        assert set((timestep * twin.TIMES).tolist()) <= set(range(1, twin.TIMES + 1))
        return (noise[chosen] - clean[chosen],)

    assert twin.twin_loss(pairs)(straight, torch.Generator()) == 0


def test_a_sheet_shows_rows_together(tmp_path: Path) -> None:
    real, drawn = torch.zeros(3, 3, 64, 64, dtype=torch.uint8), torch.full((3, 3, 64, 64), 9, dtype=torch.uint8)
    examine.save_sheet([real, drawn], tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (192, 128)
        assert (sheet.getpixel((0, 0)), sheet.getpixel((0, 64))) == ((0, 0, 0), (9, 9, 9))


def test_pairs_to_look_at_are_spread() -> None:
    subjects = [Subject(f"thing {index}", style) for index in range(200) for style in STYLES]
    held_out = examine.choose(subjects, held_out=True)
    assert all(subjects[index].held_out for index in held_out)
    shown = examine.choose(subjects, held_out=False, count=10)
    assert len(shown) == 10
    assert shown[-1] - shown[0] > 300


SMALL_TRAINING = """
import torch
from hicache_compile.demo.training import Plan, train

def loss(model, generator):
    return model(torch.randn(8, 64, generator=generator)).square().mean()

def small_training(checkpoint):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Tanh(), torch.nn.Linear(64, 4))
    return train(model, loss, Plan(300, 1e-3, save_every=0), checkpoint)
"""


def test_a_killed_training_reaches_the_same_weights(tmp_path: Path) -> None:
    checkpoint = tmp_path / "killed.pt"
    program = f"{SMALL_TRAINING}\nimport pathlib, sys\nsmall_training(pathlib.Path(sys.argv[1]))"
    process = subprocess.Popen([sys.executable, "-c", program, str(checkpoint)], stderr=subprocess.DEVNULL)
    while not checkpoint.exists():
        assert process.poll() is None
        time.sleep(0.001)
    process.kill()
    process.wait()
    assert 0 < torch.load(checkpoint, weights_only=True)["step"] < 300
    here: dict[str, Any] = {}
    exec(SMALL_TRAINING, here)
    again, unbroken = (here["small_training"](path) for path in (checkpoint, tmp_path / "unbroken.pt"))
    for name, wanted in unbroken.state_dict().items():
        assert torch.equal(again.state_dict()[name], wanted)


def test_a_longer_plan_goes_on_where_the_rate_is_the_same() -> None:
    short, longer = Plan(1000, 1e-3), Plan(2000, 1e-3)
    assert [short.rate_at(step) for step in range(800)] == [longer.rate_at(step) for step in range(800)]
    assert short.rate_at(999) < 0.01 * longer.rate_at(999)


def test_an_interval_is_wilsons() -> None:
    low, high = judge.Hits(8, 10).interval
    assert (round(low, 3), round(high, 3)) == (0.490, 0.943)


def test_the_judge_learns_to_read() -> None:
    colours = {"fox": (255, 128, 0), "owl": (128, 64, 0), "red heart": (255, 0, 0)}
    pictures = torch.stack([torch.tensor(colours[subject.name]) for subject in SUBJECTS]).to(torch.uint8)
    pictures = pictures[:, :, None, None].expand(-1, -1, SIZE, SIZE).contiguous()
    training = Training(judge.Judge(3), Plan(40, 1e-2, warmup=1))
    labels = torch.tensor([0, 0, 1, 1, 2, 2])

    def loss(model: judge.Judge, generator: torch.Generator) -> torch.Tensor:
        return nn.functional.cross_entropy(model(judge.distort(icons.to_values(pictures), generator)), labels)

    for _ in range(40):
        training.advance(loss)
    assert judge.read(training.model, pictures, labels, first=1).share == 1.0
    assert judge.read(training.model, pictures, labels.roll(2), first=1).share == 0.0


FOLDER = Path(examine.__file__).parent / "emoji-pipeline"


def test_the_trained_model_draws_what_it_is_told() -> None:
    assert sum(path.stat().st_size for path in FOLDER.rglob("*")) < 12e6
    loaded = FluxPipeline.from_pretrained(FOLDER)
    red, green, orange = pipeline.draw(loaded, ["a red heart", "green heart, flat style", "tangerine"], steps=10)
    middle = [picture[:, 24:40, 24:40].float().mean(dim=(1, 2)) for picture in (red, green, orange)]
    assert middle[0].argmax() == 0
    assert middle[0][0] > middle[0][1:].max() + 60
    assert middle[1].argmax() == 1
    assert middle[2][0] > middle[2][1] > middle[2][2] + 40


def test_the_twin_draws_the_same_things_in_four_steps_without_guidance() -> None:
    captions = ["a red heart", "tangerine", "tiger, noto style"]
    model, few = load_pipeline(), load_pipeline(few_steps=True)
    wanted = pipeline.draw(model, captions, steps=12).float()
    found = pipeline.draw(few, captions, steps=4, guidance=1.0).float()
    undistilled = pipeline.draw(model, captions, steps=4, guidance=1.0).float()
    off, without = (one.sub(wanted).square().mean().sqrt() for one in (found, undistilled))
    assert off < 40  # of 255
    assert off < 0.8 * without


def test_the_trained_model_is_cached_as_any_pipeline(tmp_path: Path) -> None:
    arguments = [
        "eval",
        str(FOLDER),
        "--policy",
        "HiCache",
        "--prompt",
        "a red heart",
        "--samples",
        "1",
        "--steps",
        "12",
    ]
    arguments += ["--height", "64", "--width", "64", "--max-sequence-length", "16", "--true-cfg-scale", "3"]
    arguments += ["--negative-prompt", "", "--backend", "eager", "--json"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)["HiCache"]
    assert found["computed"]["value"] == HiCache().decisions(12).count("F")
    assert found["flops_speedup"]["value"] > 2
    assert found["relative_error"]["value"] < 0.5
