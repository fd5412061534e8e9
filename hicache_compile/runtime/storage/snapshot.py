"""A run in a file: the policy, the step counter and every anchor, so that it goes on elsewhere, bit for bit.

A safetensors file: tensors are named ``CONTEXT/PLACE/SLOT``, or by the name of what a guard keeps in place of a slot;
everything else is JSON in its metadata.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hicache_compile.errors import HiCacheError
from hicache_compile.policy.json_codec import from_dict, to_dict
from hicache_compile.policy.policy import Policy
from hicache_compile.runtime.step import Context
from hicache_compile.runtime.storage.host_rings import OffloadedState
from hicache_compile.runtime.storage.rings import AnchorState, RingShape

FORMAT = 3
KEY = "hicache_compile"
SAMPLED = 64


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A run that was suspended: its length, its policy, and its contexts with their anchors."""

    num_steps: int
    policy: Policy
    contexts: list[Context]
    weights: str


def fingerprint(weights: Iterable[tuple[str, torch.Tensor]]) -> str:
    """SHA-256 over names, shapes, dtypes and 64 evenly spaced elements of each weight."""
    digest = hashlib.sha256()
    for name, weight in weights:
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
        if weight.device.type != "meta" and weight.numel():
            places = torch.linspace(0, weight.numel() - 1, min(SAMPLED, weight.numel()), dtype=torch.float64).long()
            sampled = weight.detach().reshape(-1)[places.to(weight.device)].cpu().contiguous()
            digest.update(sampled.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def save(path: str | Path, snapshot: Snapshot) -> None:
    """Write ``snapshot`` to ``path``, whole or not at all."""
    from safetensors.torch import save_file

    tensors: dict[str, torch.Tensor] = {}
    contexts = [_described(context, index, tensors) for index, context in enumerate(snapshot.contexts)]
    described = {
        "format": FORMAT,
        "num_steps": snapshot.num_steps,
        "policy": to_dict(snapshot.policy),
        "weights": snapshot.weights,
        "contexts": contexts,
    }
    partial = Path(f"{path}.{os.getpid()}.part")
    try:
        save_file(tensors, partial, metadata={KEY: json.dumps(described)})
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _described(context: Context, index: int, tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    states = []
    for place, state in context.states.items():
        standing = state.standing()
        if state.trajectory != context.trajectory or standing is None:
            continue  # left from a run before
        for name, kept in _tensors(state).items():
            tensors[f"{index}/{place}/{name}"] = kept.detach().cpu().contiguous()
        states.append(
            {
                "place": place,
                "shapes": [_shape_to_list(shape) for shape in state.shapes],
                "memory": {name: _shape_to_list(shape) for name, shape in state.memory_shapes.items()},
                "signature": list(state.signature),
                "next_step": state.next_step,
                "standing": standing,
                "offloaded": isinstance(state, OffloadedState),
            }
        )
    return {"name": context.name, "step": context.step, "letters": context.letters(), "states": states}


def _tensors(state: AnchorState) -> dict[str, torch.Tensor]:
    """All that a run keeps, by name."""
    rings = state.host if isinstance(state, OffloadedState) else state.rings
    return {**{str(slot): ring for slot, ring in enumerate(rings)}, **state.memory}


def _shape_to_list(shape: RingShape) -> list[Any]:
    sizes, dtype, device = shape
    return [list(sizes), str(dtype).removeprefix("torch."), str(device)]


def _shape_from_list(described: Sequence[Any]) -> RingShape:
    sizes, dtype, device = described
    return tuple(sizes), getattr(torch, dtype), torch.device(device)


def load(path: str | Path) -> Snapshot:
    """Read what ``save`` wrote.

    Raises:
        HiCacheError: there is no such file, or it is not one of these, or parts of it are missing.
    """
    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        raise HiCacheError(f"snapshot {str(path)!r}: must be a file written by suspend()")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no dict
        described = json.loads(metadata[KEY])
        if described["format"] != FORMAT:
            raise HiCacheError(f"snapshot.format = {described['format']!r}: must be {FORMAT}")
        policy = from_dict(described["policy"])
        num_steps = int(described["num_steps"])
        contexts = [_context(entry, index, tensors, policy) for index, entry in enumerate(described["contexts"])]
        return Snapshot(num_steps, policy, contexts, str(described["weights"]))
    except (SafetensorError, KeyError, TypeError, AttributeError, OSError, json.JSONDecodeError) as error:
        raise HiCacheError(
            f"snapshot {str(path)!r}: must be a file written by suspend(), whole; {type(error).__name__}: {error}"
        ) from None


def _context(entry: dict[str, Any], index: int, tensors: dict[str, torch.Tensor], policy: Policy) -> Context:
    context = Context(entry["name"], policy)
    context.begin(-1, policy)
    context.step = int(entry["step"])
    context.history[-1].extend(entry["letters"])
    for described in entry["states"]:
        place = int(described["place"])
        context.states[place] = _state(described, f"{index}/{place}", tensors)
    return context


def _state(described: dict[str, Any], prefix: str, tensors: dict[str, torch.Tensor]) -> AnchorState:
    shapes = [_shape_from_list(shape) for shape in described["shapes"]]
    memory = {name: _shape_from_list(shape) for name, shape in described["memory"].items()}
    standing = described["standing"]
    if described["offloaded"]:
        state: AnchorState = OffloadedState(shapes, int(standing["depth"]), memory)
    else:
        state = AnchorState(shapes, memory)
    for name, kept in _tensors(state).items():
        saved = tensors[f"{prefix}/{name}"]
        if (kept.shape, kept.dtype) != (saved.shape, saved.dtype):
            raise HiCacheError(f"snapshot: {name!r} has shape {list(saved.shape)}: must be {list(kept.shape)}")
        kept.copy_(saved)
    state.suspended = standing
    state.signature = tuple(described["signature"])
    state.next_step = int(described["next_step"])
    state.weights_token = None  # those of this process, whatever their versions are
    return state
