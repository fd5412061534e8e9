"""What a project has around its code says what is so: workflows, contributing guide, changelog, citation, release."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def parsed(path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return loaded


def targets() -> set[str]:
    return set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


def made(text: str) -> set[str]:
    """The targets of make that ``text`` calls, a command a line or between backticks."""
    return set(re.findall(r"(?:^|`|&& )make (\w+)", text, re.MULTILINE))


def steps(workflow: dict[str, Any]) -> list[dict[str, Any]]:
    return [step for job in workflow["jobs"].values() for step in job["steps"]]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_calls_what_is_there(path: Path) -> None:
    workflow = parsed(path)
    assert {"name", "jobs", "permissions"} <= set(workflow)
    assert True in workflow or "on" in workflow  # YAML 1.1 reads the key `on` as true
    commands = [step["run"] for step in steps(workflow) if "run" in step]
    assert all("uses" in step or "run" in step for step in steps(workflow))
    assert commands
    assert made("\n".join(commands)) <= targets()
    scripts = [word for command in commands for word in command.split() if word.startswith((".ci/", "scripts/"))]
    assert all((ROOT / script).is_file() for script in scripts)


def test_workflows_run_every_version_of_python() -> None:
    matrix = parsed(ROOT / ".github/workflows/ci.yml")["jobs"]["test"]["strategy"]["matrix"]["python"]
    named = [one.rpartition(" ")[2] for one in PROJECT["classifiers"] if "Python :: 3." in one]
    assert named
    assert set(named) <= set(matrix)
    assert PROJECT["requires-python"] == f">={matrix[0]}"


def test_continuous_integration_runs_the_script_of_ci() -> None:
    commands = [step.get("run") for step in steps(parsed(ROOT / ".github/workflows/ci.yml"))]
    assert ".ci/run" in commands
    assert {"check", "docs"} <= made("\n".join(filter(None, commands)))


def test_nothing_is_uploaded_unless_it_is_asked_for() -> None:
    workflow = parsed(ROOT / ".github/workflows/release.yml")
    asked = workflow.get("on", workflow.get(True))["workflow_dispatch"]["inputs"]["upload"]
    assert asked["default"] is False
    uploads = [name for name, job in workflow["jobs"].items() if "publish" in str(job) or "twine upload" in str(job)]
    assert uploads == ["upload"]
    assert "inputs.upload" in workflow["jobs"]["upload"]["if"]
    assert "--upload" not in (ROOT / "Makefile").read_text(encoding="utf-8").split("release: ")[1].split("\n\n")[0]


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.name)
def test_an_issue_form_is_one(path: Path) -> None:
    form = parsed(path)
    if path.name == "config.yml":
        assert set(form) == {"blank_issues_enabled"}
        return
    assert {"name", "description", "body"} <= set(form)
    named = [field["id"] for field in form["body"]]
    assert len(set(named)) == len(named)
    assert {field["type"] for field in form["body"]} <= {"textarea", "input", "dropdown", "checkboxes", "markdown"}
    assert all(field["attributes"]["label"] for field in form["body"])


@pytest.mark.parametrize("name", ["bug", "model"])
def test_reports_ask_for_the_archive(name: str) -> None:
    assert "hicache collect-env" in (ROOT / f".github/ISSUE_TEMPLATE/{name}.yml").read_text(encoding="utf-8")


def test_hooks_call_the_tools_of_the_environment() -> None:
    hooks = parsed(ROOT / ".pre-commit-config.yaml")["repos"][0]["hooks"]
    entries = [hook["entry"] for hook in hooks]
    assert {entry.split()[0] for entry in entries} == {".venv/bin/ruff", ".venv/bin/codespell", "make"}
    assert made("\n".join(entries)) <= targets()


def test_what_the_guide_names_is_there() -> None:
    paths = re.findall(r"`((?:[\w.-]+/)+[\w.-]*|[\w-]+\.(?:md|toml|cff|yaml))`", CONTRIBUTING)
    assert len(paths) > 40
    assert [path for path in paths if not (ROOT / path).exists()] == []
    assert made(CONTRIBUTING) >= {"check", "test", "exhaustive", "release", "clean"}
    assert made(CONTRIBUTING) <= targets()


def test_names_the_guide_tells_to_change_are_in_the_files_it_names() -> None:
    """In a cell of the table: `NAME` ... `path`, and "its `__init__.py`" of the folder before."""
    rows = [line.split("|")[1:-1] for line in CONTRIBUTING.splitlines() if line.startswith("| a ")]
    assert len(rows) >= 10
    for thing, write, register, tests in rows:
        folder = re.findall(r"`([\w/]+/)`", write)
        for cell in (register, tests):
            text = cell.replace("its `__init__.py`", f"`{folder[0]}__init__.py`" if folder else "")
            found = "".join((ROOT / one).read_text(encoding="utf-8") for one in re.findall(r"`([\w/]+\.py)`", text))
            for name in re.findall(r"`(_?[A-Z][A-Za-z_]+|make_storage)`", text):
                assert name in found, (thing, name)


def test_the_changelog_knows_this_version() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## \[([^\]]+)\]", text, re.MULTILINE)
    assert headings[0] in ("Unreleased", PROJECT["version"])
    assert PROJECT["version"] in text
    assert len(text.splitlines()) <= 100


def test_the_citation_is_that_of_the_format() -> None:
    cited = parsed(ROOT / "CITATION.cff")
    assert cited["cff-version"] == "1.2.0"
    assert cited["version"] == PROJECT["version"]
    assert (cited["title"], cited["license"]) == (PROJECT["name"], PROJECT["license"])
    assert cited["authors"] == [{"name": "hicache_compile contributors"}]
    for reference in cited["references"]:
        assert {"type", "title", "authors", "year", "url"} <= set(reference)
        assert reference["identifiers"][0]["value"] == "arXiv:" + reference["url"].rpartition("/")[2]
        assert all(set(author) == {"given-names", "family-names"} for author in reference["authors"])


def test_it_is_spelled_right() -> None:
    codespell = shutil.which("codespell", path=Path(sys.executable).parent)
    if codespell is None:
        pytest.skip("codespell is not installed")
    done = subprocess.run([codespell], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.fixture
def release(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import release

    return release


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project of version 1.2.3 that can be released, in git."""
    (tmp_path / "pyproject.toml").write_text('[project]\nversion = "1.2.3"\n')
    (tmp_path / "CITATION.cff").write_text("cff-version: 1.2.0\nversion: 1.2.3\n")
    (tmp_path / "CHANGELOG.md").write_text("# Changelog\n\n## [Unreleased]\n\n## [1.2.3] - 2026-01-31\n\n- A thing.\n")
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "all"]):
        git(tmp_path, *words)
    return tmp_path


