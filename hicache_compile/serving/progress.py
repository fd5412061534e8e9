"""What a request says of each of its steps while it runs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Progress:
    """One step of a request.

    ``step``: of the denoiser in this context, from 0. ``num_steps``: how many there will be, where that is known.
    ``decision``: the letter of the step, as in a report: ``F`` full, ``.`` forecast, ``S`` sparse, ``t`` token-wise,
    ``s`` ended by an inner guard, ``p`` partly. ``context``: the branch of guidance.
    """

    step: int
    num_steps: int | None
    decision: str
    context: str
