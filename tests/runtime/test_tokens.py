"""Token-wise steps against plain eager references: the published rules, written out with loops over tokens."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hicache_compile import (
    FORA,
    ClusCa,
    DuCa,
    HiCache,
    HiClusCa,
    Interval,
    PerKind,
    PerRange,
    Policy,
    Reuse,
    Taylor,
    ToCa,
    Tokens,
    XSlim,
    hicache_compile,
)
from hicache_compile.operators import tokens as operators
from tests.support.models import flux_inputs, random_flux, trace
from tests.support.reference_toy import Toy
from tests.zoo import CASES

STEPS = 10
LINE = 0.4
BACKENDS = ("eager", "aot_eager")


class Reference:
    """``model`` with the outputs of its modules cached under ``policy``: eager, one hook a module, loops over tokens.

    Args:
        sites: modules that are cached, in the order they are called in, and of each the name of its stream of tokens;
            ``None``: its tokens mix, so it is forecast.
        leading: by stream the module that tokens are chosen by.
    """

    def __init__(self, model: nn.Module, policy: Policy, sites: dict[str, str | None], leading: dict[str, str]) -> None:
        assert policy.tokens is not None
        self.policy, self.tokens, self.sites, self.leading = policy, policy.tokens, sites, leading
        self.anchors: dict[str, list[Tensor]] = {name: [] for name in sites}
        self.error: dict[str, Tensor] = {}
        self.computed: list[int] = []
        self.step, self.chosen = -1, dict[str, list[list[int]]]()
        self.noted: dict[str, dict[str, Any]] = {stream: {} for stream in leading}
        for name in sites:
            model.get_submodule(name).register_forward_hook(self._hook(name))

    def begin(self, step: int) -> None:
        self.step, self.chosen = step, {}
        if self.policy.forces(step, STEPS) or not step:
            self.computed.append(step)

    @property
    def kind(self) -> str:
        skipped = self.step - self.computed[-1]
        return "F" if not skipped else "t" if skipped % self.tokens.every == 0 else "."

    def _hook(self, name: str) -> Callable[..., Tensor]:
        def replaced(module: nn.Module, args: Any, made: Tensor) -> Tensor:
            stream = self.sites[name]
            if self.kind == "F":
                self.anchors[name].append(made)
                self.error.pop(name, None)
                if stream is not None and self.leading[stream] == name:
                    self._note(stream, made)
                return made
            newest = self.anchors[name][::-1]
            weights = self.policy.weights(self.computed, self.step)
            base = sum((w * value.double() for w, value in zip(weights, newest, strict=False)), 0.0)
            whole = base + self.error.get(name, 0)  # type: ignore[operator]
            if self.kind == "t" and stream is not None:
                whole = self._some(stream, whole, made.double())  # type: ignore[arg-type]
                self.error[name] = whole - base
            return whole.to(made.dtype)  # type: ignore[union-attr]

        return replaced

    def _note(self, stream: str, value: Tensor) -> None:
        noted, value = self.noted[stream], value.double()
        if self.tokens.select == "clusters":
            noted["clusters"] = [self._clustered(noted, sample, row) for row, sample in enumerate(value)]
        elif self.tokens.select == "norm":
            noted["score"] = value.norm(dim=-1)
        else:
            noted["change"] = (value - noted.get("before", torch.zeros_like(value))).norm(dim=-1)
            noted["before"], noted["stale"] = value, torch.zeros(value.shape[:2])

    def _clustered(self, noted: dict[str, Any], sample: Tensor, row: int) -> list[int]:
        count, tokens = self.tokens.of(len(sample)), len(sample)
        centroids = noted.setdefault("centroids", {})
        found = centroids.get(row, [sample[place * tokens // count] for place in range(count)])

        def nearest(token: Tensor) -> int:
            return min(range(count), key=lambda c: float((token - found[c]).abs().sum()))

        for _ in range(self.tokens.iterations):
            clusters = [nearest(token) for token in sample]
            found = [
                torch.stack(mine).mean(0)
                if (mine := [token for token, at in zip(sample, clusters, strict=True) if at == c])
                else found[c]
                for c in range(count)
            ]
        centroids[row] = found
        return [nearest(token) for token in sample]

    def _choose(self, stream: str, value: Tensor) -> list[list[int]]:
        noted, count = self.noted[stream], self.tokens.of(value.shape[1])
        if self.tokens.select == "norm":
            return [row.topk(count).indices.tolist() for row in noted["score"]]
        if self.tokens.select == "clusters":
            draws = operators.draws(torch.tensor([self.tokens.draw(self.step)]), value.shape[1])[0]
            found = []
            for clusters in noted["clusters"]:
                members = {c: [i for i, at in enumerate(clusters) if at == c] for c in range(count)}
                found.append([min(mine, key=lambda i: draws[i]) for mine in members.values() if mine])
            return found
        score = noted["change"] / noted["change"].amax(1, keepdim=True) + self.tokens.staleness * noted["stale"]
        side = round(value.shape[1] ** 0.5)
        if side * side == value.shape[1] and side % 2 == 0:
            for row in score:
                cells = [
                    [r * side + c, r * side + c + 1, (r + 1) * side + c, (r + 1) * side + c + 1]
                    for r in range(0, side, 2)
                    for c in range(0, side, 2)
                ]
                for cell in cells:
                    best = max(cell, key=lambda i: float(row[i]))
                    row[best] *= 1 + self.tokens.bonus
        chosen = [row.topk(count).indices.tolist() for row in score]
        noted["stale"] = noted["stale"] + 1
        for row, places in zip(noted["stale"], chosen, strict=True):
            row[places] = 0
        return chosen

    def _some(self, stream: str, forecast: Tensor, made: Tensor) -> Tensor:
        if stream not in self.chosen:
            self.chosen[stream] = self._choose(stream, made)
        whole = forecast.clone()
        for row, places in enumerate(self.chosen[stream]):
            if self.tokens.spread != "none":
                clusters = self.noted[stream]["clusters"][row]
                of = {clusters[place]: place for place in places}
                for token, cluster in enumerate(clusters):
                    one = of[cluster]
                    if self.tokens.spread == "value":
                        whole[row, token] += self.tokens.blend * (made[row, one] - forecast[row, token])
                    else:
                        whole[row, token] += self.tokens.blend * (made[row, one] - forecast[row, one])
            for place in places:
                whole[row, place] = made[row, place]
        return whole


class PushedThenPolished(Reference):
    """X-Slim: a step is reused, polished or computed by the summed changes of the modulated input of block 0."""

    def __init__(self, model: nn.Module, policy: Policy, threshold: float, warning: float) -> None:
        self.lines, self.total, self.letters = (warning * threshold, threshold), 0.0, ""
        model.get_submodule("transformer_blocks.0.norm1").register_forward_hook(self._decide)
        super().__init__(model, policy, *_flux())

    def begin(self, step: int) -> None:
        self.step, self.chosen = step, {}

    def _decide(self, module: nn.Module, args: Any, made: Any) -> None:
        if self.step:
            changes = (made[0] - self.before).abs().mean((1, 2)) / self.before.abs().mean((1, 2))
            self.total += float(changes.max())  # of two samples that are decided together
        self.before = made[0]
        warning, threshold = self.lines
        forced = self.step in (0, STEPS - 1)
        self.letters += "F" if forced or self.total >= threshold else "t" if self.total >= warning else "."
        if self.kind == "F":
            self.total = 0.0
            self.computed.append(self.step)

    @property
    def kind(self) -> str:
        return self.letters[-1]


def _flux(layers: int = 2) -> tuple[dict[str, str | None], dict[str, str]]:
    sites: dict[str, str | None] = {}
    for layer in range(layers):
        block = f"transformer_blocks.{layer}"
        sites |= {f"{block}.attn.to_out.0": None, f"{block}.attn.to_add_out": None}
        sites |= {f"{block}.ff": "image", f"{block}.ff_context": "text"}
    last = f"transformer_blocks.{layers - 1}"
    return sites, {"image": f"{last}.ff", "text": f"{last}.ff_context"}


def run(denoiser: Any, begin: Callable[[int], None] = lambda step: None) -> Tensor:
    inputs = flux_inputs(batch=2)
    x = inputs["hidden_states"]
    for step in range(STEPS):
        begin(step)
        time = torch.full((2,), 1 - step / STEPS)
        with torch.no_grad():
            x = x - denoiser(**{**inputs, "hidden_states": x}, timestep=time, return_dict=False)[0] / STEPS
    return x


POLICIES = {
    "ToCa": ToCa(3, 0.3),
    "DuCa": DuCa(4, 0.3),
    "ClusCa": ClusCa(4, clusters=3, blend=0.1),
    "HiClusCa": HiClusCa(4, clusters=3, blend=0.1, seed=5),
    "by error": Policy(Interval(4, 2), Taylor(1), tokens=Tokens("clusters", 3, spread="error", blend=0.7)),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", POLICIES)
def test_a_run_is_that_of_the_published_rule(name: str, backend: str) -> None:
    policy = POLICIES[name]
    model = random_flux(2, 0)  # attention and MLPs of its double blocks are sites of their own
    compiled = hicache_compile(random_flux(2, 0), policy, backend=backend)
    with compiled.trajectory(STEPS):
        x = run(compiled)
    reference = Reference(model, policy, *_flux())
    expected = run(model, reference.begin)
    torch.testing.assert_close(x, expected, rtol=1e-4, atol=1e-5)
    report = compiled.report()
    assert "t" in report.decisions()
    plain = hicache_compile(random_flux(2, 0), Policy(policy.schedule, policy.forecaster), backend=backend)
    with plain.trajectory(STEPS):
        assert (run(plain) - expected).norm() > 1e-4 * expected.norm()  # the tokens make a difference


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("forecaster", [Reuse(), Taylor(1)], ids=["reuse", "Taylor"])
def test_steps_are_pushed_then_polished(forecaster: Any, backend: str) -> None:
    policy = XSlim(LINE, 0.5, coefficients=(1, 0), clusters=3, blend=0.1, cooldown=1, forecaster=forecaster)
    compiled = hicache_compile(random_flux(2, 0), policy, backend=backend, together=True)
    with compiled.trajectory(STEPS):
        x = run(compiled)
    model = random_flux(2, 0)
    reference = PushedThenPolished(model, policy, LINE, 0.5)
    expected = run(model, reference.begin)
    assert set(reference.letters) == {"F", "t", "."}
    assert compiled.report().decisions() == reference.letters
    torch.testing.assert_close(x, expected, rtol=1e-4, atol=1e-5)
    compiled.policy = replace(policy, guards=(replace(policy.guards[0], warning=1.0),))  # type: ignore[call-arg]
    with compiled.trajectory(STEPS):
        assert (run(compiled) - expected).norm() > 1e-4 * expected.norm()  # the tokens make a difference
    assert "t" not in compiled.report().decisions()
    assert compiled.report().recompiles == 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_all_tokens_are_the_mlps_computed_in_full(backend: str) -> None:
    """As if attention alone was reused, and every MLP computed in every step."""
    some = Policy(Interval(3, 1), Reuse(), tokens=Tokens("grid", share=1.0))
    results = []
    attention = dict.fromkeys(("joint-attention", "self-attention"), Interval(3, 1))
    for policy in (some, Policy(PerKind(attention), Reuse())):
        compiled = hicache_compile(random_flux(2, 0), policy, backend=backend)
        with compiled.trajectory(STEPS):
            results.append(run(compiled))
    torch.testing.assert_close(*results, rtol=0, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_where_no_step_is_tokenwise_nothing_changes(backend: str) -> None:
    results = []
    for tokens in (None, Tokens(every=STEPS)):
        compiled = hicache_compile(random_flux(2, 1), Policy(Interval(4, 2), Taylor(1), tokens=tokens), backend=backend)
        with compiled.trajectory(STEPS):
            results.append(run(compiled))
    assert torch.equal(*results)


def test_each_choice_of_tokens_is_the_same_program() -> None:
    compiled = hicache_compile(random_flux(2, 1), ClusCa(4, clusters=3), backend="eager")
    for policy in (ClusCa(4, clusters=3), ClusCa(3, clusters=3, seed=9), ClusCa(5, clusters=3, warmup=1)):
        compiled.policy = policy
        with compiled.trajectory(STEPS):
            run(compiled)
    report = compiled.report()
    assert (report.programs, report.recompiles, report.host_syncs) == (
        2,
        0,
        0,
    )  # full and token-wise: no step is all forecast


def test_flops_are_those_of_the_rows() -> None:
    toy = Toy()
    compiled = hicache_compile(toy, Policy(Interval(3, 1), Reuse(), tokens=Tokens("grid", 2)), backend="eager")
    with compiled.trajectory(6), torch.no_grad():
        for step in range(6):
            compiled(torch.randn(1, 8, 8), torch.full((1,), 1 - step / 6))
    report = compiled.report()
    assert report.decisions() == "FttFtt"
    mlps = 4 * 2 * 2 * (2 * 8 * 16)  # blocks, tokens, two for a multiply-add, two linears
    tokenwise = report.flops_forecast + mlps
    assert report.flops_speedup == pytest.approx(6 * report.flops_full / (2 * report.flops_full + 4 * tokenwise))
    assert "t" in report.map().rows[1].cells
    assert "t" not in report.map().rows[0].cells
    assert compiled.explain(num_steps=6).decisions == "FttFtt"


def test_samples_of_a_batch_choose_their_own_tokens() -> None:
    policy = POLICIES["ClusCa"]
    model, inputs = random_flux(2, 1), flux_inputs(batch=2)
    together = hicache_compile(model, policy, backend="eager")
    both = trace(together, inputs, STEPS)[-1]
    for row in range(2):
        one = {name: value[row : row + 1] if value.shape[0] == 2 else value for name, value in inputs.items()}
        alone = trace(hicache_compile(random_flux(2, 1), policy, backend="eager"), one, STEPS)[-1]
        torch.testing.assert_close(both[row : row + 1], alone, rtol=1e-5, atol=1e-5)


def test_rows_at_different_steps() -> None:
    policy, model = POLICIES["by error"], Toy()
    x = torch.randn(2, 8, 8, generator=torch.Generator().manual_seed(0))

    def steps(denoise: Callable[[Tensor, Tensor], Tensor], x: Tensor, count: int, first: int = 0) -> Tensor:
        for step in range(first, count):
            with torch.no_grad():
                x = x - denoise(x, torch.full((x.shape[0],), 1 - step / 8)) / 8
        return x

    expected = []
    for row in range(2):
        alone = hicache_compile(Toy(), policy, backend="eager")
        with alone.trajectory(8):
            expected.append(steps(alone, x[row : row + 1], 8))
    compiled = hicache_compile(model, policy, backend="eager")
    runs = [compiled.run(8), compiled.run(8)]
    with runs[0]:
        ahead = steps(compiled, x[:1], 3)
    found = [ahead, x[1:]]
    for step in range(5):
        times = torch.tensor([1 - (step + 3) / 8, 1 - step / 8])
        with compiled.rows(runs), torch.no_grad():
            both = torch.cat(found)
            both = both - compiled(both, times) / 8
        found = [both[:1], both[1:]]
    with runs[1]:
        found[1] = steps(compiled, found[1], 8, first=5)
    torch.testing.assert_close(found[0], expected[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found[1], expected[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["DiTTransformer2DModel", "WanTransformer3DModel", "QwenImageTransformer2DModel"])
def test_other_denoisers(name: str) -> None:
    """More tokens, a smaller error; all sites of MLPs are token-wise, and all of them equal MLPs computed in full."""
    case = next(case for case in CASES if case.name == name)
    samples = {}
    for label, policy in {
        "full": HiCache(1),
        "none": FORA(4),
        "some": Policy(Interval(4, 1), Reuse(), tokens=Tokens("random", share=0.5)),
        "all": Policy(Interval(4, 1), Reuse(), tokens=Tokens("random", share=1.0)),
    }.items():
        compiled = hicache_compile(case.build(3), policy, backend="eager")
        x = case.noise(size=2)
        with compiled.trajectory(8), torch.no_grad():
            for step in range(8):
                x = x - case.call(compiled, x, 1 - step / 8, 2) / 8
        samples[label] = x
        if policy.tokens is not None:
            report = compiled.report()
            assert report.decisions() == "FtttFttt"
            assert not [reason for _, reason in report.refused if "token-wise" in reason]
    error = {label: float((x - samples["full"]).norm()) for label, x in samples.items()}
    assert error["all"] <= 1.05 * error["some"]
    assert error["some"] < error["none"]


def test_text_that_no_forecast_reads_is_left_out() -> None:
    """Text reaches the picture through attention alone, which is forecast: its MLPs would be for nothing."""
    compiled = hicache_compile(random_flux(2, 1), ToCa(3, 0.3), backend="eager")
    with compiled.trajectory(STEPS):
        run(compiled)
    cells = {row.name: row.cells for row in next(iter(compiled.report().rows.values()))}
    assert {name for name, row in cells.items() if "t" in row} == {f"transformer_blocks.{n}.ff" for n in (0, 1)}


@pytest.mark.parametrize("dim", [1, -1])
def test_a_norm_over_tokens_mixes_them(dim: int) -> None:
    def normed(mlp: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        return nn.functional.normalize(mlp(x), dim=dim)

    toy = Toy()
    for block in toy.blocks:
        block.mlp = functools.partial(normed, block.mlp)  # type: ignore[method-assign,arg-type]
    compiled = hicache_compile(toy, Policy(Interval(3, 1), Reuse(), tokens=Tokens("grid", 2)), backend="eager")
    with compiled.trajectory(3), torch.no_grad():
        for step in range(3):
            compiled(torch.randn(1, 8, 8), torch.full((1,), 1 - step / 3))
    assert compiled.report().decisions() == ("F.." if dim == 1 else "Ftt")


def test_ranges_leave_the_last_blocks_live() -> None:
    ranges = PerRange((Interval(3, 1), Interval(2, 1), Interval(4, 1)))
    for scope, blocks in (("stack", 2), ("block", 2), ("module", 10)):
        compiled = hicache_compile(Toy(depth=10), Policy(ranges, Reuse(), scope, last=5), backend="eager")
        with compiled.trajectory(6), torch.no_grad():
            for step in range(6):
                compiled(torch.randn(1, 8, 8), torch.full((1,), 1 - step / 6))
        rows = next(iter(compiled.report().rows.values()))
        assert len(rows) == blocks
        assert not [row.name for row in rows if any(f"blocks.{live}" in row.name for live in range(5, 10))]


def test_tokens_that_mix_are_left_to_forecasts(caplog: pytest.LogCaptureFixture) -> None:
    def pooled(mlp: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        made = mlp(x)
        return made + made.mean(1, keepdim=True)

    class Pooled(Toy):
        def __init__(self) -> None:
            super().__init__()
            for block in self.blocks:
                block.mlp = functools.partial(pooled, block.mlp)  # type: ignore[method-assign]

    with caplog.at_level(logging.WARNING, logger="hicache_compile"):
        compiled = hicache_compile(Pooled(), Policy(Interval(3, 1), Reuse(), tokens=Tokens("grid", 2)), backend="eager")
        with compiled.trajectory(6), torch.no_grad():
            for step in range(6):
                compiled(torch.randn(1, 8, 8), torch.full((1,), 1 - step / 6))
    assert compiled.report().decisions() == "F..F.."
    assert "no MLP can be computed for some of its tokens" in caplog.text
    assert any("its tokens mix in `mean`" in reason for _, reason in compiled.report().refused)


def test_tokens_of_what_no_forecast_reads_do_not_count(caplog: pytest.LogCaptureFixture) -> None:
    """Of a FLUX whose pictures have any number of tokens, only the MLPs of the text could be token-wise."""
    with caplog.at_level(logging.WARNING, logger="hicache_compile"):
        compiled = hicache_compile(random_flux(), ToCa(), backend="eager", dynamic=True)
        with compiled.trajectory(6), torch.no_grad():
            for _ in range(6):
                compiled(**flux_inputs(), timestep=torch.ones(2), return_dict=False)
    assert compiled.report().decisions() == "F...F."
    assert caplog.text.count("no MLP can be computed for some of its tokens") == 1


@pytest.mark.parametrize("kind", ["F", "t"])
def test_one_bad_step_spoils_no_other(kind: str) -> None:
    """A sample that overflows in a full or in a token-wise step is what it was in later ones, and so is the other."""
    decisions = "FFFtttFttt"
    bad = decisions.index(kind, 3)

    def outputs(spoil: bool) -> list[Tensor]:
        compiled = hicache_compile(Toy(), ClusCa(4, clusters=3, warmup=3), backend="eager")
        made = []
        with compiled.trajectory(len(decisions)), torch.no_grad():
            for step in range(len(decisions)):
                x = torch.randn(2, 8, 8, generator=torch.Generator().manual_seed(step))
                if spoil and step == bad:
                    x[0] = torch.inf
                made.append(compiled(x, torch.full((2,), 1 - step / 10)))
        assert compiled.report().decisions() == decisions
        return made

    plain, spoiled = outputs(False), outputs(True)
    for step in range(len(decisions)):
        torch.testing.assert_close(spoiled[step][1], plain[step][1])
        assert bool(spoiled[step][0].isfinite().all()) == (step != bad)
