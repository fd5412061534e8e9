"""What people look at: graphs as Python, explain, dump and its page, traces."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from hicache_compile import (
    FORA,
    CompiledDenoiser,
    HiCache,
    HiCacheError,
    PerBranch,
    PerRange,
    Policy,
    Reuse,
    StepMask,
    hicache_compile,
    inspect,
)
from hicache_compile.inspection.dump import schedule
from hicache_compile.inspection.page import page
from hicache_compile.passes.graph.graphs import placeholders
from hicache_compile.passes.graph.source import source_of
from hicache_compile.policy.json_codec import to_dict
from hicache_compile.policy.schedules.base import Interval
from tests.support.chromium import BINARY, FLAGS
from tests.support.models import ToyDiT, flux_inputs, random_flux, sample

ROOT = Path(__file__).parents[2]


def toy(policy: Policy | None = None, backend: str = "eager") -> CompiledDenoiser:
    compiled = hicache_compile(ToyDiT(), policy or HiCache(interval=4), backend=backend)
    compiled.warmup([torch.randn(2, 5, 16), torch.rand(2)])
    return compiled


def flux(scope: str) -> CompiledDenoiser:
    compiled = hicache_compile(random_flux(2, 3), HiCache(interval=4, scope=scope), backend="eager")
    with compiled.trajectory(8):
        sample(compiled, flux_inputs(), 8)
    return compiled


@pytest.mark.parametrize("scope", ["module", "stack"])
@pytest.mark.parametrize("name", ["captured", "guarded", "full", "forecast"])
def test_a_graph_prints_as_python_that_runs(name: str, scope: str) -> None:
    module = flux(scope).graphs[name]
    text = str(module)
    assert text.startswith(f"# {name} graph of FluxTransformer2DModel, scope {scope}\n# hicache_compile ")
    namespace: dict[str, Any] = {}
    exec(text, namespace)
    generator = torch.Generator().manual_seed(0)

    def value(node: Any) -> Any:
        example = node.meta["example_value"]
        if example.dtype == torch.int64:
            return torch.zeros(example.shape, dtype=torch.int64)
        return torch.randn(example.shape, generator=generator)

    inputs = [value(node) if node.name != "computing" else False for node in placeholders(module)]
    again = [each.clone() if isinstance(each, torch.Tensor) else each for each in inputs]
    with torch.no_grad():
        mine, theirs = namespace["Graph"]()(*inputs), module(*again)
    assert len(mine) == len(theirs) > 0
    for a, b in zip([*mine, *inputs], [*theirs, *again], strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_a_graph_says_where_its_lines_come_from() -> None:
    text = str(toy().graphs["captured"])
    assert "# File: models.py:" in text
    assert "attention = nn.functional.scaled_dot_product_attention(q, k, v)" in text
    assert "layers_0_up_weight" in text
    assert "= None\n" not in text
    assert str(ROOT) not in text


def test_tensors_a_graph_holds_are_named() -> None:
    graph = torch.fx.Graph()
    graph.output((graph.get_attr("table"),))
    text = source_of(torch.fx.GraphModule({"table": torch.zeros(2, 3)}, graph), "a graph")
    assert "# self.table is to be set: a float32 tensor [2, 3]" in text


@pytest.mark.parametrize("scope", ["module", "block", "stack", "output"])
def test_explain_counts_what_others_count(scope: str) -> None:
    compiled = flux(scope)
    found, report = compiled.explain(num_steps=8), compiled.report()
    assert found.decisions == report.decisions()
    assert (found.flops_full, found.flops_forecast) == (report.flops_full, report.flops_forecast)
    assert found.state_bytes == report.state_bytes == sum(site.nbytes for site in found.sites)
    assert found.flops_speedup == pytest.approx(report.flops_speedup)
    model, inputs = random_flux(2, 3), flux_inputs()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(**inputs, timestep=torch.ones(2), return_dict=False)
    counted = counter.get_flop_counts()
    by_block = {block.name: block.flops for block in found.blocks}
    name = "FluxTransformer2DModel.transformer_blocks.0"
    assert by_block["transformer_blocks.0"] == sum(counted[name].values())
    assert counted[name][torch.ops.aten._scaled_dot_product_flash_attention_for_cpu] == 2 * 2 * 2 * 20 * 20 * 32
    assert found.stacks == {"transformer_blocks": 2, "single_transformer_blocks": 3}
    assert [row.scope for row in found.scopes] == ["module", "block", "stack", "output"]


def test_explain_prints_tables() -> None:
    text = str(flux("module").explain(8))
    assert "5 blocks: 2 in transformer_blocks, 3 in single_transformer_blocks" in text
    assert re.search(r"transformer_blocks\.\*\.attn +joint-attention +2 ", text)
    assert "not read" in text
    assert "the same policy at each scope" in text
    assert max(map(len, text.splitlines())) <= 128


def test_explain_data_is_json() -> None:
    data = json.loads(flux("module").explain(8).to_json())
    assert data["decisions"] == "FFF...F."
    assert {site["kind"] for site in data["sites"]} == {"joint-attention", "mlp", "parallel"}
    assert data["stacks"] == {"transformer_blocks": 2, "single_transformer_blocks": 3}


def test_explain_needs_a_call() -> None:
    compiled = hicache_compile(ToyDiT(), HiCache(), backend="eager")
    with pytest.raises(HiCacheError, match="must have been called once"):
        compiled.explain()
    with pytest.raises(HiCacheError, match=r"explain\.num_steps = 0: must be an integer >= 1"):
        toy().explain(0)


def test_explain_with_nothing_to_cache() -> None:
    compiled = hicache_compile(nn.Sequential(nn.Linear(4, 4)), HiCache(), backend="eager")
    with compiled.trajectory(2), torch.no_grad():
        compiled(torch.randn(2, 4))
    found = compiled.explain(2)
    assert (found.sites, found.blocks, found.flops_speedup) == ([], [], 1.0)
    assert "0 blocks: none found" in str(found)
    assert "No block was found" in page(found, {}, [], {})


class Page(HTMLParser):
    """What a reader of the page would count."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[str] = []
        self.links: list[str] = []
        self.outside: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "g" and given.get("class") == "row":
            self.rows.append(str(given["data-name"]))
        if tag == "a":
            self.links.append(str(given["href"]))
        self.outside += [str(given[key]) for key in ("src", "href") if "//" in str(given.get(key))]


