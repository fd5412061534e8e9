"""Every script of examples/ runs as it is copied; the notebook too."""

from __future__ import annotations

import ast
import json
import re
import runpy
import sys
import types
from pathlib import Path

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

EXAMPLES = Path(__file__).parents[2] / "examples"
HELPERS = {"tiny.py", "tiny_server.py"}
SCRIPTS = sorted(path for path in EXAMPLES.glob("*.py") if path.name not in HELPERS)
NOTEBOOK = EXAMPLES / "notebook.ipynb"
NEEDS = {
    "lora_and_quantisation.py": ("peft", "torchao"),
    "onnx_export.py": ("onnx", "onnxruntime"),
    "serving_client.py": ("openai", "fastapi", "uvicorn"),
    "hunyuan_video.py": ("imageio",),
    "wan_video.py": ("imageio",),
}
LONGEST = 60  # lines
DECISIONS = re.compile(r"(?<!\S)F[F.sSt]{3,}(?!\S)")


@pytest.fixture(autouse=True)
def as_if_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What they write goes away; nothing that was compiled before is found again."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(EXAMPLES))
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_forecasts_and_says_so(
    script: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in NEEDS.get(script.name, ()):
        pytest.importorskip(name)
    monkeypatch.setattr(sys, "argv", [script.name, "--tiny"])
    runpy.run_path(str(script), run_name="__main__")
    printed = DECISIONS.findall(capsys.readouterr().out)
    assert any("." in decisions for decisions in printed), printed


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_is_short_and_says_how_it_is_called(script: Path) -> None:
    text = script.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= LONGEST
    described = ast.get_docstring(ast.parse(text)) or ""
    assert f"python examples/{script.name}" in described
    assert f"python examples/{script.name} --tiny" in described


def test_the_readme_has_every_script_and_no_other() -> None:
    linked = re.findall(r"\]\(([\w.]+)\)", (EXAMPLES / "README.md").read_text(encoding="utf-8"))
    assert sorted(set(linked)) == sorted([*(path.name for path in SCRIPTS), *HELPERS, NOTEBOOK.name])


def test_the_scripts_import_nothing_of_the_tests() -> None:
    for path in EXAMPLES.glob("*.py"):
        assert not re.search(r"^\s*(from|import) (tests|benchmarks|passes)\b", path.read_text(), flags=re.MULTILINE)


def cells() -> list[dict[str, object]]:
    read: list[dict[str, object]] = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in read if cell["cell_type"] == "code"]


@pytest.mark.slow
def test_the_notebook_runs(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("notebook_cells")  # where Dynamo finds the names of its classes
    monkeypatch.setitem(sys.modules, module.__name__, module)
    for cell in cells():
        source = "".join(cell["source"])  # type: ignore[arg-type]  # a list of lines
        exec(compile(source, NOTEBOOK.name, "exec"), vars(module))
    assert any("." in decisions for decisions in DECISIONS.findall(capsys.readouterr().out))


def test_the_notebook_is_kept_with_its_outputs_and_small() -> None:
    assert NOTEBOOK.stat().st_size < 300_000
    kept = [output for cell in cells() for output in cell["outputs"]]  # type: ignore[attr-defined]
    assert not [output for output in kept if output["output_type"] == "error"]
    assert sum("image/png" in output.get("data", {}) for output in kept) >= 2
    assert DECISIONS.search("".join("".join(output.get("text", [])) for output in kept))
    assert [cell["execution_count"] for cell in cells()] == list(range(1, len(cells()) + 1))
