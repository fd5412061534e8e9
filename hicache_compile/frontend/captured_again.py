"""A graph that Dynamo captures again and again: what it guards on is made anew for each call, the graph is the same.

A guider of diffusers that skips layers hooks them before one call of each step and takes the hooks off after it.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Hashable
from contextlib import AbstractContextManager
from typing import Any

from torch import fx

from hicache_compile.passes.graph import ops
from hicache_compile.passes.graph.graphs import placeholders
from hicache_compile.runtime.replay.frames import ENTRIES, no_more_entries
from hicache_compile.runtime.step import Step

MOST = 4  # times that a run captured what an earlier one had captured in the same step

_LIMIT = re.compile("(recompile|cache)[ _](size )?limit", re.IGNORECASE)  # in Dynamo's words

log = logging.getLogger(__name__)


class CapturedAgain:
    """Counts the captures of one denoiser. ``too_often``: no more are made."""

    def __init__(self) -> None:
        self._places: set[Hashable] = set()  # steps, and the graph that each captured
        self._repeats = 0
        self.too_often = False

    def entries(self) -> AbstractContextManager[Any]:
        """Inside, Dynamo captures as often as it may."""
        return no_more_entries() if self.too_often else ENTRIES()

    def stopped(self, error: BaseException) -> bool:
        """Whether Dynamo raised ``error`` because it may capture no more."""
        return self.too_often and _LIMIT.search(str(error)) is not None

    def count(self, captured: fx.GraphModule, step: Step | None) -> None:
        """``captured`` is one more graph, of ``step``. A number that is a constant has a graph for each value, which
        later runs find; and between runs adapters may be loaded for each request.
        """
        if step is None or not step.index:
            return
        sizes = tuple(str(ops.value(node)) for node in placeholders(captured))
        place = step.context.name, step.index, hash((captured.code, sizes))
        self._repeats += place in self._places
        self._places.add(place)
        if self._repeats > MOST and not self.too_often:
            self.too_often = True
            log.warning(
                "the same graph was captured in the same steps of several runs, %d times in all, as something that the "
                "denoiser holds is made anew for each call (hooks that are set and taken off in each step, as by "
                "guiders that skip layers): from now on such calls run uncompiled and uncached; "
                "TORCH_LOGS=recompiles names what",
                self._repeats,
            )