@pytest.fixture(scope="module")
def dumped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dump")
    toy(backend="inductor").dump(folder, num_steps=12)
    return folder


def test_a_dump_is_numbered_and_whole(dumped: Path) -> None:
    names = sorted(path.name for path in dumped.iterdir())
    assert names == [
        "01_captured.py", "02_guarded.py", "03_full.py", "04_forecast.py", "05_full_generated.py",
        "06_forecast_generated.py", "07_dynamo_bytecode.py", "explain.json", "explain.txt", "index.html", "policy.json",
        "report.json", "schedule.tsv", "versions.json",
    ]  # fmt: skip
    for path in dumped.glob("0[1-6]_*.py"):
        compile(path.read_text(), path.name, "exec")
    assert "def call(" in (dumped / "06_forecast_generated.py").read_text()
    assert "__compiled_fn" in (dumped / "07_dynamo_bytecode.py").read_text()
    assert json.loads((dumped / "versions.json").read_text())["torch"] == torch.__version__


def test_the_page_stands_alone(dumped: Path) -> None:
    seen = Page((dumped / "index.html").read_text())
    sites = [f"layers.{i}.{part}" for i in range(3) for part in ("proj", "down")]
    assert seen.rows == [*sites, "everything else"]
    assert seen.outside == []
    elsewhere = [link for link in seen.links if not link.startswith("#")]
    assert {link for link in elsewhere if not (dumped / link).is_file()} == set()


def test_the_schedule_is_the_plan() -> None:
    compiled = toy(FORA(interval=3))
    lines = schedule(compiled.policy, 6, compiled._views(), compiled._layouts()).splitlines()
    assert lines[0].split("\t") == ["step", "decision", "group", "row", "weight_0"]
    everything = [["full", "", "0", ""], *[["forecast", "", "", "1.0"]] * 2] * 2
    assert [line.split("\t")[1:] for line in lines[1:]] == everything


def test_live_blocks_are_on_the_map() -> None:
    from hicache_compile import Reuse

    compiled = toy(Policy(Interval(4), Reuse(), "stack", first=1))
    text = page(compiled.explain(8), {}, [], {})
    assert Page(text).rows == ["layers.0", "layers.1..layers.2", "everything else"]
    assert re.findall(r'<span class="mark (\w+)">\w+</span></summary>', text) == ["first", "forecast", "forecast"]


@pytest.mark.skipif(BINARY is None, reason="no Chromium to open the page in")
def test_the_page_works_in_a_browser(dumped: Path, tmp_path: Path) -> None:
    html = (dumped / "index.html").read_text()
    script = (
        "<script>onerror = (m) => document.title = 'broken: ' + m;</script>",
        "<script>search.value = 'layers.1 mlp'; search.dispatchEvent(new Event('input'));"
        "document.querySelectorAll('#sites th button')[2].click();"
        "const found = [...document.querySelectorAll('#sites tbody tr')];"
        "document.body.dataset.shown = found.filter((r) => !r.hidden).map((r) => r.children[0].textContent).join();"
        "document.body.dataset.order = found.map((r) => r.dataset.name).join();"
        "document.body.dataset.map = [...document.querySelectorAll('.map use')].map((u) => u.getBBox().width).join();"
        "</script></body>",
    )
    opened = tmp_path / "opened.html"
    opened.write_text(html.replace("<head>", "<head>" + script[0]).replace("</body>", script[1]))
    command = [str(BINARY), *FLAGS, f"--user-data-dir={tmp_path}/profile", "--dump-dom", opened.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "<title>broken" not in done.stdout
    assert 'data-shown="layers.1.down"' in done.stdout
    order = re.search(r'data-order="([^"]*)"', done.stdout)
    assert order is not None
    assert order.group(1).startswith("layers.0.proj self-attention,layers.1.proj")  # most FLOPs first
    widths = re.search(r'data-map="([^"]*)"', done.stdout)
    assert widths is not None
    assert all(float(width) > 100 for width in widths.group(1).split(","))


def _trace(tmp_path: Path, variables: dict[str, str]) -> subprocess.CompletedProcess[str]:
    program = (
        "import torch; from hicache_compile import HiCache, hicache_compile; from tests.support.models import ToyDiT\n"
        "compiled = hicache_compile(ToyDiT(), HiCache(interval=2, warmup=1), backend='aot_eager')\n"
        "with torch.no_grad(), compiled.trajectory(3):\n"
        "    for _ in range(3): compiled(torch.randn(2, 5, 16), torch.rand(2))\n"
    )
    environment = {**os.environ, **variables}
    command = [sys.executable, "-c", program]
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT, env=environment)


