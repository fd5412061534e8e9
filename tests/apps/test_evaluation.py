"""hicache eval: measures against their formulas, intervals against what they promise, the command against the model."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from typer.testing import CliRunner

from hicache_compile import HiCache, HiCacheError, Policy
from hicache_compile.cli import app
from hicache_compile.demo import digits
from hicache_compile.evaluation import Interval95, Judge, packing, summary
from hicache_compile.evaluation.comparison import named_policies
from hicache_compile.evaluation.fidelity import fidelity
from hicache_compile.evaluation.quality import digit_quality, frechet
from hicache_compile.evaluation.subjects import batches_of, open_subject
from hicache_compile.tune.fit_subject import Fitting, fit_subject
from tests.pipelines import by_name

RNG = np.random.default_rng(0)


def test_fidelity_is_what_the_formulas_say() -> None:
    wanted = torch.rand(3, 1, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    found = wanted + 0.1 * torch.randn(3, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    measured = fidelity(found, wanted)
    for n in range(3):
        off = (found[n] - wanted[n]).double()
        assert measured["squared_error"][n] == pytest.approx(float(off.square().sum()), rel=1e-5)
        assert measured["squared_size"][n] == pytest.approx(float(wanted[n].double().square().sum()), rel=1e-5)
        assert measured["psnr"][n] == pytest.approx(10 * math.log10(4 / float(off.square().mean())), rel=1e-5)
        assert 0 < measured["ssim"][n] < 1
    same = fidelity(wanted, wanted)
    assert same["ssim"] == pytest.approx([1, 1, 1], abs=1e-5)
    assert same["psnr"] == [100, 100, 100]
    assert same["squared_error"] == [0, 0, 0]


def test_frechet_is_the_distance_of_two_normal_distributions() -> None:
    one, two = RNG.normal(size=(400, 6)) @ RNG.normal(size=(6, 6)), RNG.normal(size=(300, 6)) + 0.5
    s, t = np.cov(one, rowvar=False), np.cov(two, rowvar=False)
    expected = np.square(one.mean(0) - two.mean(0)).sum() + np.trace(s + t - 2 * sqrtm(s @ t).real)
    assert frechet(one, two) == pytest.approx(expected, rel=1e-6)
    assert frechet(one, one) == pytest.approx(0, abs=1e-8)


def test_real_digits_are_read() -> None:
    images, labels = digits.dataset()
    found = digit_quality(images[:50, None], [str(int(label)) for label in labels[:50]])
    assert np.mean(found["read"]) > 0.98
    assert np.argmax(found["features"], 1).tolist() == digits.classify(images[:50]).tolist()
    wrong = digit_quality(images[:50, None], [str((int(label) + 1) % 10) for label in labels[:50]])
    assert np.mean(wrong["read"]) < 0.02


def rows(count: int, rng: np.random.Generator) -> list[dict[str, Any]]:
    errors = rng.lognormal(-4, 0.6, count)
    return [{"squared_error": float(e), "squared_size": 1.0, "psnr": float(rng.normal(30, 2))} for e in errors]


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    """Of 200 samples of 60 pictures; a mean's interval holds the truth 95 times of 100, give or take."""
    hits, truth = 0, math.sqrt(math.exp(-4 + 0.6**2 / 2))
    error_hits = 0
    for number in range(200):
        found = summary(rows(60, np.random.default_rng(number)))
        hits += found["psnr"].low <= 30 <= found["psnr"].high
        error_hits += found["relative_error"].low <= truth <= found["relative_error"].high
    assert 180 <= hits <= 199
    assert 170 <= error_hits <= 199  # skewed: a little less


def test_a_summary_is_over_all_pictures() -> None:
    found = summary([{"squared_error": 1.0, "squared_size": 10.0}, {"squared_error": 3.0, "squared_size": 6.0}])
    assert found["relative_error"].value == pytest.approx(0.5)
    assert summary([]) == {}
    assert str(Interval95(0.5, 0.25, 1.0)) == "0.5 [0.25, 1]"


def test_every_prompt_is_drawn_as_often() -> None:
    subject = open_subject("demo", ["3", "7"], 4, "eager", {})
    batches = batches_of(subject, 3, 4, 10)
    assert batches == [([0, 1, 0, 1], 10), ([0, 1], 11)]


def test_a_cache_that_computes_every_step_changes_nothing() -> None:
    judge = Judge(open_subject("demo", ["3"], 5, "eager", {}), [digit_quality])
    (line,) = judge.lines(HiCache(1), [0], 0)
    assert line["squared_error"] == 0
    assert (line["computed"], line["decisions"], line["prompt"]) == (5, "FFFFF", "3")
    (worse,) = judge.lines(HiCache(5, warmup=1), [0], 0)
    assert worse["squared_error"] > 0
    assert worse["flops_speedup"] > 3


def test_policies_have_short_names() -> None:
    text = '{"preset": "HiCache", "interval": 7}'
    found = named_policies(["HiCache", text])
    assert list(found) == ["HiCache", "HiCache interval=7"]
    assert all(isinstance(policy, Policy) for policy in found.values())
    with pytest.raises(HiCacheError, match=r"eval\.policy: must be given"):
        named_policies([])


def test_the_command(tmp_path: Path) -> None:
    options = ["--policy", "HiCache", "--policy", '{"preset": "FORA", "interval": 4}', "--prompt", "3", "--prompt", "7"]
    options += ["--steps", "12", "--samples", "2", "--backend", "eager"]
    shown = CliRunner().invoke(app, ["eval", "demo", *options, "--sheet", str(tmp_path / "sheet.png")])
    assert shown.exit_code == 0, shown.output
    assert "4 pictures of 2 prompts, 12 steps, eager" in shown.output
    assert (tmp_path / "sheet.png").stat().st_size > 5000
    out = tmp_path / "lines.jsonl"
    result = CliRunner().invoke(app, ["eval", "demo", *options, "--json", "--out", str(out)])
    found = json.loads(result.stdout)
    assert list(found) == ["in full", "HiCache", "FORA interval=4"]
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(lines) == 12
    for name, one in found.items():
        mine = [line for line in lines if line["policy"] == name]
        error = math.sqrt(sum(line["squared_error"] for line in mine) / sum(line["squared_size"] for line in mine))
        assert one["relative_error"]["value"] == pytest.approx(error)
        assert one["relative_error"]["low"] <= error <= one["relative_error"]["high"]
        assert {"psnr", "ssim", "read", "frechet", "computed", "flops_speedup", "clock_speedup"} <= set(one)
    assert found["in full"]["relative_error"]["value"] == 0


def test_computed_steps_may_be_sparse() -> None:
    """Runs in full stay dense: with an interval of 1 what differs is the sparsity."""
    options = ["--policy", '{"preset": "HiCache", "interval": 1}', "--prompt", "3", "--steps", "6", "--samples", "1"]
    options += ["--sparsity", '{"top_keys": 0.3, "group": 16, "mlp_block": 16, "first_dense": 1}', "--json"]
    result = CliRunner().invoke(app, ["eval", "demo", *options, "--backend", "eager"])
    found = json.loads(result.stdout)["HiCache interval=1"]
    assert found["computed"]["value"] == 6
    assert found["flops_speedup"]["value"] > 1
    assert 0.001 < found["relative_error"]["value"] < 0.3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["demo"], "eval.policy: must be given"),
        (["demo", "--policy", "Voodoo"], "policy = 'Voodoo': must be"),
        (["nowhere", "--policy", "HiCache"], "eval.model = 'nowhere': must be 'demo' or a folder"),
        (["demo", "--policy", "HiCache", "--pack", "p.json", "--sparsity", "{}"], "eval.sparsity: must be left out"),
        (["demo", "--policy", "HiCache", "--prompt", "cat"], "eval.prompt = ['cat']: must be digits"),
        (["demo", "--policy", "HiCache", "--clip", "/nowhere"], "eval.clip = '/nowhere': must be a folder of a CLIP"),
        (
            ["demo", "--policy", "HiCache", "--image-reward", "/nowhere"],
            "eval.image_reward = '/nowhere': needs the package",
        ),
        (
            ["demo", "--policy", "HiCache", "--prompt-file", "/nowhere"],
            "eval.prompt_file = '/nowhere': must be a readable",
        ),
    ],
)
def test_the_command_says_what_is_wrong(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(app, ["eval", *arguments, "--backend", "eager", "--steps", "4"])
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())


@pytest.mark.slow
def test_a_pipeline_is_judged(tmp_path: Path) -> None:
    folder = by_name("FluxPipeline").saved(tmp_path / "flux")
    options = ["--policy", "HiCache", "--prompt", "a cat", "--prompt", "a ship", "--steps", "6", "--samples", "1"]
    options += ["--backend", "eager", "--height", "16", "--width", "16", "--json"]
    result = CliRunner().invoke(app, ["eval", str(folder), *options])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["HiCache"]["relative_error"]["value"] > 0
    assert found["HiCache"]["computed"]["value"] < 6


def test_the_steps_of_a_run_are_those_of_all_denoisers(tmp_path: Path) -> None:
    """Wan 2.2 samples with one denoiser and goes on with the other. A fit, which sees one of them, is refused."""
    folder = str(by_name("WanPipeline, two transformers").saved(tmp_path / "wan"))
    size = {"height": 16, "width": 16, "num_frames": 5, "max_sequence_length": 8}
    subject = open_subject(folder, ["a fox"], 8, "eager", size)
    assert len(subject.denoisers) == 2
    (line, *others) = Judge(subject).lines(HiCache(interval=3), [0], 0)
    letters = [denoiser.report().decisions() for denoiser in subject.denoisers]
    assert line["decisions"] == "".join(letters)
    assert line["computed"] == line["decisions"].count("F") < 8 == len(line["decisions"])
    assert 1 < line["flops_speedup"] < 8 / line["computed"]
    assert {frame["place"] for frame in (line, *others)} == {0}
    with pytest.raises(HiCacheError, match=r"fit.model: 2 denoisers share out the steps of a run"):
        fit_subject(subject, Fitting("magcache"), tmp_path / "policy.json")


def test_a_pack_of_batches_has_an_error_for_each_picture() -> None:
    lines = [
        {"prompt": "a", "seed": seed, "place": place, "squared_error": place, "squared_size": 1.0}
        for seed in range(2)
        for place in range(3)
        for _ in range(2)  # frames
    ]
    assert packing._errors(lines) == (0.0, 1.0, 2**0.5) * 2
