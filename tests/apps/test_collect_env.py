"""``hicache collect-env``: an archive describes a case without weights or secrets, and it happens again from it."""

from __future__ import annotations

import dataclasses
import html
import json
import os
import random
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

import hicache_compile as library
from hicache_compile import FBCache, HiCache, HiCacheError, TeaCache, hicache_compile
from hicache_compile.cli import app
from hicache_compile.collect_env import collect, environment, model, read, rerun, scrubbing
from hicache_compile.collect_env.arguments import described, remade
from hicache_compile.serialize import from_dict
from tests.pipelines import by_name
from tests.stress.test_any_command import CONFIG
from tests.support.models import ToyDiT, flux_inputs, random_flux, sample

STEPS = 6
CPU = torch.device("cpu")
REFUSED = {"backend": "cond_eager", "offload": True}  # with guards


class Late(nn.Module):
    """A user's denoiser with residual blocks, whose forward raises below the time ``broken``."""

    def __init__(self, width: int = 8, broken: float = 0.5) -> None:
        super().__init__()
        self.width, self.broken = width, broken
        self.blocks = nn.ModuleList(nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width)) for _ in range(2))

    def forward(self, x: Tensor, t: float, ids: Tensor) -> Tensor:
        if t < self.broken:
            raise ArithmeticError(f"time {t:.3f} is below {self.broken}, of {secret()}")
        for block in self.blocks:
            x = x + block(x) * t + ids[..., None].clamp(max=0)
        return x


def secret() -> str:
    return os.environ.get("TEST_API_KEY", "nothing")


