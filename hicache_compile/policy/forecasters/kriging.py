"""Optimal weights for features of which only the distances between steps are known.

Let ``D[i, j] = |F_i - F_j|^2`` be measured on fully computed runs. For weights that sum to 1 (constants are reproduced)
the error of a forecast depends on ``D`` alone: with ``p = e_target - sum_j w_j e_j``, whose entries sum to zero,

    |F_target - sum_j w_j F_j|^2  =  -1/2 p^T D p

so the optimal weights solve a small linear system, whatever the size of the features. This is ordinary kriging along
the run with variogram ``D / 2`` (Matheron, "Principles of geostatistics", 1963; Cressie, "Statistics for Spatial Data",
section 3.2) and the ridge as nugget. Positions may lie between measured steps: features are interpolated linearly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

Matrix = np.ndarray


def kriging_weights(
    distances: Matrix, anchors: Sequence[float], targets: Sequence[float], ridge: float
) -> list[list[float]]:
    """The optimal weights of ``anchors`` (newest first) in the forecast of each of ``targets``.

    Args:
        distances: squared, between all measured steps ``[T, T]``.
        anchors, targets: positions in ``0 .. T - 1``.
        ridge: added to the diagonal, relative to its mean; shrinks the weights towards the newest anchor alone.
    """
    newest = _place(distances, anchors[0])
    older = np.array([_place(distances, anchor) - newest for anchor in anchors[1:]]).reshape(-1, len(distances))
    wanted = np.array([_place(distances, target) - newest for target in targets])
    return [[1.0 - float(row.sum()), *row.tolist()] for row in solve(*_normal(distances, older, wanted), ridge)]


def solve(gram: Matrix, moments: Matrix, ridge: float) -> Matrix:
    """``argmin_w |target - sum_j w_j d_j|^2 + ridge * mean(diag(gram)) * |w|^2``, one row per target.

    Inputs are ``gram[i, j] = <d_i, d_j>`` and ``moments[j, n] = <d_j, target_n>``.
    """
    if not len(gram):
        return np.zeros((moments.shape[1], 0))
    lifted = gram + ridge * np.trace(gram) / len(gram) * np.eye(len(gram))
    weights: Matrix = np.linalg.lstsq(lifted, moments, rcond=1e-12)[0].T
    return weights


def squared_error(distances: Matrix, anchors: Sequence[float], weights: Sequence[float], target: float) -> float:
    """``|F_target - sum_j w_j F_j|^2`` for weights that sum to 1."""
    left = [(1.0, target), *((-weight, anchor) for weight, anchor in zip(weights, anchors, strict=False))]
    return max(0.0, cross_product(distances, left, left))


def cross_product(distances: Matrix, one: Sequence[tuple[float, float]], other: Sequence[tuple[float, float]]) -> float:
    """``<sum_i a_i F_i, sum_j b_j F_j>`` of pairs ``(a_i, step i)``; the ``a`` sum to zero, and so do the ``b``."""
    left, right = (sum(weight * _place(distances, step) for weight, step in pairs) for pairs in (one, other))
    return -0.5 * float(left @ distances @ right)


def _normal(distances: Matrix, older: Matrix, wanted: Matrix) -> tuple[Matrix, Matrix]:
    return -0.5 * older @ distances @ older.T, -0.5 * older @ distances @ wanted.T


def _place(distances: Matrix, position: float) -> Matrix:
    """``position`` as interpolation weights over the measured steps."""
    last = len(distances) - 1
    position = min(max(float(position), 0.0), float(last))
    below = min(math.floor(position), max(last - 1, 0))
    place = np.zeros(last + 1)
    place[below] = 1.0 - (position - below)
    place[min(below + 1, last)] += position - below
    return place
