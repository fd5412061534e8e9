"""What was used to make a file: releases and machine."""

from __future__ import annotations

import platform
from importlib.metadata import version

import torch


def versions() -> dict[str, str]:
    """Name -> release."""
    return {
        "hicache_compile": version("hicache_compile"),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
    }
