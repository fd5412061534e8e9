"""The FLOPs of the operators in ``mlp``, from the shapes of their arguments."""

from __future__ import annotations

from collections.abc import Sequence

Sizes = Sequence[int]


def _products(x: Sizes, w1: Sizes, w_up: Sizes | None, w2: Sizes) -> int:
    batch, count, channels = x
    units, outputs = w1[0], w2[0]
    return 2 * batch * count * units * (channels * (1 if w_up is None else 2) + outputs)


def dense_flops(
    x: Sizes, w1: Sizes, b1: object, w_up: Sizes | None, b_up: object, w2: Sizes, *_: object, **__: object
) -> int:
    """Of ``mlp_dense``."""
    return _products(x, w1, w_up, w2)


def select_flops(
    x: Sizes, w1: Sizes, b1: object, w_up: Sizes | None, b_up: object, means: Sizes, *_: object, **__: object
) -> int:
    """Of ``mlp_select``: the inputs of the activation, averaged."""
    batch, rows, units = means
    return 2 * batch * rows * units * x[-1]


def delta_flops(
    x: Sizes,
    w1: Sizes,
    b1: object,
    w_up: Sizes | None,
    b_up: object,
    w2: Sizes,
    activations: Sizes,
    columns: Sizes,
    activation: object,
    fraction: float,
    *_: object,
    **__: object,
) -> int:
    """Of ``mlp_delta``: of ``mlp_dense``, the fraction that is recomputed."""
    return round(_products(x, w1, w_up, w2) * fraction)
