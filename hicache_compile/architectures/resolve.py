"""Resolve a denoiser from a known name, a model folder, a pipeline folder, or a ``config.json``."""

from __future__ import annotations

import json
from dataclasses import dataclass
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
        with torch.device("meta"):
            model: nn.Module = self.cls.from_config(self.config)  # type: ignore[attr-defined]  # of diffusers' ConfigMixin
        return model.eval()

    def with_weights(self, dtype: torch.dtype | None = None) -> nn.Module:
        """The denoiser with the weights in its folder.

        Raises:
            HiCacheError: there is no folder with weights.
        """
        if self.folder is None:
            raise HiCacheError(f"model {self.name!r}: must be a folder with weights (save_pretrained)")
        model: nn.Module = self.cls.from_pretrained(self.folder, torch_dtype=dtype)  # type: ignore[attr-defined]  # of diffusers' ModelMixin
        return model.eval().requires_grad_(False)


def resolve(name: str) -> Architecture:
    """The architecture named by ``name``.

    Raises:
        HiCacheError: ``name`` is no known name, no diffusers folder and no ``config.json``; or its class is unknown.
    """
    if name.lower() in KNOWN:
        cls, config = KNOWN[name.lower()]
        return Architecture(name.lower(), _class_of(cls, name), config)
    path = Path(name)
    if path.is_dir() and (path / "model_index.json").is_file():
        path = next((path / part for part in _COMPONENTS if (path / part / "config.json").is_file()), path)
    described = path / "config.json" if path.is_dir() else path
    if not described.is_file():
        raise HiCacheError(
            f"model {name!r}: must be a folder of a diffusers model or pipeline, a config.json, or one of "
            f"{', '.join(KNOWN)}"
        )
    try:
        config = json.loads(read_text("model", described))
        cls = config["_class_name"]
    except HiCacheError:
        raise
    except (ValueError, KeyError, TypeError, RecursionError):
        raise HiCacheError(f"model {str(described)!r}: must be the configuration of a diffusers model") from None
    weights = path if path.is_dir() and any(path.glob("*.safetensors*")) else None
    return Architecture(cls, _class_of(cls, name), config, weights)


def _class_of(cls: str, name: str) -> type[nn.Module]:
    import diffusers

    found = getattr(diffusers, cls, None)
    if not isinstance(found, type) or not issubclass(found, nn.Module):
        raise HiCacheError(f"model {name!r} is a {cls}: must be a model class of diffusers {diffusers.__version__}")
    return found
