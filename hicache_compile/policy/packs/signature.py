"""What a pack was measured on: the class and configuration of a model and of its scheduler."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hicache_compile.errors import HiCacheError


@dataclass(frozen=True, slots=True)
class Signature:
    """A model and its scheduler; ``""`` where one is not known, which fits any.

    Weights are not part of it: another fine-tune of the same model is found by its errors (see ``Contract``).

    Args:
        model, scheduler: a class and a checksum of its configuration, as ``FluxTransformer2DModel 1f0c...``; several
            denoisers of a pipeline with ``+`` between them.
    """

    model: str = ""
    scheduler: str = ""

    @classmethod
    def of(cls, model: Any = None, scheduler: Any = None) -> Signature:
        """The signature of a module and of a scheduler of diffusers."""
        return cls(_signature(model), _signature(scheduler))

    @classmethod
    def of_all(cls, models: Sequence[Any], scheduler: Any = None) -> Signature:
        """The signature of a pipeline with several denoisers."""
        return cls(" + ".join(dict.fromkeys(map(_signature, models))), _signature(scheduler))

    def check(self, found: Signature) -> None:
        """Raise unless ``found`` is what the pack was measured on.

        Raises:
            HiCacheError: the model or the scheduler is another one.
        """
        for name in ("model", "scheduler"):
            mine, theirs = getattr(self, name), getattr(found, name)
            if mine and theirs and theirs not in mine.split(" + "):
                raise HiCacheError(
                    f"pack.{name}: measured on {mine}, this is {theirs}: must be the same class and configuration; "
                    "measure this one: hicache eval --pack"
                )


def _signature(part: Any) -> str:
    if part is None:
        return ""
    while (inner := _wrapped(part)) is not None:
        part = inner
    config = getattr(part, "config", None)
    known = dict(config) if isinstance(config, Mapping) else {}
    plain = {key: value for key, value in known.items() if not key.startswith("_")}
    text = json.dumps(plain, sort_keys=True, default=str)
    return f"{type(part).__name__} {hashlib.sha256(text.encode()).hexdigest()[:12]}"


def _wrapped(part: Any) -> Any:
    """What ``part`` wraps, where it is a wrapper of ``torch.compile`` or of parallel training."""
    modules = getattr(part, "_modules", {})
    alone = modules.get("module") if len(modules) == 1 else None
    return getattr(part, "_orig_mod", alone)
