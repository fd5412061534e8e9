"""Decision maps: the cells of each strategy, FlexCache's PPM files pixel by pixel, the picture."""

from __future__ import annotations

from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import torch

from hicache_compile import (
    PAB,
    DiTango,
    FBCacheTeaCache,
    FlexCache,
    HiCache,
    HiCacheError,
    KeySteps,
    Policy,
    TeaCache,
    hicache_compile,
)
from hicache_compile.inspection.decision_map import DecisionMap, Row
from tests.support.models import ToyDiT, flux_inputs, random_flux, sample

STEPS = 12


def run(policy: Policy) -> DecisionMap:
    compiled = hicache_compile(random_flux(2, 2), policy, backend="eager")
    with compiled.trajectory(STEPS):
        sample(compiled, flux_inputs(batch=1), STEPS)
    return compiled.report().map()


@pytest.mark.parametrize(
    ("policy", "strategy", "cells"),
    [
        (TeaCache(1e9, warmup=2, cooldown=1, max_skips=3), "teacache", {"ffrrrcrrrcrf"}),
        (FBCacheTeaCache(1e9, 0.0, max_skips=3), "teacache_firstblock", {"fccccccccccf", "frrrcrrrcrrf"}),
        (FlexCache("pab", 0.3, 2, 1), "pab", {"ffcrrcrrcrrf"}),
        (HiCache(4), "interval", {"fffrrrcrrrcr"}),
    ],
)
def test_cells(policy: Policy, strategy: str, cells: set[str]) -> None:
    found = run(policy)
    assert found.strategy == strategy
    assert {row.cells for row in found.rows} == cells


def test_cells_of_kinds() -> None:
    compiled = hicache_compile(ToyDiT(depth=3), PAB(2, window=None, mlp=KeySteps((600,), 2)), backend="eager")
    with compiled.trajectory(6), torch.no_grad():
        for step in range(6):
            compiled(torch.randn(1, 6, 16), torch.full((1,), 1 - step / 6))
    rows = [(row.kind, row.cells) for row in compiled.report().map().rows]
    attention, mlp = ("self-attention", "crcrcr"), ("mlp", "ccccrc")
    assert rows == [attention, mlp, attention, mlp, attention]  # the MLP of the third block takes no part


def test_cells_of_groups() -> None:
    found = run(DiTango(0.5, 3, 2))
    assert (found.strategy, found.groups, len(found.rows)) == ("ditango", 2, 2 * 4)
    for row in found.rows:
        assert row.cells[:3] + row.cells[-2:] == "fffff"
        assert row.cells[3:5] == "ar"
    assert {"c", "r"} < set("".join(row.cells for row in found.rows))


def pixels(path: Path) -> np.ndarray:
    header, size, most, data = path.read_bytes().split(b"\n", 3)
    width, height = map(int, size.split())
    assert (header, most) == (b"P6", b"255")
    return np.frombuffer(data, np.uint8).reshape(height, width, 3)


def test_the_ppm_of_one_row(tmp_path: Path) -> None:
    path = DecisionMap("teacache", [Row("x", "blocks", "fcr")]).ppm(tmp_path)
    assert path.name == "teacache_policy_timestep_pos.ppm"
    found = pixels(path)
    assert found.shape == (12, 36, 3)
    for step, colour in enumerate([(160, 160, 160), (255, 180, 40), (40, 140, 255)]):
        assert (found[:, 12 * step : 12 * step + 12] == colour).all()


def test_the_ppm_of_kinds(tmp_path: Path) -> None:
    rows = [Row("a", "self-attention", "fcrr"), Row("b", "cross-attention", "fccr")]
    path = DecisionMap("pab", rows).ppm(tmp_path)
    assert path.name == "pab_policy_timestep_pos.ppm"
    expected = [(160, 160, 160), (255, 180, 40), (120, 200, 255), (20, 80, 200)]
    assert pixels(path)[0, ::12].tolist() == [list(colour) for colour in expected]


def test_the_ppm_of_groups(tmp_path: Path) -> None:
    """Two attentions of two groups: colours of the cells, and what separates them in their first pixel rows."""
    rows = [Row(f"{layer} {group}", "attention", "facr") for layer in range(2) for group in range(2)]
    path = DecisionMap("ditango", rows, groups=2).ppm(tmp_path)
    assert path.name == "ditango_policy_step_layer_group.ppm"
    found = pixels(path)
    assert found.shape == (4 * 8, 4 * 8, 3)
    colours = [[160, 160, 160], [30, 180, 80], [50, 120, 230], [250, 210, 70]]
    for top in (0, 8, 16, 24):
        assert found[top + 4, ::8].tolist() == colours
    assert found[8, 0].tolist() == [245, 245, 245]
    assert found[9, 0].tolist() == [160, 160, 160]
    assert found[16:18, 0].tolist() == [[30, 30, 30]] * 2
    assert found[18, 0].tolist() == [160, 160, 160]
    assert found[24, 0].tolist() == [245, 245, 245]


def test_the_picture_shows_every_cell(tmp_path: Path) -> None:
    rows = [Row("first", "attention", "facr"), Row("second", "attention", "ffcc")]
    image = matplotlib.image.imread(DecisionMap("ditango", rows, 2).png(tmp_path / "map.png"))[..., :3]
    for colour in ("8f8a80", "2a9d6f", "d1495b", "e7e5df"):
        wanted = np.array([int(colour[place : place + 2], 16) / 255 for place in (0, 2, 4)])
        assert (np.abs(image - wanted).max(-1) < 0.01).mean() > 0.003


def test_branches_are_merged_by_what_counts_most() -> None:
    compiled = hicache_compile(random_flux(2, 2), DiTango(0.5, 3, 2), backend="eager")
    given = {name: flux_inputs(batch=1, seed=seed) for name, seed in (("cond", 0), ("uncond", 1))}
    with compiled.trajectory(STEPS), torch.no_grad():
        for step in range(STEPS):
            for name, inputs in given.items():
                with compiled.cache_context(name):
                    compiled(**inputs, timestep=torch.full((1,), 1 - step / STEPS), return_dict=False)
    report = compiled.report()
    both, one, other = report.map(), report.map("cond"), report.map("uncond")
    for merged, *apart in zip(both.rows, one.rows, other.rows, strict=True):
        for cell, mine, theirs in zip(merged.cells, apart[0].cells, apart[1].cells, strict=True):
            assert cell == min(mine, theirs, key="afcr-".index)
    with pytest.raises(HiCacheError, match=r"map.context = 'third': must be one of cond, uncond"):
        report.map("third")


def test_there_is_no_map_before_a_run(tmp_path: Path) -> None:
    compiled = hicache_compile(ToyDiT(), HiCache(), backend="eager")
    with pytest.raises(HiCacheError, match="none yet"):
        compiled.report().map()
    with pytest.raises(HiCacheError, match="must have been a run"):
        DecisionMap("interval", []).ppm(tmp_path)
