"""Orders of tokens, and the pass that writes them into real denoisers."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from hicache_compile import Chipmunk, HiCacheError, hicache_compile
from hicache_compile.operators.chipmunk import orders
from hicache_compile.operators.chipmunk.orders import positions
from tests.runtime.test_chipmunk import error, run
from tests.support.models import flux_inputs, random_flux
from tests.zoo import CASES, Case
from tests.zoo.case import GRIDS as GRIDS_OF_CASES

OPS = torch.ops.hicache
GRIDS = {"patches": [(16, 24), (5, 7), (1, 9), (9, 17)], "voxels": [(4, 6, 8), (5, 8, 19), (3, 45, 7), (9, 13, 17)]}


@pytest.mark.parametrize(("order", "grid"), [(order, grid) for order, grids in GRIDS.items() for grid in grids])
def test_the_way_back_is_exact_for_any_size(order: str, grid: tuple[int, ...]) -> None:
    x = torch.arange(2 + positions(grid, order).numel() + 3)
    there, back = (OPS.token_order(x, list(grid), order, 2, 3, inverse) for inverse in (False, True))
    assert torch.equal(x[there][back], x)
    assert torch.equal(x[there].sort().values, x)
    assert x[there][:2].tolist() == [0, 1]
    assert torch.equal(x[there][-3:], x[-3:])


def test_patches_are_in_the_published_order() -> None:
    height, width, c1, c2 = 16, 24, 8, 4
    place = torch.empty(height * width, dtype=torch.int64)
    for y, x in itertools.product(range(height), range(width)):
        outer = (y // c1) * (width // c1) + x // c1
        inner = ((y % c1) // c2) * (c1 // c2) + (x % c1) // c2
        place[outer * c1**2 + inner * c2**2 + (y % c2) * c2 + x % c2] = y * width + x
    assert torch.equal(positions((height, width), "patches"), place)


@pytest.mark.parametrize("grid", GRIDS["voxels"])
def test_voxels_are_in_the_published_order_with_what_is_left_over_last(grid: tuple[int, int, int]) -> None:
    sides = (4, 6, 8)
    whole = [size // side * side for size, side in zip(grid, sides, strict=True)]

    def place(t: int, y: int, x: int) -> int:
        return (t * grid[1] + y) * grid[2] + x

    found = []
    for corner in itertools.product(*(range(0, end, side) for end, side in zip(whole, sides, strict=True))):
        for offset in itertools.product(*map(range, sides)):
            found.append(place(*(c + o for c, o in zip(corner, offset, strict=True))))
    frames, height, width = (range(size) for size in grid)
    found += [place(t, y, x) for t in frames[whole[0] :] for y in height for x in width]
    found += [place(t, y, x) for t in frames[: whole[0]] for y in height[whole[1] :] for x in width]
    found += [place(t, y, x) for t in frames[: whole[0]] for y in height[: whole[1]] for x in width[whole[2] :]]
    assert positions(grid, "voxels").tolist() == found


def test_nearby_columns_are_those_of_the_neighbours() -> None:
    near = OPS.nearby_columns(torch.empty(1), [24, 24], "patches", 64, 0, 64, 1, 0.0)
    assert near.shape == (10, 640)
    assert near[0].all()  # text reads everything
    assert near[:, :64].all()  # and everything reads text
    corner, middle = near[1, 64:].view(9, 64), near[5, 64:].view(9, 64)
    assert corner.all(1).tolist() == [True, True, False, True, True, False, False, False, False]
    assert middle.all()
    band = OPS.nearby_columns(torch.empty(1), [1, 100], None, 0, 0, 10, 0, 0.2)
    assert band[5].nonzero()[[0, -1], 0].tolist() == [45, 64]


NO_GRID = (
    "FluxTransformer2DModel",
    "Flux2Transformer2DModel",
    "QwenImageTransformer2DModel",
    "CogView4Transformer2DModel",
)  # tokens come packed
ORDERED = {
    "SD3Transformer2DModel": "patches",
    "DiTTransformer2DModel": "patches",
    "FluxTransformer2DModel": "patches",
    "Flux2Transformer2DModel": "patches",
    "QwenImageTransformer2DModel": "patches",
    "CogView4Transformer2DModel": "patches",
    "WanTransformer3DModel": "voxels",
    "HunyuanVideoTransformer3DModel": "voxels",
}


@pytest.mark.parametrize("name", ORDERED)
def test_ordered_tokens_change_nothing_but_the_order_of_sums(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything is computed, in the order: positions, masks and text come out where they were. The patches and voxels
    are smaller here, as the grids are: in the published sizes these would be in order as they come."""
    monkeypatch.setattr(orders, "PATCHES", (2, 1))
    monkeypatch.setattr(orders, "VOXEL", (1, 2, 2))
    case = next(case for case in CASES if case.name == name)
    model, x = case.build(2), case.noise(size=1)
    expected = velocity_of(case, model, x, size=1)
    order = ORDERED[name]
    grid = GRIDS_OF_CASES[1] if name in NO_GRID else None
    everything = Chipmunk(top_keys=1.0, mlp_keys=1.0, first_dense=0, group=16, mlp_block=16, order=order, grid=grid)
    denoiser = hicache_compile(model, None, backend="eager", sparsity=everything)
    with denoiser.trajectory(4):
        found = [velocity_of(case, denoiser, x, size=1) for _ in range(4)]
    assert all(error(one, expected) < 2e-6 for one in found)
    assert denoiser.report().decisions() == "FFSS"
    assert "token_order" in denoiser.graphs["full"].code
    moved = positions(GRIDS_OF_CASES[1] if order == "patches" else (1, *GRIDS_OF_CASES[1]), order)
    assert not torch.equal(moved[moved], torch.arange(15))  # so that there and back are not the same


def velocity_of(case: Case, model: torch.nn.Module, x: Tensor, size: int = 0) -> Tensor:
    with torch.no_grad():
        return case.call(model, x, 0.5, size)


def test_order_is_written_once_and_undone_once() -> None:
    model, inputs = random_flux(2, 2), flux_inputs(tokens=64)
    sparsity = Chipmunk(group=16, mlp_block=16, order="patches", grid=(8, 8))
    denoiser = hicache_compile(model, None, backend="eager", sparsity=sparsity)
    run(denoiser, inputs)
    for name in ("full", "sparse"):
        code = denoiser.graphs[name].code
        assert code.count("index_select(") == 4  # in, out, cosines, sines
    with denoiser.disabled():
        assert torch.equal(run(denoiser, inputs), run(model, inputs))


def test_a_grid_that_is_not_there_is_named() -> None:
    model, inputs = random_flux(2, 2), flux_inputs(tokens=64)
    for grid, said in ((None, "Chipmunk.grid = None"), ((8, 9), r"Chipmunk.grid = \(8, 9\)")):
        denoiser = hicache_compile(
            model, None, backend="eager", sparsity=Chipmunk(group=16, order="patches", grid=grid)
        )
        with pytest.raises(HiCacheError, match=said):
            run(denoiser, inputs)
