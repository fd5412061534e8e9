"""One row of a batch."""

from __future__ import annotations

from dataclasses import dataclass

from hicache_compile.runtime.session import Session
from hicache_compile.runtime.step import Step


@dataclass(frozen=True, slots=True)
class Row:
    """One sample of a batch: the session of its run, and the step that this is of it."""

    session: Session
    step: Step
