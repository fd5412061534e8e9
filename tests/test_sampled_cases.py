"""The table of tests of which not every case runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.sampled_cases import ONE_IN


@pytest.mark.parametrize("name", ONE_IN)
def test_every_entry_is_a_test_with_cases_or_left_out(name: str) -> None:
    file, _, function = name.partition("::")
    before, found, _ = (Path(__file__).parent / file).read_text(encoding="utf-8").partition(f"def {function}(")
    assert found
    assert ONE_IN[name] == 0 or "@pytest.mark.parametrize" in before.rpartition("\n\n\n")[2]
