"""Which argument of a call is the timestep."""

from __future__ import annotations

import pytest

from hicache_compile.runtime.call_arguments import time_argument, time_names


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (("hidden_states", "timestep", "timestep_cond"), ["timestep"]),
        (("x", "sigma", "t"), ["t", "sigma"]),
        (("x", "r", "c"), ["r"]),  # Wuerstchen
        (("sample", "timestep_ratio"), ["timestep_ratio"]),  # Stable Cascade
        (("bb_ca", "bb_ca_time", "local_latents_time"), ["bb_ca_time", "local_latents_time"]),  # RFD4
        (("sample", "added_time_ids", "time_embeds", "frames"), []),
    ],
)
def test_a_timestep_is_told_by_its_name(names: tuple[str, ...], found: list[str]) -> None:
    assert list(time_names(names)) == found


def test_what_is_not_given_is_passed_over() -> None:
    assert time_argument({"timestep": None, "timestep_ratio": 0.5}) == ("timestep_ratio", 0.5)
    assert time_argument({"x": 1}) == ("", None)