def test_tlparse_shows_our_graphs(tmp_path: Path) -> None:
    tlparse = shutil.which("tlparse", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if tlparse is None:
        pytest.skip("tlparse is not installed")
    _trace(tmp_path, {"TORCH_TRACE": str(tmp_path / "trace")})
    (log,) = (tmp_path / "trace").glob("*.log")
    subprocess.run([tlparse, str(log), "-o", str(tmp_path / "out"), "--no-browser"], capture_output=True, check=True)
    for name in ("captured", "guarded", "full", "forecast"):
        (shown,) = (tmp_path / "out").rglob(f"hicache_{name}_*.txt")
        assert f"# {name} graph, scope module" in shown.read_text()


def test_hicache_dump_writes_by_itself(tmp_path: Path) -> None:
    _trace(tmp_path, {"HICACHE_DUMP": str(tmp_path / "dumps")})
    (folder,) = (tmp_path / "dumps").iterdir()
    assert folder.name == "00_ToyDiT"
    assert json.loads((folder / "report.json").read_text())["programs"] == 2
    assert (folder / "index.html").is_file()


def test_a_dump_that_cannot_be_written_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("HICACHE_DUMP", str(tmp_path / "file"))
    compiled = hicache_compile(ToyDiT(), HiCache(interval=2), backend="eager")
    with torch.no_grad(), pytest.raises(HiCacheError, match="cannot be written"):
        compiled(torch.randn(2, 5, 16), torch.rand(2))


def test_torch_logs_tell_the_story(tmp_path: Path) -> None:
    done = _trace(tmp_path, {"TORCH_LOGS": "+hicache_compile"})
    assert "scope module: 3 blocks, 6 sites, 6 slots" in done.stderr
    assert "lowering forecast to aot_eager" in done.stderr


def test_through_torch_compile(tmp_path: Path) -> None:
    torch.compiler.reset()
    compiled = torch.compile(ToyDiT(), backend="hicache", options={"policy": HiCache(interval=2), "backend": "eager"})
    with torch.no_grad():
        compiled(torch.randn(2, 5, 16), torch.rand(2))
    inspect(compiled).dump(tmp_path)
    assert "# captured graph of ToyDiT, scope module" in (tmp_path / "01_captured.py").read_text()
    assert "__compiled_fn" in next(tmp_path.glob("*_dynamo_bytecode.py")).read_text()


@pytest.mark.parametrize(
    ("schedule", "steps"),
    [
        (StepMask("1101"), 4),
        (PerBranch({"cond": StepMask("110110")}, StepMask("110110")), 6),
        (PerRange((Interval(3), StepMask("11011"))), 5),
        (Interval(4), 50),
    ],
)
def test_a_policy_with_a_mask_is_explained_at_its_length(schedule: Any, steps: int, tmp_path: Path) -> None:
    compiled = hicache_compile(ToyDiT(), Policy(schedule, Reuse(), "module"), backend="eager")
    compiled.warmup([torch.randn(2, 5, 16), torch.rand(2)], num_steps=steps)
    assert compiled.explain().num_steps == steps
    compiled.dump(tmp_path)
    assert json.loads((tmp_path / "explain.json").read_text())["num_steps"] == steps


@dataclass(frozen=True)
class Newest:
    """A forecaster of a user's own."""

    def weights(self, anchors: Sequence[int], target: int) -> list[float]:
        return [1.0]


def test_a_policy_with_parts_of_ones_own_is_explained_and_dumped(tmp_path: Path) -> None:
    compiled = hicache_compile(ToyDiT(), Policy(Interval(3), Newest()), backend="eager")
    with compiled.trajectory(6), torch.no_grad():
        compiled(torch.zeros(1, 4, 16), torch.ones(1))
    assert compiled.explain(6).policy["forecaster"] == {"type": "Newest", "repr": "Newest()"}
    compiled.dump(tmp_path)
    assert "Newest()" in next(tmp_path.rglob("policy.json")).read_text()
    with pytest.raises(HiCacheError, match="a policy with it cannot be written as JSON"):
        to_dict(compiled.policy)
