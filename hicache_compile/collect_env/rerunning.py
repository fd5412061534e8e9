"""``rerun``: the case of an archive once more, on random weights and random inputs, and whether the same happens."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hicache_compile.collect_env.archive import Case, read
from hicache_compile.collect_env.arguments import remade
from hicache_compile.collect_env.collecting import failure
from hicache_compile.collect_env.environment import environment
from hicache_compile.collect_env.model import SEED, differs, rebuild
from hicache_compile.collect_env.sampling import Arguments, Attempt, attempt
from hicache_compile.collect_env.scrubbing import scrubbed
from hicache_compile.collect_env.seen_calls import of_error
from hicache_compile.errors import HiCacheError

_ADDRESS = re.compile(r"0x[0-9a-fA-F]+|(?<=id=)\d{6,}")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an archive says happened, and what happened here.

    Args:
        same: whether both failed with an exception of one type and message, or neither did and the decisions are equal.
        recorded, found: the failure, ``None`` where there was none.
        recorded_decisions, found_decisions: by context, one letter a step.
        notes: what is different here, and may explain another outcome.
        error: the exception here.
    """

    same: bool
    recorded: dict[str, Any] | None
    found: dict[str, Any] | None
    recorded_decisions: dict[str, str]
    found_decisions: dict[str, str]
    notes: list[str]
    error: Exception | None = None


def rerun(path: str | Path) -> Outcome:
    """Make the model of the archive ``path`` with random weights, and inputs like those of its calls, and run it again.

    The archive names a class, which is imported: run archives of people you trust.

    Raises:
        HiCacheError: it is no archive of a case, or lacks what is needed, or the model's class cannot be imported.
    """
    case = read(path)
    if case.policy is None or case.model is None:
        lacking = "policy" if case.policy is None else "model"
        raise HiCacheError(f"rerun.path = {str(path)!r}: holds no {lacking}: must, to be run again; see its notes")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = rebuild(case.model, device)
    notes = [*_differences(case, device), *filter(None, [differs(model, case.model)])]
    options = dict(case.options)
    if passes := options.pop("program_passes", None):
        notes.append(f"program_passes = {passes}: functions of a user's own, which were not run here")
    made = attempt(model, case.policy, options, _calls(case, device), case.num_steps)
    if made.error is None and not case.inputs:
        raise HiCacheError(f"rerun.path = {str(path)!r}: holds no inputs: must; collect(..., inputs=...) takes them")
    return _outcome(case, made, notes)


def _calls(case: Case, device: torch.device) -> dict[str, Arguments]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        return {context: _call(call, device) for context, call in case.inputs.items()}


def _call(call: dict[str, Any], device: torch.device) -> Arguments:
    args = tuple(remade(one, device, f"inputs[{place}]") for place, one in enumerate(call["args"]))
    return args, {name: remade(one, device, f"inputs.{name}") for name, one in call["kwargs"].items()}


def _outcome(case: Case, made: Attempt, notes: list[str]) -> Outcome:
    history = made.compiled.report().history if made.compiled is not None else {}
    decisions = {name: runs[-1] for name, runs in history.items() if runs}
    found = None if made.error is None else failure(made.error, of_error(made.error))
    if case.failure is None or found is None:
        same = case.failure == found and _newest(case.decisions) == _newest(decisions)
    else:
        same = _what(case.failure) == _what(found)
    guards = case.policy is not None and bool(case.policy.get("guards"))
    if guards and not same:
        notes.append("the policy has guards, which measure: with random weights and inputs they may decide otherwise")
    return Outcome(same, case.failure, found, case.decisions, decisions, notes, made.error)


def _newest(decisions: dict[str, str]) -> list[str]:
    """Contexts apart, whatever their names: a run without contexts is one."""
    return sorted(decisions.values())


def _what(failed: dict[str, Any]) -> tuple[str, str]:
    """Type and message, without addresses and folders of one machine."""
    return failed["type"], _ADDRESS.sub("0x", scrubbed(failed["message"]))


def _differences(case: Case, device: torch.device) -> list[str]:
    """What of this machine may matter and is different."""
    here, there = environment(), case.environment
    found = [
        f"{name} {here['packages'].get(name, 'is not installed')} here, {version} there"
        for name, version in there.get("packages", {}).items()
        if here["packages"].get(name) != version
    ]
    if here["python"] != there.get("python"):
        found.append(f"Python {here['python']} here, {there.get('python')} there")
    names = sorted({*here["variables"], *there.get("variables", {})})
    ours = [name for name in names if name.startswith(("HICACHE_", "TORCH"))]
    for name in ours:
        mine, theirs = here["variables"].get(name), there.get("variables", {}).get(name)
        if mine != theirs:
            found.append(f"{name} = {mine!r} here, {theirs!r} there")
    devices = case.model["devices"] if case.model is not None else []
    if devices and device.type not in {one.partition(":")[0] for one in devices}:
        found.append(f"on {device.type} here, on {', '.join(devices)} there")
    return found
