"""What a policy is called, and what it does, in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hicache_compile.inspection.findings import Findings
from hicache_compile.inspection.page.markup import counted

Letters = Mapping[str, tuple[str, str]]  # letter of a step -> its state, see ``cells``, and what it means

LETTERS: Letters = {
    "F": ("full", "full: every block is computed"),
    ".": ("forecast", "forecast: the sites are forecast from earlier steps"),
    "S": ("sparse", "sparse: computed, attention and MLPs sparsely"),
    "s": ("forecast", "inner forecast: begun, and ended in a forecast by an inner guard"),
    "p": ("tokens", "in part: some kinds of sites are forecast"),
    "t": ("tokens", "token-wise: some tokens are computed, the others forecast"),
}
FREE = ("free", "free: decided during the run")


def letters_of(found: Findings) -> Letters:
    """What each letter of the plan means."""
    return {**LETTERS, ".": FREE} if found.policy.get("guards") or found.partitioned else LETTERS


def policy_name(found: Findings) -> str:
    """Schedule, guards, forecaster and scope, each with its parameters."""
    policy = found.policy
    parts = [call(policy["schedule"]), *map(call, policy.get("guards", ())), call(policy["forecaster"])]
    return ", ".join([*parts, f"scope {found.scope}"])


def call(part: Mapping[str, Any]) -> str:
    """``Interval(interval=6, warmup=3)``; what is off and what is long is left out."""
    said = {key: value for key, value in part.items() if key != "type" and value is not None and value is not False}
    given = [f"{key}={value}" for key, value in said.items() if len(str(value)) <= 40]
    return f"{part.get('type', '')}({', '.join(given)})"


def sentence(found: Findings) -> str:
    """What the policy does to a run."""
    if not (found.sites or found.partitioned):
        sparse = found.decisions.count("S")
        some = f" {sparse} of them compute attention and MLPs sparsely." if sparse else ""
        return f"Nothing is cached: each of the {found.num_steps} steps computes the whole denoiser.{some}"
    guards = " and ".join(str(guard["type"]) for guard in found.policy.get("guards", ()))
    rest, always = found.num_steps - found.computed, "always " if guards else ""
    full = f"{found.computed} {'is' if found.computed == 1 else 'are'} {always}computed in full"
    decides = f"{guards} decides during the run whether " if guards else ""
    return f"Of {counted(found.num_steps, 'step')}, {full}. In the other {rest}, {decides}{_what(found)}."


def _what(found: Findings) -> str:
    if found.partitioned:
        return f"each group of keys of {counted(len(found.partitioned), 'attention')} is computed or reused by itself"
    one = len(found.sites) == 1
    what = f"the output{'s' * (not one)} of {counted(len(found.sites), 'site')} {'is' if one else 'are'}"
    depth = max((site.shapes[0][0] for site in found.sites if site.shapes), default=1)
    forecaster = str(found.policy["forecaster"]["type"])
    if forecaster == "Reuse":
        return f"{what} reused from the last computed step"
    return f"{what} forecast from {'its' if one else 'their'} last {counted(depth, 'computed value')} ({forecaster})"
