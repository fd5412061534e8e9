"""From a captured graph to one straight-line program per choice: see ``pipeline``."""

from hicache_compile.passes.graph.choices import Choice
from hicache_compile.passes.pipeline import PASSES, rewrite
from hicache_compile.passes.transforms.capture import capture
from hicache_compile.passes.work import Rewrite

__all__ = ["PASSES", "Choice", "Rewrite", "capture", "rewrite"]
