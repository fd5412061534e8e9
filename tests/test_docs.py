"""What the documentation repeats from the code is what the code says.

``python -m tests.test_docs`` and ``python -m tests.worked_example`` write the generated parts again.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch.torch_version import TorchVersion

from hicache_compile.passes.pipeline import PASSES
from hicache_compile.policy.compatibility import CONFLICTS
from tests import worked_example
from tests.support.messages import Message, messages, plain

ROOT = Path(__file__).parents[1]
ARCHITECTURE = ROOT / "docs" / "architecture.md"
TABLE = re.compile(r"(?<=<!-- conflicts -->\n).*?(?=<!-- end -->)", flags=re.DOTALL)


def conflicts() -> str:
    rows = [f"| {conflict.one} | {conflict.other} | {conflict.reason} |" for conflict in CONFLICTS]
    return "\n".join(["| one | other | reason, and what to do |", "|---|---|---|", *rows, ""])


def test_the_table_of_conflicts_is_that_of_the_code() -> None:
    found = TABLE.search(ARCHITECTURE.read_text(encoding="utf-8"))
    assert found is not None
    assert found[0] == conflicts()


def test_every_file_it_names_exists() -> None:
    """Names of files and folders in the walk."""
    named = re.findall(r"`((?:\w+/)+(?:\w+\.py)?)`", ARCHITECTURE.read_text(encoding="utf-8"))
    assert len(named) > 20
    for name in named:
        assert (ROOT / name).exists() or (ROOT / "hicache_compile" / name).exists(), name


@pytest.mark.skipif(TorchVersion(torch.__version__) < (2, 13), reason="Dynamo named values otherwise")
def test_the_worked_example_is_what_the_passes_make() -> None:
    found = worked_example.GENERATED.search(worked_example.PAGE.read_text(encoding="utf-8"))
    assert found is not None
    assert found[0] == worked_example.generated()


def test_every_pass_is_in_the_worked_example() -> None:
    page = worked_example.PAGE.read_text(encoding="utf-8")
    for step in PASSES:
        assert f"## Pass: {step.name}" in page, step.name


def test_the_passes_of_the_page_are_those_of_the_pipeline() -> None:
    section = ARCHITECTURE.read_text(encoding="utf-8").split("\n## The passes\n")[1].split("\n## ")[0]
    assert re.findall(r"^\| ([a-z ]+) \| `", section, flags=re.MULTILINE) == [step.name for step in PASSES]


def test_every_message_is_explained() -> None:
    """A line of the log, a warning, a refusal, an error that does not show its field and value: each has an entry."""
    page = plain((ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8"))
    found = messages()
    assert {message.kind for message in found} == {"info", "warning", "refusal", "error"}
    assert len(found) > 200
    missing = [message for message in found if not message.names_a_value and message.fragment not in page]
    assert not missing, "\n".join(f"{one.kind} at {one.place}: {one.fragment}" for one in missing)


def test_a_message_is_known_by_what_never_changes() -> None:
    message = Message("warning", "file.py:1", "step %d: it measured %s, which is no number")
    assert message.fragment == "which is no number"
    assert Message("error", "file.py:1", "\0.order = \0: must be an integer").names_a_value
    assert not Message("error", "file.py:1", "reset(): must not be called in a step").names_a_value


if __name__ == "__main__":
    text = ARCHITECTURE.read_text(encoding="utf-8")
    ARCHITECTURE.write_text(TABLE.sub(lambda _: conflicts(), text), encoding="utf-8")
