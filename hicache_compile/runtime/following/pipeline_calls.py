"""Pipelines and their schedulers, read and never changed: is the pipeline's call running, and at which step is it?

Nothing is put on a pipeline or a scheduler: others compare their classes, copy, pickle and save them. Whether a call is
running is read off the stack of this thread; a scheduler shows its timesteps, and most count their steps. So nothing is
synchronised.
"""

from __future__ import annotations

import inspect
import sys
import weakref
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Any

import torch


class WatchedPipeline:
    """A pipeline whose denoisers are compiled. ``begun``: its call is running, and has set its scheduler."""

    def __init__(self, pipeline: Any, begun: bool = False) -> None:
        self._pipeline = weakref.ref(pipeline)
        # Versatile Diffusion has methods instead of a call.
        call = next((vars(each)["__call__"] for each in type(pipeline).__mro__ if "__call__" in vars(each)), None)
        self.code = None if call is None else inspect.unwrap(call).__code__
        # What schedulers show before anyone has set them to a run.
        unset = () if begun else schedulers(pipeline)
        self._unset = weakref.WeakKeyDictionary({each: timesteps_of(each) for each in unset})

    @property
    def pipeline(self) -> Any:
        return self._pipeline()

    def announced(self) -> list[tuple[Any, Any]]:
        """Its schedulers that were set to a run, with their timesteps."""
        found = []
        for scheduler in schedulers(self.pipeline):
            timesteps = timesteps_of(scheduler)
            is_set = vars(scheduler).get("num_inference_steps") is not None
            if timesteps is not None and (is_set or self._unset.get(scheduler, timesteps) is not timesteps):
                found.append((scheduler, timesteps))
        return found


def running(watched: Sequence[WatchedPipeline]) -> Any:
    """The pipeline whose call is running in this thread; the innermost, where one calls another. It may be none of
    ``watched``, which then called it, or lent it its parts. ``None``: there is none."""
    codes = {each.code for each in watched}
    for frame in _frames():
        if frame.f_code in codes or frame.f_code.co_name == "__call__":
            owner = frame.f_locals.get("self")
            if any(each.pipeline is owner for each in watched) or _is_pipeline(owner):
                return owner
    return None


def is_running(pipeline: WatchedPipeline) -> bool:
    """Whether the call of ``pipeline`` is running in this thread, of others inside it or not."""
    called = (frame for frame in _frames() if frame.f_code is pipeline.code)
    return any(frame.f_locals.get("self") is pipeline.pipeline for frame in called)


def _frames() -> Iterator[FrameType]:
    """Those of this thread, the innermost first."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        yield frame
        frame = frame.f_back


def _is_pipeline(value: Any) -> bool:
    """Whether ``value`` has components, one of them a scheduler, as pipelines of diffusers do."""
    return hasattr(type(value), "components") and is_scheduler(vars(value).get("scheduler"))


def is_scheduler(value: Any) -> bool:
    return callable(getattr(value, "set_timesteps", None)) and callable(getattr(value, "step", None))


def schedulers(pipeline: Any) -> Iterator[Any]:
    """The schedulers ``pipeline`` holds, registered as components or not; the one named ``scheduler`` first."""
    held = {} if pipeline is None else vars(pipeline)
    for name in sorted(held, key=lambda name: name != "scheduler"):
        if "scheduler" in name and is_scheduler(held[name]):
            yield held[name]


def timesteps_of(scheduler: Any) -> Any:
    """Its timesteps, a tensor or a list; ``None``: it has none yet."""
    timesteps = vars(scheduler).get("timesteps")
    return timesteps if timesteps is not None and len(timesteps) else None


def position_of(scheduler: Any, timesteps: Any, moment: Any) -> int | None:
    """The place among ``timesteps`` that ``scheduler`` is at in a call whose timestep is ``moment``, unread.

    ``None``: neither the memory that ``moment`` lies in nor a counter tells.
    """
    place = _place_in_memory(timesteps, moment)
    if place is not None:
        return place
    if not hasattr(scheduler, "step_index"):
        return None
    counter: int | None = scheduler.step_index
    return begin_of(scheduler) if counter is None else counter


def begin_of(scheduler: Any) -> int:
    """Where among its timesteps the pipeline told ``scheduler`` to begin."""
    return getattr(scheduler, "begin_index", None) or 0


def _place_in_memory(timesteps: Any, moment: Any) -> int | None:
    """The place of the element of ``timesteps`` that ``moment`` is a view of."""
    if not (isinstance(timesteps, torch.Tensor) and isinstance(moment, torch.Tensor)):
        return None
    is_one = moment.numel() == 1 or not any(moment.stride())
    if not is_one or moment.dtype != timesteps.dtype or timesteps.dim() != 1:
        return None
    if moment.untyped_storage().data_ptr() != timesteps.untyped_storage().data_ptr():
        return None
    return (moment.storage_offset() - timesteps.storage_offset()) // timesteps.stride(0)


def times_from(timesteps: Any, place: int) -> list[float]:
    """The timesteps from ``place`` on; read back from the device they are on."""
    left = timesteps[place:]
    return [float(time) for time in (left.tolist() if isinstance(left, torch.Tensor) else left)]
