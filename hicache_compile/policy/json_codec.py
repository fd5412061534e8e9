"""Conversion of policies to and from plain JSON, and of all values accepted as ``policy=``."""

from __future__ import annotations

import dataclasses
import inspect
import json
from pathlib import Path
from typing import Any

from hicache_compile.errors import HiCacheError, find_name, named, nearest
from hicache_compile.policy.files import read_text, write_whole
from hicache_compile.policy.forecasters import FORECASTERS, Smoothing, Table
from hicache_compile.policy.guards import GUARDS
from hicache_compile.policy.policy import Policy
from hicache_compile.policy.presets import PRESETS
from hicache_compile.policy.schedules.base import Always, Free, Growing, Interval, StepMask
from hicache_compile.policy.schedules.ditango import DiTangoSchedule
from hicache_compile.policy.schedules.lemica import LeMiCaSchedule
from hicache_compile.policy.schedules.magcache import MagCacheSchedule
from hicache_compile.policy.schedules.per_branch import PerBranch
from hicache_compile.policy.schedules.per_kind import Broadcast, KeySteps, PerKind
from hicache_compile.policy.schedules.per_range import PerRange
from hicache_compile.policy.schedules.planned import PlannedSteps
from hicache_compile.policy.sealed import sealed, unsealed
from hicache_compile.policy.tokens import Tokens

SCHEDULES = (
    Interval,
    StepMask,
    PlannedSteps,
    Always,
    Free,
    Growing,
    MagCacheSchedule,
    LeMiCaSchedule,
    PerKind,
    PerRange,
    PerBranch,
    Broadcast,
    KeySteps,
    DiTangoSchedule,
)
_KINDS: dict[str, dict[str, type]] = {  # of the parts of a policy: their types by name
    kind: {cls.__name__: cls for cls in types}
    for kind, types in {
        "schedule": SCHEDULES,
        "forecaster": FORECASTERS,
        "guard": GUARDS,
        "smoothing": (Smoothing,),
        "table": (Table,),
        "tokens": (Tokens,),
    }.items()
}
TYPES: dict[str, type] = {name: cls for types in _KINDS.values() for name, cls in types.items()}
VERSION = 1  # of the format; raised when a field changes its meaning, so that an older release refuses the file
_MOST_BITS = 1000  # of a number: more than a float has, and as many digits as can be shown
_DEEPEST = 20
_LATER = ("tokens",)  # fields of a Policy that came after the first release of the format
# Fields of parts that hold a part, or a list of them.
_NESTED = dict.fromkeys(("forecaster", "second", "low", "high"), "forecaster") | {"other": "schedule"}
_LISTS = {"parts": "schedule", "forecasters": "forecaster"}


def to_dict(policy: Policy, *, own_parts: bool = False) -> dict[str, Any]:
    """``policy`` as plain data, with the ``version`` of the format; ``from_dict`` restores an equal policy.

    ``own_parts``: a user-defined part is there by its ``repr``, to be read by people.

    Raises:
        HiCacheError: it contains a user-defined schedule or forecaster, which JSON cannot name.
    """
    fields = {
        field.name: _plain(getattr(policy, field.name), own_parts) for field in dataclasses.fields(policy) if field.init
    }
    later = {name for name in _LATER if fields[name] is None}  # so that releases without them read the rest
    return {"version": VERSION, **{name: value for name, value in fields.items() if name not in later}}


def from_dict(data: dict[str, Any]) -> Policy:
    """The policy written by ``to_dict``, or a preset as ``{"preset": "HiCache", "interval": 6, ...}``.

    ``version`` may be left out: what is written by hand is in the newest format.

    Raises:
        HiCacheError: an unknown name, a missing field, an invalid value, or the version of another release.
    """
    _check_sizes(data)
    if not isinstance(data, dict):
        raise HiCacheError(f"policy = {data!r}: must be an object with the fields of a Policy or a preset")
    if "entries" in data:
        raise HiCacheError("policy: is a pack of policies: must be one, or be picked from by max_error or max_seconds")
    version = data.get("version", VERSION)
    if type(version) is not int or version != VERSION:
        raise HiCacheError(
            f"policy.version = {version!r}: must be {VERSION}, the format this release reads; "
            "write the policy again with to_json of this release"
        )
    fields = unsealed("policy", data)
    values = {key: _rich(key, value) for key, value in fields.items() if key != "version"}
    if "preset" not in data:
        return _make("Policy", Policy, values)
    name = named("policy", "preset", values.pop("preset"), PRESETS)
    return _make(name, PRESETS[name], values)


def _check_sizes(value: Any, place: str = "policy", depth: int = 0) -> None:
    """Raise where a number has more digits, or a list is nested deeper, than any field takes."""
    if isinstance(value, int) and value.bit_length() > _MOST_BITS:
        raise HiCacheError(f"{place}: a number of {value.bit_length()} bits; must have at most {_MOST_BITS}")
    if depth > _DEEPEST:
        raise HiCacheError(f"{place}: must not be nested more than {_DEEPEST} deep")
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise HiCacheError(f"{place}: a field is named by a {type(key).__name__}: must be text")
            _check_sizes(item, f"{place}.{key}"[:80], depth + 1)
    elif isinstance(value, list | tuple):
        for item in value:
            _check_sizes(item, place, depth + 1)


