"""``hicache generate``: files, lines, resuming after a kill, GenEval's layout, several processes."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from hicache_compile import HiCacheError
from hicache_compile.cli import app
from hicache_compile.evaluation.subjects import open_subject
from hicache_compile.generate.items import Item, geneval_items, items_of, plain_items, read_prompts
from hicache_compile.generate.maker import Made, Maker
from hicache_compile.generate.record import Record
from hicache_compile.generate.run import Outcome
from hicache_compile.generate.run import generate as run
from hicache_compile.generate.settings import Settings
from hicache_compile.generate.workers import Here
from tests.pipelines import by_name

PROMPTS = ["a photo of a cat", "a painting of a ship", "the number seven", "a dog", "a forest", "a red ball"]
SMALL = {"height": 16, "width": 16, "max_sequence_length": 48}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return by_name("FluxPipeline").saved(tmp_path_factory.mktemp("flux"))


def generate(
    model: Path,
    folder: Path,
    prompts: list[str] = PROMPTS,
    *,
    prompt_file: Path | None = None,
    metadata_file: Path | None = None,
    samples: int = 1,
    image: str | None = None,
    **more: Any,
) -> Outcome:
    given: dict[str, Any] = {"policy": "HiCache", "steps": 5, "backend": "eager", "device": "cpu", "arguments": SMALL}
    settings = Settings(model=model, **{**given, **more})
    items = items_of(prompts, prompt_file, metadata_file, samples, 0, image)
    return run(items, folder, settings, Here(settings))


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


def digests(folder: Path) -> dict[str, str]:
    """Every file but the lines, which hold times, by its content."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "results.jsonl"]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_pictures_and_lines(model: Path, tmp_path: Path) -> None:
    summary = generate(model, tmp_path, PROMPTS[:2]).as_data()
    assert sorted(digests(tmp_path)) == ["00000.png", "00001.png"]
    first, second = lines(tmp_path)
    assert (first["prompt"], first["seed"], second["seed"]) == (PROMPTS[0], 0, 1)
    assert first["decisions"] == {"transformer": {"cond": "FFF.."}}
    assert first["policy"]["schedule"]["interval"] == 6
    assert first["seconds"] > 0
    assert (summary["items"], summary["skipped"], summary["failed"]) == (2, 0, 0)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.png")}
    assert generate(model, tmp_path, PROMPTS[:3]).skipped == 2
    assert len(lines(tmp_path)) == 3
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_sparse_pictures(model: Path, tmp_path: Path) -> None:
    sparsity = '{"top_keys": 0.3, "first_dense": 0, "group": 8, "mlp_block": 8}'
    assert generate(model, tmp_path, PROMPTS[:1], policy="Uncached", sparsity=sparsity).failed == 0
    (line,) = lines(tmp_path)
    assert line["decisions"] == {"transformer": {"cond": "FFSSS"}}
    assert line["policy"]["scope"] == "none"
    assert line["sparsity"]["top_keys"] == 0.3


def test_pictures_equal_those_of_the_pipeline(model: Path, tmp_path: Path) -> None:
    import torch
    from diffusers import DiffusionPipeline
    from PIL import Image, ImageChops

    generate(model, tmp_path, PROMPTS[:1], policy='{"preset": "HiCache", "interval": 1}')
    pipeline = DiffusionPipeline.from_pretrained(model)
    pipeline.set_progress_bar_config(disable=True)
    expected = pipeline(PROMPTS[0], num_inference_steps=5, generator=torch.Generator().manual_seed(0), **SMALL).images[
        0
    ]
    assert ImageChops.difference(Image.open(tmp_path / "00000.png"), expected).getbbox() is None


def test_geneval_layout(model: Path, tmp_path: Path) -> None:
    metadata = tmp_path / "evaluation_metadata.jsonl"
    given = [{"tag": "single_object", "prompt": "a photo of a bench"}, {"tag": "colors", "prompt": "a red cow"}]
    metadata.write_text("".join(json.dumps(line) + "\n" for line in given))
    out = tmp_path / "out"
    assert generate(model, out, [], metadata_file=metadata, samples=2).failed == 0
    assert sorted(digests(out)) == [
        "00000/metadata.jsonl",
        "00000/samples/0000.png",
        "00000/samples/0001.png",
        "00001/metadata.jsonl",
        "00001/samples/0000.png",
        "00001/samples/0001.png",
    ]
    assert json.loads((out / "00001" / "metadata.jsonl").read_text()) == given[1]
    assert [line["seed"] for line in lines(out)] == [0, 1, 0, 1]


def test_video(tmp_path: Path) -> None:
    case = by_name("WanPipeline")
    model = case.saved(tmp_path / "model")
    arguments = {**SMALL, "num_frames": 9, "max_sequence_length": 16, "guidance_scale": 5.0}
    assert generate(model, tmp_path / "out", PROMPTS[:1], arguments=arguments).failed == 0
    (line,) = lines(tmp_path / "out")
    assert line["file"] == "00000.mp4"
    assert line["decisions"]["transformer"] == {"cond": "FFF..", "uncond": "FFF.."}
    assert (tmp_path / "out" / "00000.mp4").stat().st_size > 0


def test_pictures_to_edit_are_named_and_must_exist(model: Path, tmp_path: Path) -> None:
    from PIL import Image

    kontext = by_name("FluxKontextPipeline").saved(tmp_path / "model")
    Image.new("RGB", (16, 16), "red").save(tmp_path / "red.png")
    arguments = {**SMALL}
    prompts = tmp_path / "edits.jsonl"
    prompts.write_text(json.dumps({"prompt": "make it blue", "image": str(tmp_path / "red.png")}) + "\n")
    given = read_prompts(prompts)
    assert plain_items(given, 1, 0, None)[0].image == str(tmp_path / "red.png")
    assert (kontext / "model_index.json").exists()
    with pytest.raises(HiCacheError, match=r"generate.image = '/nowhere.png': must be a file"):
        generate(kontext, tmp_path / "out", PROMPTS[:1], image="/nowhere.png", arguments=arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompts": []}, "no prompt given; must be one of --prompt"),
        ({"policy": "HiCash"}, "policy = 'HiCash': must be"),
        ({"policy": "{bad"}, "must be JSON"),
        ({"policy": '{"preset": "SCM", "mask": "1101"}'}, "StepMask.mask is for 4 steps, the trajectory has 5"),
        ({"backend": "tpu"}, "generate.backend = 'tpu': must be one of"),
        ({"dtype": "int8"}, "generate.dtype = 'int8': must be one of"),
        ({"memory_budget": "much"}, "memory_budget = 'much'"),
        ({"model": Path("/nowhere")}, "generate.model = '/nowhere': must be a folder"),
        ({"arguments": {"num_frames": 9}}, "generate.num_frames: FluxPipeline takes no such argument"),
        ({"prompt_file": Path("/nowhere.txt"), "prompts": []}, "prompt_file = '/nowhere.txt': must be a readable"),
    ],
)
def test_a_wrong_option_is_named(model: Path, tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(HiCacheError, match=message):
        generate(**{"model": model, "folder": tmp_path / "out", **change})


def test_the_command_line(model: Path, tmp_path: Path) -> None:
    common = ["--model", str(model), "--output-dir", str(tmp_path), "--height", "16", "--width", "16", "--steps", "4"]
    common += ["--max-sequence-length", "48", "--backend", "eager", "--prompt", "a cat"]
    result = CliRunner().invoke(app, ["generate", "--policy", "env", *common])
    assert result.exit_code == 0, result.output
    assert "transformer, cond  FFF." in result.output
    result = CliRunner().invoke(app, ["generate", "--policy", "nonsense", *common])
    assert result.exit_code == 2
    assert "policy = 'nonsense'" in result.output


def test_a_bad_prompt_stops_no_other(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make = Maker.make

    def fragile(self: Maker, item: Item) -> Made:
        if item.prompt == PROMPTS[1]:
            raise RuntimeError("out of memory")
        return make(self, item)

    monkeypatch.setattr(Maker, "make", fragile)
    outcome = generate(model, tmp_path, PROMPTS[:3])
    assert outcome.failed == 1
    assert outcome.errors == [{"item": "00001", "worker": "this process", "error": "RuntimeError: out of memory"}]
    assert sorted(digests(tmp_path)) == ["00000.png", "00002.png"]
    monkeypatch.setattr(Maker, "make", make)
    assert generate(model, tmp_path, PROMPTS[:3]).failed == 0
    assert sorted(digests(tmp_path)) == ["00000.png", "00001.png", "00002.png"]


WHOLE: dict[str, Any] = {"index": 0, "sample": 0, "seconds": 1.5, "decisions": {}}


@pytest.mark.parametrize(
    "change",
    [
        {"seconds": None},
        {"seconds": "1.5"},
        {"decisions": "F"},
        {"file": ""},
        {"file": "."},
        {"file": "../00000.png"},
        {"file": "/etc/hosts"},
        {"file": "x" * 300},
        {"index": True},
    ],
)
def test_a_line_that_is_not_as_it_was_written_is_of_nothing(tmp_path: Path, change: dict[str, Any]) -> None:
    folder = tmp_path / "out"
    record = Record(folder)
    folder.mkdir()
    for name in ("out/00000.png", "00000.png"):
        (tmp_path / name).write_bytes(b"x")
    record.add({"file": "00000.png", **WHOLE})
    assert list(record.done()) == ["00000.png"]
    record.add({"file": "00000.png", **WHOLE, **change})
    assert [line["seconds"] for line in Record(folder).sort()] == [1.5]


OTHERS: tuple[dict[str, Any], ...] = (
    {"prompts": PROMPTS[1:2]},
    {"steps": 6},
    {"policy": "FORA"},
    {"arguments": {**SMALL, "guidance_scale": 2.0}},
    {"sparsity": {"top_keys": 0.5}},
    {"dtype": "bfloat16"},
    {"anchors": "int8"},
    {"memory_budget": "1 GiB"},
    {"model": Path("another")},
)


def test_checkpoints_of_one_name_are_told_apart(model: Path, tmp_path: Path) -> None:
    """A copy elsewhere is the same; one weight trained on is another."""
    moved, trained = tmp_path / "a" / model.name, tmp_path / "b" / model.name
    for folder in (moved, trained):
        shutil.copytree(model, folder)
    weights = next((trained / "transformer").glob("*.safetensors"))
    tensors = load_file(weights)
    save_file({name: tensor * 1.01 for name, tensor in tensors.items()}, weights, {"format": "pt"})
    generate(model, tmp_path / "out", PROMPTS[:1])
    assert generate(moved, tmp_path / "out", PROMPTS[:1]).skipped == 1
    with pytest.raises(HiCacheError, match=r"'00000\.png' was made with weights = .* choose another folder"):
        generate(trained, tmp_path / "out", PROMPTS[:1])
    assert open_settings(model) == open_settings(moved) != open_settings(trained)


def open_settings(folder: Path) -> dict[str, Any]:
    return open_subject(str(folder), PROMPTS[:1], 4, "eager", dict(SMALL)).settings


def test_a_picture_of_another_prompt_or_of_other_settings_is_refused(model: Path, tmp_path: Path) -> None:
    generate(model, tmp_path, PROMPTS[:1])
    before = digests(tmp_path), lines(tmp_path)
    for change in OTHERS:
        with pytest.raises(
            HiCacheError, match=r"'00000\.png' was made with .* choose another folder, or remove the file"
        ):
            generate(**{"model": model, "folder": tmp_path, "prompts": PROMPTS[:1], **change})
        assert (digests(tmp_path), lines(tmp_path)) == before
    (tmp_path / "00000.png").unlink()
    assert generate(model, tmp_path, PROMPTS[1:2]).skipped == 0


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("bom.txt", "\ufeffa cat\r\na dog\r\n", ["a cat", "a dog"]),
        ("bom.jsonl", '\ufeff{"prompt": "a cat"}\n', ["a cat"]),
        ("inside.jsonl", '{"prompt": "a\u2028cat\x85"}\n', ["a\u2028cat\x85"]),
        ("inside.txt", "a\u2029cat\x0c!\n", ["a\u2029cat\x0c!"]),
        ("CAPITALS.JSONL", '{"prompt": "a cat"}', ["a cat"]),
    ],
)
def test_prompts_of_any_editor(tmp_path: Path, name: str, text: str, expected: list[str]) -> None:
    (tmp_path / name).write_bytes(text.encode())
    assert [line["prompt"] for line in read_prompts(tmp_path / name)] == expected


def test_torn_lines_are_mended(tmp_path: Path) -> None:
    record = Record(tmp_path)
    (tmp_path / "00000.png").write_bytes(b"x")
    record.add({"file": "00000.png", **WHOLE})
    with record.path.open("a") as file:
        file.write('{"file": "00001.png", "ind')
    assert list(Record(tmp_path).done()) == ["00000.png"]
    assert record.path.read_text().endswith("}\n")
    record.add({"file": "00002.png", **WHOLE})  # its picture is missing: not done
    assert list(record.done()) == ["00000.png"]


def test_items_have_names_and_seeds_of_their_own() -> None:
    items = plain_items([{"prompt": "a"}, {"prompt": "b"}], samples=2, seed=7, image=None)
    assert [(item.file, item.seed) for item in items] == [
        ("00000_0", 7),
        ("00000_1", 8),
        ("00001_0", 9),
        ("00001_1", 10),
    ]
    items = geneval_items([{"prompt": "a"}, {"prompt": "b"}], samples=2, seed=7)
    assert [(item.file, item.seed) for item in items][2:] == [("00001/samples/0000", 7), ("00001/samples/0001", 8)]


def _in_a_child(work: Callable[[], object]) -> multiprocessing.process.BaseProcess:
    child = multiprocessing.get_context("fork").Process(target=work)
    child.start()
    return child


KILLS = 5


@pytest.mark.slow
def test_killed_again_and_again_and_resumed(model: Path, tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert generate(model, whole).failed == 0
    began = time.monotonic()
    _in_a_child(lambda: generate(model, tmp_path / "timed")).join()
    longest = time.monotonic() - began
    chance = random.Random(0)
    kills = 0
    while kills < KILLS:
        child = _in_a_child(lambda: generate(model, broken))
        child.join(chance.uniform(0, longest))
        if child.is_alive():
            os.kill(child.pid, signal.SIGKILL)  # type: ignore[arg-type]  # it runs
            child.join()
            kills += 1
        else:  # it was through before it could be killed
            assert digests(broken) == digests(whole)
            shutil.rmtree(broken)
    assert generate(model, broken).failed == 0
    assert digests(broken) == digests(whole)
    without_times = [[{k: v for k, v in line.items() if k != "seconds"} for line in lines(f)] for f in (whole, broken)]
    assert without_times[0] == without_times[1]
