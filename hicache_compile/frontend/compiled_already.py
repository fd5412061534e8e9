"""A denoiser that is compiled already and is asked to be compiled once more."""

from __future__ import annotations

from dataclasses import fields

from hicache_compile.frontend.denoiser import CompiledDenoiser
from hicache_compile.policy.program_passes import name_of_pass
from hicache_compile.runtime.options import CompileOptions


def differences(denoiser: CompiledDenoiser, asked: CompileOptions) -> list[str]:
    """What ``denoiser`` has otherwise than ``asked``: its policy, its promise, and each option that is asked for, as
    text. An option that is left at its default is not asked for."""
    theirs = denoiser._session.options
    has, fitted = denoiser.policy, denoiser._session.shared.fitted(asked.policy, denoiser._orig_mod)
    found = [
        f"policy.{field.name} = {getattr(has, field.name)}, not {getattr(fitted, field.name)}"
        for field in fields(fitted)
        if getattr(has, field.name) != getattr(fitted, field.name)
    ]
    promised, wanted = (None if one is None else (one.pack, one.asked) for one in (denoiser.contract, asked.contract))
    if promised != wanted:
        found.append("the policy of another pack or promise" if promised else "a policy of no pack")
    for field in fields(CompileOptions):
        mine, other = getattr(asked, field.name), getattr(theirs, field.name)
        if field.name not in ("policy", "contract") and mine not in (other, field.default):
            found.append(f"{field.name} = {_shown(other)}, not {_shown(mine)}")
    return found


def _shown(value: object) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(name_of_pass, value))}]"
    return repr(value)
