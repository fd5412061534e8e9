"""The random numbers of torch, Python and NumPy: kept as they are, and whether any were drawn."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def random_numbers_kept() -> Iterator[None]:
    """Inside, drawing random numbers changes nothing for what comes after."""
    accelerator = torch.accelerator.current_accelerator()
    if accelerator is None:
        forked = torch.random.fork_rng(devices=[])
    else:
        forked = torch.random.fork_rng(device_type=accelerator.type)
    python, numpy = random.getstate(), _numpy()
    state = numpy.get_state() if numpy is not None else None
    try:
        with forked:
            yield
    finally:
        random.setstate(python)
        if numpy is not None:
            numpy.set_state(state)


def drawn_from() -> list[Any]:
    """Where the generators are: another list after any of them drew a number."""
    places: list[Any] = [torch.random.get_rng_state().tolist(), random.getstate()]
    numpy = _numpy()
    if numpy is not None:
        name, keys, *more = numpy.get_state()
        places.append((name, keys.tolist(), *more))
    if torch.cuda.is_available():
        places += [state.tolist() for state in torch.cuda.get_rng_state_all()]
    return places


def _numpy() -> Any:
    """``numpy.random``, where it was imported: what was not draws nothing."""
    return getattr(sys.modules.get("numpy"), "random", None)