def to_json(policy: Policy) -> str:
    """``policy`` as JSON text."""
    return json.dumps(to_dict(policy), indent=2)


def write_policy(path: str | Path, policy: Policy) -> None:
    """Write ``policy`` to the file ``path``, with a checksum: once damaged, it is refused."""
    write_whole(path, json.dumps(sealed(to_dict(policy)), indent=2) + "\n")


def from_json(text: str) -> Policy:
    """The policy in JSON ``text``; raises ``HiCacheError`` if the text is not one."""
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:  # not JSON, a number of too many digits, too many brackets
        raise HiCacheError(f"policy = {text[:60]!r}: must be JSON ({error})") from None
    return from_dict(data)


def as_policy(value: Any) -> Policy:
    """A Policy from a Policy, a preset name, a dict, JSON text, a path to a JSON file, or ``"env"`` (environment
    variables).

    Raises:
        HiCacheError: ``value`` is none of these; the message lists them.
    """
    if isinstance(value, Policy):
        return value
    _check_sizes(value)
    if isinstance(value, dict):
        return from_dict(value)
    if find_name(value, PRESETS):
        return from_dict({"preset": value})
    if isinstance(value, str) and value.lstrip().startswith("{"):
        return from_json(value)
    if value == "env":
        return Policy.from_env()
    if isinstance(value, Path) or (isinstance(value, str) and value.endswith(".json")):
        return _from_file(Path(value))
    raise HiCacheError(
        f"policy = {value!r}: must be a Policy, a dict, a path to a .json file, or one of {', '.join(PRESETS)}, env"
        + nearest(value, PRESETS)
    )


def _from_file(path: Path) -> Policy:
    text = read_text("policy", path)
    try:
        return from_json(text)
    except HiCacheError as error:
        raise HiCacheError(f"policy file {str(path)!r}: {error}") from None


def _plain(value: Any, own_parts: bool = False) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, tuple | list):
        return [_plain(item, own_parts) for item in value]
    if isinstance(value, dict):
        return {str(key): _plain(item, own_parts) for key, item in value.items()}
    name = type(value).__name__
    if TYPES.get(name) is not type(value):
        if own_parts:
            return {"type": name, "repr": repr(value)}
        raise HiCacheError(f"{name} is none of the library's own classes: a policy with it cannot be written as JSON")
    fields = {
        field.name: _plain(getattr(value, field.name), own_parts)
        for field in dataclasses.fields(TYPES[name])
        if field.init
    }
    return {"type": name, **fields}


def _rich(key: str, value: Any) -> Any:
    if isinstance(value, list):
        guards = key == "guards"
        return tuple(_rich("guard" if guards else key, item) for item in value)
    if not isinstance(value, dict) or key not in _KINDS or key == "table":  # a preset's table is no part
        return value
    return _rich_object(key, value)


def _as_tuples(value: Any) -> Any:
    return tuple(map(_as_tuples, value)) if isinstance(value, list) else value


def _rich_object(key: str, value: dict[str, Any]) -> Any:
    fields = dict(value)
    if "type" not in fields:
        raise HiCacheError(f"policy.{key}.type is missing: must be one of {', '.join(_KINDS[key])}")
    name = named(f"policy.{key}", "type", fields.pop("type"), _KINDS[key])
    for field, item in fields.items():
        if field == "schedules" and isinstance(item, dict):
            fields[field] = {kind: _rich("schedule", one) for kind, one in item.items()}
        elif field in _LISTS and isinstance(item, list):
            fields[field] = tuple(_rich(_LISTS[field], one) for one in item)
        elif field in _NESTED:
            fields[field] = _rich(_NESTED[field], item)
        elif field == "table" and isinstance(item, dict):
            fields[field] = _rich_object(field, item)
        elif isinstance(item, list):
            fields[field] = _as_tuples(item)
    return _make(name, TYPES[name], fields)


def _make(name: str, factory: Any, fields: dict[str, Any]) -> Any:
    parameters = _parameters(factory)
    for key in fields:
        if key not in parameters:
            raise HiCacheError(f"{name}.{key}: no such field; must be one of {', '.join(parameters) or 'none'}")
    missing = [key for key, required in parameters.items() if required and key not in fields]
    if missing:
        raise HiCacheError(f"{name}.{missing[0]} is missing: must be given")
    try:
        return factory(**fields)
    except HiCacheError:
        raise
    except (TypeError, ValueError, ArithmeticError, AttributeError, LookupError, RecursionError) as error:
        given = ", ".join(fields)
        raise HiCacheError(f"{name}: one of its fields ({given}) is not of the type it must have: {error}") from None


def _parameters(factory: Any) -> dict[str, bool]:
    """Parameter name -> whether it is required."""
    return {
        name: parameter.default is inspect.Parameter.empty
        for name, parameter in inspect.signature(factory).parameters.items()
    }
