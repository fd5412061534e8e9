"""Fitting guards to a model: what is observed, what is made of it, the policies that come out."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.models.transformers.transformer_flux import FluxSingleTransformerBlock
from typer.testing import CliRunner

from hicache_compile import Hermite, HiCache, HiCacheError, TeaCacheGuard, hicache_compile
from hicache_compile.cli import app
from hicache_compile.demo.sampling import load_model, sample
from hicache_compile.policy.forecasters import Reuse
from hicache_compile.policy.json_codec import as_policy
from hicache_compile.tune import METHODS, fit, sensitivities
from hicache_compile.tune.fit import _computed, _dicache, _magcache, _teacache
from hicache_compile.tune.observe import Observed, observe
from tests.pipelines import by_name
from tests.support.models import flux_inputs, random_flux, trace

STEPS = 20
LEAST = {"sencache": 0.3}  # the share it explains: its two terms add up where they would cancel


def test_what_is_observed_is_what_hooks_see() -> None:
    """Against hooks on the uncached model: the signal, the stream after blocks, the residual over all."""
    model, inputs = random_flux(2, 2), flux_inputs(batch=1)
    seen: list[dict[str, torch.Tensor]] = []

    def entering(module: torch.nn.Module, args: object, kwargs: dict[str, torch.Tensor]) -> None:
        seen.append({"start": torch.cat([kwargs["encoder_hidden_states"], kwargs["hidden_states"]], dim=1)})

    def keep(name: str, module: torch.nn.Module, args: object, output: object) -> None:
        # A single block hands on text and image apart; inside, they are one stream.
        text, image = output  # type: ignore[misc]
        seen[-1][name] = torch.cat([text, image], dim=1) if isinstance(module, FluxSingleTransformerBlock) else image

    model.transformer_blocks[0].register_forward_pre_hook(entering, with_kwargs=True)
    model.transformer_blocks[0].norm1.register_forward_hook(lambda m, a, o: seen[-1].update(signal=o[0]))
    for number, block in enumerate([*model.transformer_blocks, *model.single_transformer_blocks]):
        block.register_forward_hook(functools.partial(keep, f"block {number}"))
    trace(model, inputs, STEPS)
    model = random_flux(2, 2)
    denoiser = hicache_compile(model, HiCache(scope="stack"), backend="aot_eager")

    def run() -> None:
        with denoiser.trajectory(STEPS):
            trace(denoiser, inputs, STEPS)

    (found,) = observe(denoiser, [run], blocks=2)
    assert found.num_steps == STEPS
    assert denoiser.policy == HiCache(scope="stack")

    def change(name: str, step: int) -> float:
        now, before = seen[step][name], seen[step - 1][name]
        return float((now - before).abs().mean() / before.abs().mean())

    for step in range(1, STEPS):
        assert found.signal[step - 1] == pytest.approx(change("signal", step), rel=1e-4)
        assert found.output[step - 1] == pytest.approx(change("block 3", step), rel=1e-4)
        for block in range(2):
            assert found.probes[block][step - 1] == pytest.approx(change(f"block {block}", step), rel=1e-4)
        sizes = [(seen[s]["block 3"] - seen[s]["start"]).norm(dim=-1) for s in (step, step - 1)]
        assert found.magnitude[step - 1] == pytest.approx(float((sizes[0] / sizes[1]).mean()), rel=1e-4)


def test_a_polynomial_is_found_again() -> None:
    x = np.linspace(0.01, 0.3, 40)
    y = 3 * x**4 - 2 * x**3 + x**2 + 0.5 * x + 0.01
    policy, _, explained = _teacache([Observed(list(x), list(y), [1.0] * 40, [])], "time", Reuse())
    guard = policy.guards[0]
    assert isinstance(guard, TeaCacheGuard)
    np.testing.assert_allclose(guard.coefficients, (3, -2, 1, 0.5, 0.01), rtol=1e-6)
    assert guard.signal == "time"
    assert explained == pytest.approx(1.0)


def test_a_table_is_the_mean_of_the_runs() -> None:
    runs = [Observed([0.1] * 3, [0.1] * 3, ratios, []) for ratios in ([1.2, 1.0, 0.9], [1.4, 1.0, 0.7])]
    policy, _, explained = _magcache(runs, "modulated", Reuse())
    assert policy.schedule.table == pytest.approx((1.0, 1.3, 1.0, 0.8))  # type: ignore[attr-defined]
    mean = np.array([1.3, 1.0, 0.8])
    ratios = np.array([[1.2, 1.0, 0.9], [1.4, 1.0, 0.7]])
    assert explained == pytest.approx(1 - ((ratios - mean) ** 2).sum() / ((ratios - ratios.mean()) ** 2).sum())


def test_the_shortest_probe_that_explains_as_much_is_taken() -> None:
    generator = np.random.default_rng(0)
    y = generator.uniform(0.1, 0.5, 60)
    probes = [y + generator.normal(0, noise, 60) for noise in (0.3, 0.004, 0.003, 0.002)]
    observed = Observed(list(y), list(y), [1.0] * 60, [list(probe) for probe in probes])
    policy, _, explained = _dicache([observed], "modulated", Reuse())
    assert policy.guards[0].blocks == 2  # type: ignore[attr-defined]
    assert explained > 0.98


@pytest.mark.parametrize("method", METHODS)
def test_fitted_policies_compute_about_as_many_steps(method: str) -> None:
    """On the demo model, with noise that was not fitted to."""
    denoiser = hicache_compile(load_model(), HiCache(scope="stack"), backend="eager")
    runs = [functools.partial(sample, denoiser, torch.tensor([n]), STEPS, n) for n in range(3)]
    fitted = fit(denoiser, runs, method, 8, forecaster=Hermite(1))
    assert abs(np.mean(fitted.computed) - 8) <= 1
    assert fitted.explained > LEAST.get(method, 0.8)
    denoiser.policy = as_policy(fitted.policy)
    sample(denoiser, torch.tensor([5]), STEPS, 77)
    assert abs(denoiser.report().computed - 8) <= 3
    cheaper, dearer = (fit(denoiser, runs, method, count).computed for count in (5, 12))
    assert np.mean(cheaper) < np.mean(fitted.computed) < np.mean(dearer)


def test_sensitivities_are_finite_differences_of_the_denoiser() -> None:
    """Against the formulas written out on the plain model, for a batch of two."""
    steps, model, inputs = 6, random_flux(1, 1), flux_inputs(batch=2)
    states = [inputs["hidden_states"], *trace(model, inputs, steps)]

    def made(x: torch.Tensor, step: int) -> torch.Tensor:
        with torch.no_grad():
            time = torch.full((2,), 1 - step / steps)
            output: torch.Tensor = model(**{**inputs, "hidden_states": x}, timestep=time, return_dict=False)[0]
        return output.double()

    def change(now: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
        return (now - before).abs().mean((1, 2)) / before.abs().mean((1, 2))

    by_input, by_time = [], []
    for step in range(steps - 1):
        x, after = states[step], states[step + 1]
        moved = change(after.double(), x.double()).mean()
        by_input.append(float(change(made(after, step), made(x, step)).mean() / moved))
        by_time.append(float(change(made(x, step + 1), made(x, step)).mean()) * steps)
    denoiser = hicache_compile(random_flux(1, 1), HiCache(scope="stack"), backend="eager")

    def run() -> None:
        with denoiser.trajectory(steps):
            trace(denoiser, inputs, steps)

    found = sensitivities(denoiser, [run])
    assert found.num_steps == steps
    # Of the last step there is none: that of the step before is kept.
    assert found.input_sensitivity == pytest.approx([*by_input, by_input[-1]], rel=2e-3)
    assert found.time_sensitivity == pytest.approx([*by_time, by_time[-1]], rel=2e-3)
    step, anchor = 4, 1
    assert found.moved[0][step, anchor] == pytest.approx(
        float(change(states[step + 1].double(), states[anchor].double()).mean()), rel=1e-4
    )
    assert denoiser.policy == HiCache(scope="stack")


def test_a_run_that_sensitivities_cannot_be_read_off_says_so() -> None:
    denoiser = hicache_compile(random_flux(1, 1), HiCache(scope="stack"), backend="eager")

    def run(*tokens: int) -> None:
        with denoiser.trajectory(len(tokens)):
            for count in tokens:
                trace(denoiser, flux_inputs(count), 1)

    for tokens, message in (
        ((16,), r"sensitivities.runs\[0\]: must sample at least two steps"),
        ((16, 12), r"has the shape \(2, 12, 4\) after \(2, 16, 4\): must be the same in all steps"),
    ):
        with pytest.raises(HiCacheError, match=message):
            sensitivities(denoiser, [functools.partial(run, *tokens)])


def test_the_simulated_rule_is_that_of_the_run() -> None:
    """A run of which every step stands still after the second: the change is 0 and the sum never grows."""
    policy, _, _ = _teacache([Observed([0.1, 0.0, 0.0, 0.0], [0.1, 0.0, 0.0, 0.0], [1.0] * 4, [])], "time", Reuse())
    assert _computed(policy, [0.1, 0.0, 0.0, 0.0]) == 2  # the first and the last, which are forced


def test_the_command_writes_a_policy(tmp_path: Path) -> None:
    out = tmp_path / "policy.json"
    options = ["--fit", "magcache", "--steps", "12", "--computed", "5", "--backend", "eager", "--out", str(out)]
    result = CliRunner().invoke(app, ["tune", "demo", *options, "--prompt", "3", "--prompt", "7"])
    assert result.exit_code == 0, result.output
    assert "magcache, 2 uncached runs of 12 steps" in result.output
    again = CliRunner().invoke(app, ["tune", "demo", *options, "--prompt", "3", "--prompt", "7", "--json"])
    found = json.loads(again.stdout)
    assert (found["fitted"], found["steps"], len(found["computed"])) == ("magcache", 12, 2)
    assert found["threshold"] == as_policy(str(out)).schedule.threshold  # type: ignore[attr-defined]
    policy = as_policy(str(out))
    assert len(policy.schedule.table) == 12  # type: ignore[attr-defined]
    assert abs(policy.decisions(12).count("F") - 5) <= 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["demo", "--fit", "voodoo"],
            "fit.method = 'voodoo': must be one of teacache, magcache, dicache, sencache, calibrated, sigma, gates",
        ),
        (["demo", "--fit", "teacache", "--prompt", "cat"], "must be digits, for the demo model"),
        (["nowhere", "--fit", "teacache"], "tune.model = 'nowhere': must be 'demo' or a folder"),
    ],
)
def test_the_command_says_what_is_wrong(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(app, ["tune", *arguments, "--backend", "eager", "--steps", "4"])
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())


def test_runs_must_sample() -> None:
    denoiser = hicache_compile(random_flux(), HiCache(), backend="eager")
    with pytest.raises(HiCacheError, match=r"fit.runs\[0\]: must sample at least two steps"):
        fit(denoiser, [lambda: None], "teacache", 4)
    assert denoiser.policy == HiCache()


@pytest.mark.slow
def test_a_pipeline_from_a_folder_is_fitted(tmp_path: Path) -> None:
    folder = by_name("FluxPipeline").saved(tmp_path / "flux")
    options = ["--fit", "teacache", "--steps", "8", "--computed", "4", "--backend", "eager", "--height", "16"]
    options += ["--width", "16", "--prompt", "a cat", "--prompt", "a ship", "--out", str(tmp_path / "policy.json")]
    result = CliRunner().invoke(app, ["tune", str(folder), *options])
    assert result.exit_code == 0, result.output
    assert "teacache, 2 uncached runs of 8 steps" in result.output
    assert isinstance(as_policy(str(tmp_path / "policy.json")).guards[0], TeaCacheGuard)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--computed", "3"], "tune.computed = 3: must be given with --fit"),
        (["--scope", "module"], "tune.scope = 'module': must be given with --fit"),
        (["--fit", "teacache", "--runs", "3"], "tune.runs = 3: must be left out with --fit"),
        (["--fit", "sigma", "--by-slot"], "fit.by_slot = True: must be left out with method 'sigma'"),
    ],
)
def test_options_that_would_have_no_effect_are_refused(options: list[str], message: str) -> None:
    result = CliRunner().invoke(app, ["tune", "demo", *options])
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())
