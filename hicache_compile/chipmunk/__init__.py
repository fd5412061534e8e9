"""Chipmunk (arXiv 2506.03275): attention and MLPs as column-sparse deltas on what a dense step remembered.

settings      the user's side: how sparse, how often dense
ageing        which computed steps are dense, by age
columns       sets of keys or hidden units, and how they are kept
attention     the operators of column-sparse attention (``torch.ops.hicache``)
mlp           the operators of sparse MLP deltas
providers     whose kernels run
bridging      anchors on both sides of a dense step

The pass that puts the operators into a graph is ``passes.sparsify``.
"""

from hicache_compile.chipmunk.settings import Chipmunk

__all__ = ["Chipmunk"]
