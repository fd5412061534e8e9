"""A model as its class and configuration, without weights, and a model with random weights made from them."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from hicache_compile.collect_env.environment import memory
from hicache_compile.errors import HiCacheError

SEED = 0  # of the random weights
_LIBRARIES = ("diffusers", "transformers")
_OF_THIS_MACHINE = ("_name_or_path", "name_or_path", "_commit_hash")  # fields of a configuration


def describe(model: nn.Module, config: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The class of ``model``, its configuration, and what its parameters look like, as data for JSON.

    Args:
        config: the arguments its class is made with; by default its ``config``, as models of diffusers and transformers
            have one, else those of its attributes that are named like arguments of its class.
    """
    cls = type(model)
    parameters = dict(model.named_parameters())
    dtypes = Counter(str(one.dtype).removeprefix("torch.") for one in parameters.values())
    main = dtypes.most_common(1)[0][0] if dtypes else "float32"
    return {
        "class": f"{cls.__module__}:{cls.__qualname__}",
        "config": json.loads(json.dumps(_config(model) if config is None else dict(config), default=str)),
        "dtype": main,
        "other_dtypes": {name: str(p.dtype).removeprefix("torch.") for name, p in parameters.items()
                         if str(p.dtype) != f"torch.{main}"},
        "devices": sorted({str(one.device) for one in parameters.values()}),
        "training": model.training,
        "parameters": sum(one.numel() for one in parameters.values()),
        "bytes": sum(one.numel() * one.element_size() for one in parameters.values()),
        "shapes": _shapes(model),
    }  # fmt: skip


def rebuild(described: Mapping[str, Any], device: torch.device) -> nn.Module:
    """A model of the described class and configuration with random weights, the same in every process, on ``device``.

    Raises:
        HiCacheError: its class cannot be imported or made, or its weights do not fit into memory.
    """
    cls = _class_of(described["class"])
    check_memory(described["parameters"])
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEED)
            model = _made(cls, described["config"])
    except Exception as error:
        raise HiCacheError(
            f"model.config: must be what {cls.__qualname__} is made with ({type(error).__name__}: {error}); give it to "
            "collect(..., config={...})"
        ) from error
    if not isinstance(getattr(torch, described["dtype"], None), torch.dtype):
        raise HiCacheError(f"model.dtype = {described['dtype']!r:.60}: must be a dtype of torch, like 'bfloat16'")
    if described["dtype"] != "float32":  # diffusers warns of modules to keep, which follow
        model.to(getattr(torch, described["dtype"]))
    for name, parameter in model.named_parameters():
        if name in described["other_dtypes"]:
            parameter.data = parameter.data.to(getattr(torch, described["other_dtypes"][name]))
    return model.train(described["training"]).requires_grad_(False).to(device)


def differs(model: nn.Module, described: Mapping[str, Any]) -> str:
    """What is different about the parameters of ``model``; empty where they are named and shaped as described."""
    if _shapes(model) == described["shapes"]:
        return ""
    count = sum(one.numel() for one in model.parameters())
    return (
        f"the model made from the configuration has other parameters ({count} numbers) than the one that was collected "
        f"({described['parameters']}): an adapter, quantisation, or arguments that the configuration lacks"
    )


def _config(model: nn.Module) -> dict[str, Any]:
    """What the class of ``model`` is made with, as far as it can be read off it."""
    found: Any = getattr(model, "config", None)
    if hasattr(found, "to_dict"):  # transformers
        found = found.to_dict()
    if not isinstance(found, Mapping):
        found = _same_names(model)
    return {name: value for name, value in found.items() if name not in _OF_THIS_MACHINE}


def _same_names(model: nn.Module) -> dict[str, Any]:
    """Attributes that are plain data and named like an argument of the class: most are that argument."""
    names = [name for name in inspect.signature(type(model).__init__).parameters if name != "self"]
    plain = (bool, int, float, str, list, tuple, dict)
    return {name: vars(model)[name] for name in names if isinstance(vars(model).get(name), plain)}


def _class_of(name: str) -> type[nn.Module]:
    """The class named ``module:qualified.name``; of diffusers and transformers wherever this release has it.

    Raises:
        HiCacheError: it cannot be imported, or it is no module of torch's.
    """
    module, _, path = name.partition(":")
    library = module.partition(".")[0]
    if module == "__main__" or "<locals>" in path:
        raise HiCacheError(f"model.class = {name!r}: must be in a file that can be imported, at its top level")
    try:
        found: Any = importlib.import_module(library if library in _LIBRARIES else module)
        for part in path.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError, ValueError) as error:
        raise HiCacheError(
            f"model.class = {name!r}: cannot be imported here ({error}): must be installed, or on PYTHONPATH"
        ) from error
    if not isinstance(found, type) or not issubclass(found, nn.Module):
        raise HiCacheError(f"model.class = {name!r}: must be a torch.nn.Module")
    return found


def _made(cls: Any, config: dict[str, Any]) -> nn.Module:
    if hasattr(cls, "from_config"):  # diffusers
        made: nn.Module = cls.from_config(config)
    elif isinstance(getattr(cls, "config_class", None), type):  # transformers
        made = cls(cls.config_class.from_dict(config))
    else:
        made = cls(**config)
    return made


def check_memory(parameters: int) -> None:
    """Raise ``HiCacheError`` unless so many parameters fit into main memory in float32, in which models are made."""
    needed, there = 4 * parameters, memory()
    if there is not None and needed > there:
        raise HiCacheError(
            f"model: {parameters} parameters take {needed / 2**30:.0f} GiB in float32, this machine has "
            f"{there / 2**30:.0f} GiB: must be collected with fewer layers, or run on a larger machine"
        )


def _shapes(model: nn.Module) -> str:
    """A hash of the names and shapes of all parameters."""
    lines = sorted(f"{name} {tuple(one.shape)}" for name, one in model.named_parameters())
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