def git(folder: Path, *words: str) -> None:
    who = ["-c", "user.name=somebody", "-c", "user.email=somebody@example.org", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", *who, *words], cwd=folder, check=True, capture_output=True)


def test_a_release_that_is_ready(release: ModuleType, project: Path) -> None:
    assert release.version(project) == "1.2.3"
    assert release.notes("1.2.3", project) == "- A thing."
    release.check_git("v1.2.3", tagged=False, root=project)
    git(project, "tag", "v1.2.3")
    release.check_git("v1.2.3", tagged=True, root=project)


@pytest.mark.parametrize(
    ("file", "before", "after", "said"),
    [
        ("pyproject.toml", "1.2.3", "1.2", "must be like 1.2.3"),
        ("CITATION.cff", "version: 1.2.3", "version: 1.2.2", "must be 1.2.3, as in pyproject.toml"),
        ("CHANGELOG.md", " - 2026-01-31", "", "must have a heading"),
        ("CHANGELOG.md", "- A thing.", "", "must say what is in 1.2.3"),
        ("CHANGELOG.md", "[Unreleased]\n", "[Unreleased]\n\n- Another.\n", "must be under 1.2.3"),
    ],
)
def test_a_release_that_is_not(
    release: ModuleType, project: Path, file: str, before: str, after: str, said: str
) -> None:
    text = (project / file).read_text()
    assert before in text
    (project / file).write_text(text.replace(before, after))
    with pytest.raises(SystemExit, match=said):
        release.notes(release.version(project), project)


def test_a_release_of_a_tree_that_is_not_clean(release: ModuleType, project: Path) -> None:
    (project / "new.txt").write_text("new")
    with pytest.raises(SystemExit, match="nothing uncommitted, it has 1 files"):
        release.check_git("v1.2.3", tagged=False, root=project)


def test_a_release_of_a_version_that_there_is(release: ModuleType, project: Path) -> None:
    git(project, "tag", "v1.2.3")
    git(project, "commit", "-q", "--allow-empty", "-m", "more")
    with pytest.raises(SystemExit, match=r"v1\.2\.3 is another commit"):
        release.check_git("v1.2.3", tagged=False, root=project)
    with pytest.raises(SystemExit, match=r"v1\.2\.4 must be there"):
        release.check_git("v1.2.4", tagged=True, root=project)


def test_what_is_generated_is_ignored_and_cleaned() -> None:
    ignored = (ROOT / ".gitignore").read_text(encoding="utf-8").split()
    clean = (ROOT / "Makefile").read_text(encoding="utf-8").split("\nclean:")[1]
    assert "*.bak" in ignored
    names = [name.strip("/").replace(".venv", "$(VENV)") for name in ignored]
    assert [name for name in names if name not in clean] == []
