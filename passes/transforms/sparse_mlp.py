"""An MLP of a computed step, in each phase; a last linear that is shared is split, and its bias is added once."""

from __future__ import annotations

import operator

import torch
from torch import fx
from torch.nn import functional

from hicache_compile.operators.chipmunk import mlp as _operators  # noqa: F401  # registers them
from hicache_compile.passes.analysis.mlps import MLP, Projection
from hicache_compile.passes.graph import ops
from hicache_compile.passes.transforms.sparse_writer import SparseWriter
from hicache_compile.policy.sparsity.phases import Phase


def write_mlp(write: SparseWriter, mlp: MLP, phase: Phase) -> fx.Node:
    """What takes the place of the last linear of ``mlp`` in ``phase``."""
    chipmunk = write.chipmunk
    weights = _weights(write, mlp)
    x, block, activation = write.cast(mlp.inner.x), chipmunk.mlp_block, mlp.activation
    dense = torch.ops.hicache.mlp_dense.default
    forms = write.example(dense, *fx.node.map_arg((x, *weights), ops.value), activation, block)
    if phase.is_sparse:
        share = float(chipmunk.mlp_keys or 0.0)
        activations = write.memory("activations", forms[1])
        columns = _columns(write, x, weights, forms[2], share, chooses=phase is Phase.SPARSE)
        delta = (x, *weights, activations, columns, activation, share, chipmunk.provider)
        added = write.changing(torch.ops.hicache.mlp_delta.default, *delta)
        out = write.value(torch.add, write.memory("out", forms[0]), added)
    else:
        out, activations, means = write.values(dense, x, *weights, activation, block)
        write.keep("activations", activations)
        write.keep("means", means)
    write.keep("out", out)
    return _with_the_others(write, mlp, out)


Weights = tuple[fx.Node, fx.Node | None, fx.Node | None, fx.Node | None, fx.Node]


def _weights(write: SparseWriter, mlp: MLP) -> Weights:
    """Weight and bias into the activation, those of what it is multiplied by, and the weight out of it."""
    up = (None, None) if mlp.up is None else _rows(write, mlp.up)
    last = Projection(mlp.last).weight
    if mlp.stop is not None:
        last = write.value(operator.getitem, last, (slice(None), slice(mlp.start, mlp.stop)))
    return tuple(map(write.cast, (*_rows(write, mlp.inner), *up, last)))


def _rows(write: SparseWriter, projection: Projection) -> tuple[fx.Node, fx.Node | None]:
    """The weight and the bias of ``projection``."""
    if projection.start is None:
        return projection.weight, projection.bias
    rows = slice(projection.start, projection.stop)
    bias = projection.bias
    weight = write.value(operator.getitem, projection.weight, rows)
    return weight, None if bias is None else write.value(operator.getitem, bias, rows)


def _columns(
    write: SparseWriter, x: fx.Node, weights: Weights, means_like: torch.Tensor, share: float, *, chooses: bool
) -> fx.Node:
    """The hidden units to compute: chosen now, or at the step before."""
    chipmunk = write.chipmunk
    means = write.memory("means", means_like)
    settings = (share, chipmunk.mlp_multiple, float(chipmunk.mlp_random), write.number, chipmunk.mlp_block)
    select = torch.ops.hicache.mlp_select.default
    if not chooses:
        like = write.example(select, *fx.node.map_arg((x, *weights[:4], means), ops.value), *settings)
        return write.memory("units", like[0])
    columns, now = write.values(select, x, *weights[:4], means, *settings)
    write.keep("means", now)
    if chipmunk.mlp_select_every > 1:
        write.keep("units", columns)
    return columns


def _with_the_others(write: SparseWriter, mlp: MLP, out: fx.Node) -> fx.Node:
    """``out`` with the bias of the last linear, and with what it makes of the rest of its inputs."""
    last = Projection(mlp.last)
    if not mlp.others:
        return out if last.bias is None else write.value(torch.add, out, write.cast(last.bias))
    (other,) = mlp.others
    inputs = slice(None, mlp.start) if mlp.others_first else slice(mlp.stop, None)
    weight = write.value(operator.getitem, last.weight, (slice(None), inputs))
    computed = write.value(functional.linear, *map(write.cast, (other, weight, last.bias)))
    return write.value(torch.add, computed, out)
