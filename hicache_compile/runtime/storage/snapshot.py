"""A run in a file: the policy, the step counter and every anchor, so that it goes on elsewhere, bit for bit.

A safetensors file: tensors are named ``CONTEXT/PLACE/STATE``; everything else is JSON in its metadata.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hicache_compile.errors import HiCacheError
from hicache_compile.operators.collectives import is_dtensor, local_part
from hicache_compile.passes.graph.inputs import Role, StateInput
from hicache_compile.policy.files import file_path, write_whole
from hicache_compile.policy.json_codec import from_dict, to_dict
from hicache_compile.policy.policy import Policy
from hicache_compile.runtime.step import Context
from hicache_compile.runtime.storage.host_rings import HostRings
from hicache_compile.runtime.storage.rings import UNKNOWN, Rings, Shape

FORMAT = 5
SUM = "sha256"
KEY = "hicache_compile"
SAMPLED = 64


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A run that was suspended: its length, its policy, and its contexts with their anchors."""

    num_steps: int
    policy: Policy
    contexts: list[Context]
    weights: str


def fingerprint(model: nn.Module) -> str:
    """SHA-256 over names, shapes, dtypes and 64 evenly spaced elements of each weight, of what this rank has of it, and
    over the adapters in force with their scales."""
    digest = hashlib.sha256("".join(_adapters(model)).encode())
    for name, given in model.state_dict().items():
        weight = local_part(given) if is_dtensor(given) else given
        digest.update(f"{name} {tuple(given.shape)} {weight.dtype}".encode())
        if weight.device.type != "meta" and weight.numel():
            places = torch.linspace(0, weight.numel() - 1, min(SAMPLED, weight.numel()), dtype=torch.float64).long()
            sampled = weight.detach().reshape(-1)[places.to(weight.device)].cpu().contiguous()
            digest.update(sampled.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _adapters(model: nn.Module) -> Iterator[str]:
    """Which adapters are in force and how much: each layer with those of peft, each attention with an IP-Adapter."""
    for path, module in model.named_modules():
        if isinstance(scaling := getattr(module, "scaling", None), dict):
            off = getattr(module, "disable_adapters", False)
            yield f"{path} {sorted(scaling.items())} {getattr(module, 'active_adapters', None)} {off}\n"
        if isinstance(scale := getattr(getattr(module, "processor", None), "scale", None), list):
            yield f"{path} {scale}\n"


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
    text = json.dumps(described)
    metadata = {KEY: text, SUM: _checksum(text, tensors)}
    write_whole(path, lambda unfinished: save_file(tensors, unfinished, metadata=metadata))


def _checksum(described: str, tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over everything in the file."""
    digest = hashlib.sha256(described.encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]  # numpy has buffers
    return digest.hexdigest()


def _described(context: Context, index: int, tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    states = []
    for place, state in context.states.items():
        if state.decider is not None:
            state.decider.settle()  # what a graph decided is read back: letters and counters
        decided = state.state_dict()
        if state.trajectory != context.trajectory or decided is None:
            continue  # left from a run before
        for key, kept in state.named().items():
            tensors[f"{index}/{place}/{key}"] = kept.detach().cpu().contiguous()
        states.append(
            {
                "place": place,
                "kept": [[key.role, key.name, key.slot, _shape_to_list(shape)] for key, shape in state.kept.items()],
                "signature": list(state.signature),
                "next_step": state.next_step,
                "state": decided,
                "host": state.depth if isinstance(state, HostRings) else None,
                "quantised": _name_of(state.quantised) if isinstance(state, HostRings) else None,
            }
        )
    return {"name": context.name, "step": context.step, "letters": context.letters(), "states": states}


def _name_of(dtype: torch.dtype | None) -> str | None:
    return None if dtype is None else str(dtype).removeprefix("torch.")


def _shape_to_list(shape: Shape) -> list[Any]:
    sizes, dtype, device = shape
    return [list(sizes), _name_of(dtype), str(device)]


def _shape_from_list(described: Sequence[Any]) -> Shape:
    sizes, dtype, device = described
    return tuple(sizes), getattr(torch, dtype), torch.device(device)


def load(path: str | Path) -> Snapshot:
    """Read what ``save`` wrote.

    Raises:
        HiCacheError: there is no such file, or it is not one of these, or parts of it are missing.
    """
    from safetensors import SafetensorError, safe_open

    path = file_path("snapshot", path)
    if not os.path.isfile(path):
        raise HiCacheError(f"snapshot {str(path)!r}: must be a file written by suspend()")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no dict
        described = json.loads(metadata[KEY])
        if described["format"] not in (3, 4, FORMAT):
            raise HiCacheError(f"snapshot.format = {described['format']!r}: must be {FORMAT}")
        if described["format"] == FORMAT and metadata[SUM] != _checksum(metadata[KEY], tensors):
            raise HiCacheError(f"snapshot {str(path)!r}: is damaged (its checksum is another): must be as written")
        counted = described["format"] == 3
        if counted:
            described = _upgraded(described, tensors)
        policy = from_dict(described["policy"])
        num_steps = int(described["num_steps"])
        contexts = [_context(entry, index, tensors, policy) for index, entry in enumerate(described["contexts"])]
        for state in (state for context in contexts for state in context.states.values()):
            state.counted = counted
        return Snapshot(num_steps, policy, contexts, str(described["weights"]))
    except HiCacheError:
        raise
    except (SafetensorError, LookupError, TypeError, AttributeError, OSError, ValueError, RuntimeError) as error:
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


def _state(described: dict[str, Any], prefix: str, tensors: dict[str, torch.Tensor]) -> Rings:
    kept = {
        StateInput(Role(role), name, slot): _shape_from_list(shape) for role, name, slot, shape in described["kept"]
    }
    name = described.get("quantised")
    quantised = getattr(torch, name) if name else None
    state = Rings(kept) if described["host"] is None else HostRings(kept, int(described["host"]), quantised)
    for key, into in state.named().items():
        saved = tensors[f"{prefix}/{key}"]
        if (into.shape, into.dtype) != (saved.shape, saved.dtype):
            raise HiCacheError(f"snapshot: '{key}' has shape {list(saved.shape)}: must be {list(into.shape)}")
        into.copy_(saved)
    state.suspended = described["state"]
    signature = tuple(described["signature"])
    state.signature = UNKNOWN if isinstance(signature[0], int) and len(signature) > 1 else signature
    state.next_step = int(described["next_step"])
    state.token = None  # the parameters of this process, whatever their versions are
    return state


def _upgraded(described: dict[str, Any], tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Format 3 as format 4; ``tensors`` get their new names. Format 3 counts rings: their slots, the graph knows."""
    for index, context in enumerate(described["contexts"]):
        for old in context["states"]:
            prefix, standing = f"{index}/{old['place']}", old.pop("standing")
            shapes, memory = old.pop("shapes"), old.pop("memory")
            old["kept"] = [["memory", name.removeprefix("memory:"), -1, memory[name]] for name in sorted(memory)]
            old["kept"] += [["anchors", "", slot, shape] for slot, shape in enumerate(shapes)]
            for slot in range(len(shapes)):
                tensors[f"{prefix}/{StateInput(Role.ANCHORS, slot=slot)}"] = tensors.pop(f"{prefix}/{slot}")
            course = dict(standing.get("course", {}))
            if "computed" in course:  # guards
                track = {name: course.pop(name) for name in ("computed", "refreshed", "ageing") if name in course}
                course |= {"tracks": {"": track}, "rules": course.pop("watched"), "step": old["next_step"]}
            elif "course" in course:  # guards in the graph
                course["run"] = course.pop("course")
                course = {name.replace("watched_", "remembered:"): value for name, value in course.items()}
            old["state"] = {"start": standing["start"], "decider": course}
            old["host"] = standing["depth"] if old.pop("offloaded") else None
    return described