def members(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.fixture(scope="module")
def sampled() -> Any:
    """A compiled FLUX after one run."""
    compiled = hicache_compile(random_flux(), HiCache(interval=3), backend="eager")
    with compiled.trajectory(STEPS):
        sample(compiled, flux_inputs(), STEPS)
    return compiled


def fail_late(width: int = 8) -> tuple[Any, Exception]:
    compiled = hicache_compile(Late(width), HiCache(interval=2, warmup=1), backend="eager")
    x, ids = torch.randn(2, 3, width), torch.arange(7, 13).view(2, 3)
    try:
        with torch.no_grad(), compiled.trajectory(STEPS):
            for step in range(STEPS):
                compiled(x, 1 - step / STEPS, ids=ids)
    except ArithmeticError as error:
        return compiled, error
    raise AssertionError("the forward did not raise")


def test_a_run_is_collected_and_run_again(sampled: Any, tmp_path: Path) -> None:
    case = collect(sampled, tmp_path / "case.zip")
    assert case.decisions == {"default": sampled.report().decisions()}
    assert (case.num_steps, case.failure, case.notes, case.options) == (STEPS, None, [], {"backend": "eager"})
    assert case.policy is not None
    assert from_dict(case.policy) == sampled.policy
    hidden = case.inputs["default"]["kwargs"]["hidden_states"]["tensor"]
    assert (hidden["shape"], hidden["strides"], hidden["dtype"]) == ([2, 16, 4], [64, 4, 1], "float32")
    assert {"explain.txt", "report.json", "dump/02_guarded.py", "dump/index.html"} <= set(
        members(tmp_path / "case.zip")
    )
    again = rerun(tmp_path / "case.zip")
    assert again.same
    assert again.found_decisions == case.decisions


def test_other_decisions_are_told(sampled: Any, tmp_path: Path) -> None:
    collect(sampled, tmp_path / "case.zip")
    changed(tmp_path / "case.zip", "case", decisions={"default": "FFFFFF"})
    assert not rerun(tmp_path / "case.zip").same


def changed(path: Path, part: str, **fields: Any) -> None:
    """Set fields of one JSON file of the archive."""
    held = members(path)
    held[f"{part}.json"] = json.dumps({**(json.loads(held[f"{part}.json"]) or {}), **fields}).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in held.items():
            archive.writestr(name, content)


def test_a_forward_that_raises_raises_again(tmp_path: Path) -> None:
    compiled, error = fail_late(12)
    case = collect(compiled, tmp_path / "case.zip", error)
    assert case.failure is not None
    assert (case.failure["type"], case.failure["step"], case.num_steps) == ("ArithmeticError", 4, STEPS)
    assert case.model is not None
    assert case.model["config"] == {"width": 12, "broken": 0.5}
    assert "in forward" in case.texts["traceback.txt"]
    again = rerun(tmp_path / "case.zip")
    assert again.found == case.failure
    assert isinstance(again.error, ArithmeticError)


def test_a_failure_that_does_not_occur_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled, error = fail_late()
    collect(compiled, tmp_path / "case.zip", error)
    monkeypatch.setattr(Late, "forward", lambda self, x, t, ids: x + self.blocks[0](x))
    again = rerun(tmp_path / "case.zip")
    assert not again.same
    assert again.found is None


def test_a_combination_that_is_refused_is_refused_again(tmp_path: Path) -> None:
    flux = random_flux()
    with pytest.raises(HiCacheError) as refused:
        hicache_compile(flux, TeaCache(threshold=0.1), **REFUSED)  # type: ignore[arg-type]
    case = collect(flux, tmp_path / "case.zip", refused.value, policy=TeaCache(threshold=0.1), options=REFUSED)
    assert (case.options, case.report) == (REFUSED, None)
    again = rerun(tmp_path / "case.zip")
    assert again.same
    assert again.found is not None
    assert again.found["message"] == str(refused.value)


def test_branches_of_a_pipeline(tmp_path: Path) -> None:
    case = by_name("WanPipeline")
    pipeline = hicache_compile(case.build(), HiCache(interval=2), backend="eager")
    case.run(pipeline)
    collected = collect(pipeline, tmp_path / "case.zip")
    assert list(collected.inputs) == list(collected.decisions) == ["cond", "uncond"]
    assert rerun(tmp_path / "case.zip").found_decisions == collected.decisions


def test_only_the_newest_run_counts(tmp_path: Path) -> None:
    toy = hicache_compile(ToyDiT(), HiCache(interval=2), backend="eager")
    for name in ("before", "now"):
        with torch.no_grad(), toy.trajectory(STEPS), toy.cache_context(name):
            for _ in range(STEPS):
                toy(torch.randn(2, 8, 16), torch.ones(2))
    case = collect(toy, tmp_path / "case.zip")
    assert list(case.inputs) == list(case.decisions) == ["now"]


def test_what_torch_compile_made(tmp_path: Path) -> None:
    toy, inputs = ToyDiT(), (torch.randn(2, 8, 16), torch.ones(2))
    compiled: Any = torch.compile(toy, backend="hicache", options={"policy": HiCache(interval=2), "backend": "eager"})
    handle = library.inspect(compiled)
    with torch.no_grad(), handle.trajectory(STEPS):
        for _ in range(STEPS):
            compiled(*inputs)
    assert "the arguments of a call are not known" in collect(handle, tmp_path / "without.zip").notes[0]
    with pytest.raises(HiCacheError, match="holds no inputs"):
        rerun(tmp_path / "without.zip")
    collect(handle, tmp_path / "case.zip", inputs=inputs)
    assert rerun(tmp_path / "case.zip").same


def test_guards_are_named_where_they_decide_otherwise(sampled: Any, tmp_path: Path) -> None:
    toy = hicache_compile(ToyDiT(), FBCache(threshold=0.1, warmup=1), backend="eager")
    with torch.no_grad(), toy.trajectory(STEPS):
        for step in range(STEPS):
            toy(torch.ones(2, 8, 16) * (step < 4), torch.ones(2))
    collect(toy, tmp_path / "case.zip")
    changed(tmp_path / "case.zip", "case", decisions={"default": "F....."})
    assert "the policy has guards" in rerun(tmp_path / "case.zip").notes[-1]


def test_no_secrets_are_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = {"HF_TOKEN": "plain-token-value", "TEST_API_KEY": "key-of-a-service", "CUDA_PASSWORD": "pass-of-cuda"}
    logins = {"TORCHINDUCTOR_REDIS_URL": "redis://someone:pass-of-redis@host:1/0", "HICACHE_DUMP": ""}
    for name, value in (secrets | logins | {"OMP_WAIT_POLICY": "passive", "UNRELATED": "not-for-reports"}).items():
        monkeypatch.setenv(name, value)
    compiled, error = fail_late()
    assert "key-of-a-service" in str(error)
    collect(compiled, tmp_path / "case.zip", error)
    text = b"".join(members(tmp_path / "case.zip").values()).decode()
    hidden = (*secrets.values(), "pass-of-redis", "not-for-reports", f"{Path.home()}/")
    assert [one for one in hidden if one in text] == []
    found = json.loads(members(tmp_path / "case.zip")["environment.json"])["variables"]
    assert found["OMP_WAIT_POLICY"] == "passive"
    assert found["TORCHINDUCTOR_REDIS_URL"] == "redis://[removed]@host:1/0"
    assert rerun(tmp_path / "case.zip").same  # the message is compared without its secret


def test_tokens_are_told_by_their_form() -> None:
    text = scrubbing.scrubbed("use hf_abcdefghijklmnopqrst or sk-0123456789abcdef01 of a key", {})
    assert text == "use [removed] or [removed] of a key"


def test_secrets_are_found_however_they_are_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/jürgen")
    secret = 'of "two"\nlines\\with <ü>'
    told = {"secret": secret, "home": "/home/jürgen/models"}
    for text in (json.dumps(told), json.dumps(told, ensure_ascii=False), repr(told), html.escape(secret), secret):
        hidden = scrubbing.scrubbed(text, {"A_TOKEN": secret})
        assert "[removed]" in hidden
        assert not any(part in hidden for part in ("two", "lines", "rgen")), hidden


def test_no_weights_are_in_it_and_it_is_small(sampled: Any, tmp_path: Path) -> None:
    collect(sampled, tmp_path / "case.zip")
    held = members(tmp_path / "case.zip")
    assert (tmp_path / "case.zip").stat().st_size < 150_000
    everything = b"".join(held.values())
    for weight in sampled._orig_mod.parameters():
        assert weight.detach().numpy().tobytes()[:64] not in everything
        values = [value for value in weight.detach().flatten().tolist()[:10] if value not in (0, 1)]
        assert not any(f"{value:.7f}".lstrip("-").encode() in everything for value in values)
    assert {Path(name).suffix for name in held} <= {".json", ".txt", ".py", ".html", ".tsv"}


@pytest.mark.parametrize(
    "value",
    [
        torch.randn(2, 3, 4).transpose(0, 2),
        torch.randn(2, 1, 4).expand(2, 3, 4),
        torch.tensor([0.25, 0.5], dtype=torch.bfloat16),
        torch.tensor(999),
        torch.arange(5, 25).view(4, 5),
        torch.ones(3, 7, dtype=torch.bool),
        torch.randn(2, 5, dtype=torch.complex64),
        torch.zeros(0, 3),
        (1, [None, "text", {"a": torch.float16}], (8 / 25, True)),
    ],
)
def test_inputs_are_made_again_in_the_same_form(value: Any) -> None:
    data = json.loads(json.dumps(described(value)))
    torch.manual_seed(0)
    again = remade(data, CPU)
    if not isinstance(value, Tensor):
        assert again == value
        return
    assert (again.shape, again.stride(), again.dtype) == (value.shape, value.stride(), value.dtype)
    if value.numel() <= 4:
        assert torch.equal(again, value)
    elif not value.is_floating_point() and not value.is_complex():
        assert value.min() <= again.min()
        assert again.max() <= value.max()


def test_what_is_in_inputs_is_not_kept() -> None:
    assert "values" not in described(torch.arange(5))["tensor"]
    assert set(described(torch.randn(5))["tensor"]) == {"shape", "strides", "dtype", "device", "requires_grad"}


def test_an_argument_of_another_class_is_named(tmp_path: Path) -> None:
    with pytest.raises(HiCacheError, match=r"inputs.path is a pathlib.*: must be of tensors"):
        remade(described({"path": tmp_path}), CPU)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"class": "__main__:Net"}, "must be in a file that can be imported"),
        ({"class": "tests.apps:f.<locals>.Net"}, "must be in a file that can be imported"),
        ({"class": "no_such_package.models:Net"}, "must be installed, or on PYTHONPATH"),
        ({"class": "diffusers:NoSuchModel"}, "must be installed, or on PYTHONPATH"),
        ({"class": "subprocess:Popen"}, "must be a torch.nn.Module"),
        ({"config": {"depth": "many"}}, "must be what Late is made with"),
        ({"parameters": 10**15}, "must be collected with fewer layers"),
    ],
)
def test_a_model_that_cannot_be_made(change: dict[str, Any], said: str) -> None:
    with pytest.raises(HiCacheError, match=said):
        model.rebuild({**model.describe(Late()), **change}, CPU)


