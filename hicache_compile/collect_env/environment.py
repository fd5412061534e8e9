"""The machine and what is installed on it, as plain data without secrets."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import re
import shutil
from collections.abc import Mapping
from typing import Any

import torch

from hicache_compile.collect_env.scrubbing import is_secret, scrubbed

PACKAGES = (
    "hicache_compile",
    "torch",
    "diffusers",
    "transformers",
    "accelerate",
    "numpy",
    "safetensors",
    "triton",
    "peft",
    "torchao",
    "bitsandbytes",
    "cache-dit",
    "onnx",
    "onnxruntime",
    "ray",
)
# Variables that change what the library or torch does; all others stay where they are.
_RELEVANT = re.compile(
    r"(HICACHE|TS_CACHE|TORCH|PYTORCH|TORCHDYNAMO|TORCHINDUCTOR|AOT|TRITON|CUDA|NVIDIA|NCCL|GLOO|CUBLAS|CUDNN|OMP|MKL|"
    r"KMP|DIFFUSERS|ATTN|ROCR|HIP|HSA|MPS)_\w+|CC|CXX|CFLAGS|CXXFLAGS|WORLD_SIZE|RANK|LOCAL_RANK|HF_HUB_OFFLINE"
)


def environment() -> dict[str, Any]:
    """Versions, machine, GPUs, torch's settings and relevant environment variables."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": versions(),
        "cpu": _cpu(),
        "gpu": _gpus(),
        "torch": _torch_settings(),
        "compiler": scrubbed(shutil.which(os.environ.get("CXX") or "g++") or shutil.which("clang++") or "none"),
        "variables": variables(),
    }


def versions() -> dict[str, str]:
    """The versions of those of ``PACKAGES`` that are installed."""
    found = {}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return {**found, "torch": torch.__version__}


def variables(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Environment variables that change what the library or torch does; none that is named like a secret."""
    names = sorted(name for name in environ if _RELEVANT.fullmatch(name) and not is_secret(name))
    return {name: scrubbed(environ[name], environ) for name in names}


def memory() -> int | None:
    """Bytes of main memory; ``None`` where the system does not say."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None


def _cpu() -> dict[str, Any]:
    return {
        "machine": platform.machine(),
        "name": _cpu_name(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory": memory(),
    }


def _cpu_name() -> str:
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:
        found = next((line for line in file if line.startswith("model name")), "")
        return found.partition(":")[2].strip()
    return platform.processor()


def _gpus() -> list[dict[str, Any]]:
    properties = map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
    return [{"name": one.name, "memory": one.total_memory, "capability": [one.major, one.minor]} for one in properties]


def _torch_settings() -> dict[str, Any]:
    return {
        "cuda": torch.version.cuda,
        "hip": torch.version.hip,
        "default_dtype": str(torch.get_default_dtype()),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }
