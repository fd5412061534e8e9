"""Attention of a computed step, in each phase: what is read of all keys, and what is remembered of the others."""

from __future__ import annotations

import torch
from torch import Tensor, fx

from hicache_compile.operators.chipmunk import attention, orders  # noqa: F401  # registers the operators
from hicache_compile.operators.partial_attention import bias_of, compose, shared_by_heads, without
from hicache_compile.passes.analysis.attentions import arguments_of, scale_of
from hicache_compile.passes.graph import ops
from hicache_compile.passes.transforms.sparse_writer import SparseWriter
from hicache_compile.policy.sparsity.phases import Phase


def write_attention(write: SparseWriter, node: fx.Node, phase: Phase) -> fx.Node:
    """What takes the place of the attention ``node`` in ``phase``."""
    given = arguments_of(node)
    sparse = _SparseAttention(write, node, given["query"], given["key"], given["value"], given["attn_mask"])
    return sparse.sparse() if phase.is_sparse else sparse.dense(chooses=phase is Phase.SELECT)


class _SparseAttention:
    def __init__(
        self, write: SparseWriter, node: fx.Node, query: fx.Node, key: fx.Node, value: fx.Node, mask: fx.Node | None
    ) -> None:
        chipmunk = write.chipmunk
        self.write = write
        heads = ops.value(query).shape[1]
        self.data = query, *(self._of_heads(given, heads) for given in (key, value))
        self.bias = None if mask is None else write.value(bias_of, mask)
        self.scale = scale_of(node)
        self.group = chipmunk.group
        self.provider = chipmunk.provider
        self.shared = chipmunk.denominator == "shared"
        self.share = float(chipmunk.coverage or chipmunk.top_keys or 0.0)
        self.always = self._always(node)
        self.choice = (self.share, chipmunk.multiple, chipmunk.coverage, float(chipmunk.random_keys), write.number)

    def _of_heads(self, given: fx.Node, heads: int) -> fx.Node:
        """``given`` with as many heads as there are of queries: each chooses keys of its own."""
        shared = ops.value(given).shape[1] != heads
        return self.write.value(shared_by_heads, given, heads) if shared else given

    def dense(self, chooses: bool) -> fx.Node:
        """All keys; what the keys that are not selected add to it is remembered."""
        write = self.write
        out, lse = write.values(torch.ops.hicache.attention_dense.default, *self.data, self.bias, self.scale)
        if chooses:
            query, key, _ = self.data
            scored = (query, key, lse, self.bias, self.group, self.scale, self.provider)
            scores = write.value(torch.ops.hicache.column_scores.default, *scored)
            columns = write.value(torch.ops.hicache.select_columns.default, scores, self.always, *self.choice)
            write.keep("columns", columns)
        else:
            columns = self._columns()
        near, near_lse = self._near(columns)
        if self.shared:
            rest, rest_lse = write.values(parted, out, lse, near, near_lse)
            write.keep("rest_lse", rest_lse)
        else:
            rest = write.value(torch.sub, out, near)
        write.keep("rest", rest)
        return out

    def sparse(self) -> fx.Node:
        """The keys that are selected, and what is remembered of the others."""
        near, near_lse = self._near(self._columns())
        rest = self.write.memory("rest", ops.value(near))
        if not self.shared:
            return self.write.value(torch.add, rest, near)
        rest_lse = self.write.memory("rest_lse", ops.value(near_lse))
        return self.write.value(joined, rest, rest_lse, near, near_lse)

    def _always(self, node: fx.Node) -> fx.Node | None:
        """The keys that are read whatever they score."""
        chipmunk = self.write.chipmunk
        if not chipmunk.window and not chipmunk.band:
            return None
        count = ops.value(self.data[0]).shape[-2]
        before, grid, after = node.meta.get("grid", (0, (1, count), 0))
        window = chipmunk.window if "grid" in node.meta else 0
        args = (self.data[0], list(grid), chipmunk.order, before, after, self.group, window, float(chipmunk.band))
        return self.write.value(torch.ops.hicache.nearby_columns.default, *args)

    def _near(self, columns: fx.Node) -> list[fx.Node]:
        settings = (self.group, self.scale, self.share, self.provider)
        return self.write.values(torch.ops.hicache.attention_columns.default, *self.data, columns, self.bias, *settings)

    def _columns(self) -> fx.Node:
        """The keys that were selected."""

        def like() -> Tensor:
            batch, heads, count, _ = ops.value(self.data[0]).shape
            scores = ops.value(self.data[0]).new_empty(batch, heads, attention.groups_of(count, self.group), count)
            always = None if self.always is None else ops.value(self.always)
            return torch.ops.hicache.select_columns(scores, always, *self.choice)

        return self.write.memory("columns", self.write.example(like))


def parted(out: Tensor, lse: Tensor, near: Tensor, near_lse: Tensor) -> tuple[Tensor, Tensor]:
    """Attention to all keys but those of ``near``: see ``without``."""
    rest, rest_lse = without((out.to(lse.dtype), lse), (near.to(lse.dtype), near_lse))
    return rest.to(out.dtype), rest_lse


def joined(rest: Tensor, rest_lse: Tensor, near: Tensor, near_lse: Tensor) -> Tensor:
    """Attention to the keys of both: see ``compose``."""
    out, _ = compose((rest.to(rest_lse.dtype), rest_lse), (near.to(near_lse.dtype), near_lse))
    return out.to(near.dtype)