def test_another_model_than_was_collected_is_noted() -> None:
    assert model.differs(Late(8), model.describe(Late(8))) == ""
    assert "other parameters" in model.differs(Late(9), model.describe(Late(8)))


def test_a_model_of_transformers_and_dtypes_are_made_again() -> None:
    from transformers import BertConfig, BertModel

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    bert = BertModel(BertConfig(**sizes, vocab_size=32)).to(torch.bfloat16)
    bert.embeddings.float()
    again = model.rebuild(model.describe(bert), CPU)
    assert [(name, one.shape, one.dtype) for name, one in again.named_parameters()] == [
        (name, one.shape, one.dtype) for name, one in bert.named_parameters()
    ]


def test_folders_are_no_part_of_a_configuration() -> None:
    flux: Any = random_flux()
    flux.register_to_config(_name_or_path="/home/someone/models/flux")
    assert "someone" not in json.dumps(model.describe(flux))


def test_machines_are_compared(sampled: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HICACHE_FUEL", "3")
    collect(sampled, tmp_path / "case.zip")
    monkeypatch.delenv("HICACHE_FUEL")
    there = dict(json.loads(members(tmp_path / "case.zip")["environment.json"]), python="3.0.0")
    there["packages"]["torch"] = "1.0"
    changed(tmp_path / "case.zip", "environment", **there)
    notes = rerun(tmp_path / "case.zip").notes
    assert [note.partition(" ")[0] for note in notes] == ["torch", "Python", "HICACHE_FUEL"]


def test_a_policy_of_ones_own_is_noted(tmp_path: Path) -> None:
    @dataclasses.dataclass(frozen=True)
    class Mine(library.Interval):
        pass

    policy = dataclasses.replace(HiCache(interval=2), schedule=Mine(2))
    case = collect(hicache_compile(ToyDiT(), policy, backend="eager"), tmp_path / "case.zip")
    assert case.policy is None
    assert any(note.startswith("policy is not in the archive") for note in case.notes)
    with pytest.raises(HiCacheError, match="holds no policy"):
        rerun(tmp_path / "case.zip")


def test_a_plan_is_run_again_at_its_timesteps(tmp_path: Path) -> None:
    times = tuple(1000 * (1 - step / 6) ** 2 for step in range(6))
    policy = dataclasses.replace(HiCache(interval=2), schedule=library.PlannedSteps((1, 1, 0, 1, 0, 1), times))
    compiled: Any = hicache_compile(ToyDiT(), policy, backend="eager")
    with torch.no_grad(), compiled.trajectory(6, timesteps=times):
        for time in times:
            compiled(torch.randn(1, 16, 16), torch.full((1,), time / 1000))
    collect(compiled, tmp_path / "case.zip")
    outcome = rerun(tmp_path / "case.zip")
    assert (outcome.same, outcome.found_decisions) == (True, {"default": "FF.F.F"})


def test_passes_of_ones_own_are_named(tmp_path: Path) -> None:
    def unchanged(program: torch.fx.GraphModule) -> None:
        return None

    compiled: Any = hicache_compile(ToyDiT(), HiCache(interval=2), backend="eager", program_passes=[unchanged])
    with torch.no_grad(), compiled.trajectory(4):
        for step in range(4):
            compiled(torch.randn(1, 16, 16), torch.full((1,), 1 - step / 4))
    case = collect(compiled, tmp_path / "case.zip")
    assert case.options["program_passes"] == ["unchanged"]
    outcome = rerun(tmp_path / "case.zip")
    assert outcome.same
    assert any(note.startswith("program_passes = ['unchanged']") for note in outcome.notes)


def test_what_is_no_archive(tmp_path: Path, sampled: Any) -> None:
    (tmp_path / "text.zip").write_text("no")
    with pytest.raises(HiCacheError, match="must be an archive of hicache collect-env"):
        read(tmp_path / "text.zip")
    with pytest.raises(HiCacheError, match="must be an archive of hicache collect-env"):
        read(tmp_path / "none.zip")
    collect(sampled, tmp_path / "case.zip")
    changed(tmp_path / "case.zip", "case", version=99)
    with pytest.raises(HiCacheError, match="version = 99: must be 1"):
        read(tmp_path / "case.zip")


@pytest.mark.parametrize(
    ("part", "fields", "message"),
    [
        ("case", {"num_steps": "3"}, "case.json: num_steps = '3': must be a whole number, as collect-env wrote it"),
        ("case", {"notes": None}, "case.json: notes = None: must be a list"),
        ("environment", {"packages": []}, "environment.json: packages = \\[\\]: must be an object"),
        ("model", {"config": "a/name"}, "model.json: config = 'a/name': must be an object"),
        ("model", {"dtype": "float99"}, "model.dtype = 'float99': must be a dtype of torch"),
        ("inputs", {"default": {}}, "inputs.json: default = {}: must be an object with 'args'"),
        ("failure", {"message": "x"}, "failure.json = {'message': 'x'}: must be an object with 'type'"),
    ],
)
def test_an_archive_of_another_form(
    tmp_path: Path, sampled: Any, part: str, fields: dict[str, Any], message: str
) -> None:
    collect(sampled, tmp_path / "case.zip")
    changed(tmp_path / "case.zip", part, **fields)
    with pytest.raises(HiCacheError, match=message):
        rerun(tmp_path / "case.zip")


def test_an_archive_that_is_damaged_anywhere(tmp_path: Path, sampled: Any) -> None:
    collect(sampled, tmp_path / "case.zip")
    whole, source, refused = (tmp_path / "case.zip").read_bytes(), random.Random(0), 0
    case = read(tmp_path / "case.zip")
    for _ in range(300):
        content = bytearray(whole)
        content[source.randrange(len(content))] ^= 1 << source.randrange(8)
        (tmp_path / "flipped.zip").write_bytes(content[: source.choice([len(content), source.randrange(len(content))])])
        try:
            found = read(tmp_path / "flipped.zip")
        except HiCacheError:
            refused += 1
        else:  # a date, a flag: what the case says is the same
            assert dataclasses.replace(found, texts=case.texts) == case
    assert 100 < refused < 300  # a flip in the dump, which is not read, is none of the case


@pytest.mark.parametrize("what", [3, None, "model"])
def test_what_cannot_be_collected(what: Any, tmp_path: Path) -> None:
    with pytest.raises(HiCacheError, match=r"collect\.model = .*: must be what hicache_compile returned"):
        collect(what, tmp_path / "case.zip")


def test_a_pipeline_with_two_denoisers_asks_for_one(tmp_path: Path) -> None:
    pipeline = hicache_compile(by_name("WanPipeline, two transformers").build(), HiCache(), backend="eager")
    with pytest.raises(HiCacheError, match="transformer, transformer_2; give collect"):
        collect(pipeline, tmp_path / "case.zip")


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    Path("config.json").write_text(json.dumps({**CONFIG, "in_channels": 4, "patch_size": 1}))
    return "config.json"


def run(*words: str) -> Any:
    return CliRunner().invoke(app, ["collect-env", *words])


def test_the_command(config: str) -> None:
    done = run(config, "--policy", "FORA", "--backend", "eager", "--steps", "4", "--json")
    assert done.exit_code == 0, done.output
    data = json.loads(done.stdout)
    assert data == {"path": "case.zip", "failure": None, "decisions": {"default": "F..F"}, "notes": []}
    again = run("--rerun", "case.zip")
    assert again.exit_code == 0
    assert "the same happens" in again.output
    assert "F..F" in again.output


def test_the_command_records_what_is_refused(config: str) -> None:
    policy = '{"preset": "TeaCache", "threshold": 0.1}'
    done = run(config, "--policy", policy, "--backend", "cond_eager", "--offload", "--out", "refused.zip")
    assert done.exit_code == 0, done.output
    assert "failure" in done.output
    again = run("--rerun", "refused.zip", "--json")
    data = json.loads(again.stdout)
    assert (again.exit_code, data["same"], data["recorded"]) == (0, True, data["found"])


def test_the_command_tells_another_outcome(config: str) -> None:
    run(config, "--policy", "FORA", "--backend", "eager", "--steps", "4")
    changed(Path("case.zip"), "failure", type="RuntimeError", message="out of memory", step=1, context="default")
    again = run("--rerun", "case.zip")
    assert again.exit_code == 1
    assert "something else happens" in again.output
    assert "recorded: failure in step 1" in again.output


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "collect-env.model: must be given"),
        (["demo", "--rerun", "case.zip"], "collect-env.model: must be given"),
        (["demo"], "collect-env.policy: must be given"),
        (["demo", "--policy", "HiCash"], "did you mean HiCache"),
        (["demo", "--policy", "HiCache", "--backend", "x"], "collect-env.backend = 'x'"),
        (["demo", "--policy", "HiCache", "--dtype", "x"], "collect-env.dtype = 'x'"),
        (["nowhere", "--policy", "HiCache"], "model 'nowhere': must be a folder"),
        (["lumina.json", "--policy", "HiCache"], "call hicache_compile.collect_env.collect(compiled"),
        (["huge.json", "--policy", "HiCache"], "must be collected with fewer layers"),
        (["--rerun", "nowhere.zip"], "must be an archive of hicache collect-env"),
    ],
)
def test_the_command_says_what_is_wrong(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("lumina.json").write_text('{"_class_name": "Lumina2Transformer2DModel"}')
    Path("huge.json").write_text(json.dumps({**CONFIG, "joint_attention_dim": 10**14}))
    done = run(*words)
    assert done.exit_code == 2
    assert said in " ".join(done.output.split())


def test_the_environment_names_versions_and_machine() -> None:
    found = environment.environment()
    assert {"hicache_compile", "torch", "diffusers", "transformers"} <= set(found["packages"])
    assert found["packages"]["torch"] == torch.__version__
    assert found["cpu"]["cores"] == os.cpu_count()
