"""Resolve a denoiser from a known name, a model folder, a pipeline folder, or a ``config.json``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from os.path import isdir, isfile  # False too where a name is none
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hicache_compile.architectures.known import KNOWN
from hicache_compile.errors import HiCacheError
from hicache_compile.policy.files import read_text

_COMPONENTS = ("transformer", "unet")


@dataclass(frozen=True, slots=True)
class Architecture:
    """A diffusers class with a configuration; ``folder`` holds the weights, if there are any."""

    name: str
    cls: type[nn.Module]
    config: dict[str, Any]
    folder: Path | None = None

    def without_weights(self) -> nn.Module:
        """The denoiser on the ``meta`` device: shapes without data."""
        with self._explained(), torch.device("meta"):
            model: nn.Module = self.cls.from_config(self.config)  # type: ignore[attr-defined]  # of diffusers' ConfigMixin
        return model.eval()

    def with_random_weights(self) -> nn.Module:
        """The denoiser with the weights its class begins training with, on the CPU."""
        with self._explained():
            model: nn.Module = self.cls.from_config(self.config)  # type: ignore[attr-defined]  # of diffusers' ConfigMixin
        return model.eval()

    def with_weights(self, dtype: torch.dtype | None = None) -> nn.Module:
        """The denoiser with the weights in its folder.

        Raises:
            HiCacheError: there is no folder with weights.
        """
        if self.folder is None:
            raise HiCacheError(f"model {self.name!r}: must be a folder with weights (save_pretrained)")
        with self._explained():
            model: nn.Module = self.cls.from_pretrained(self.folder, torch_dtype=dtype)  # type: ignore[attr-defined]  # of diffusers' ModelMixin
        return model.eval().requires_grad_(False)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """What diffusers raises of a configuration or weights that are none of the class, as one error."""
        try:
            yield
        except Exception as error:
            raise HiCacheError(
                f"model {self.name!r}: must have the configuration and weights of a {self.cls.__name__} "
                f"({type(error).__name__}: {error})"
            ) from error


def resolve(name: str) -> Architecture:
    """The architecture named by ``name``.

    Raises:
        HiCacheError: ``name`` is no known name, no diffusers folder and no ``config.json``; or its class is unknown.
    """
    if name.lower() in KNOWN:
        cls, config = KNOWN[name.lower()]
        return Architecture(name.lower(), _class_of(cls, name), config)
    path = Path(name)
    if isfile(path / "model_index.json"):
        path = next((path / part for part in _COMPONENTS if isfile(path / part / "config.json")), path)
    described = path / "config.json" if isdir(path) else path
    if not isfile(described):
        raise HiCacheError(
            f"model {name!r}: must be a folder of a diffusers model or pipeline, a config.json, or one of "
            f"{', '.join(KNOWN)}"
        )
    try:
        config = json.loads(read_text("model", described))
        cls = str(config["_class_name"])
    except HiCacheError:
        raise
    except (ValueError, KeyError, TypeError, RecursionError):
        raise HiCacheError(f"model {str(described)!r}: must be the configuration of a diffusers model") from None
    weights = path if isdir(path) and any(path.glob("*.safetensors*")) else None
    return Architecture(cls, _class_of(cls, name), config, weights)


def _class_of(cls: str, name: str) -> type[nn.Module]:
    import diffusers

    found = getattr(diffusers, cls, None)
    if not isinstance(found, type) or not issubclass(found, nn.Module):
        raise HiCacheError(f"model {name!r} is a {cls}: must be a model class of diffusers {diffusers.__version__}")
    return found
