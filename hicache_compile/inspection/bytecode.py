"""Dynamo's bytecode as Python."""

from __future__ import annotations

import dis
import types
from collections.abc import Iterable

from hicache_compile import internals
from hicache_compile.internals import BYTECODE


def decompiled(codes: Iterable[types.CodeType]) -> str:
    """The bytecode Dynamo generated for ``codes``: decompiled if depyf is installed, else disassembled."""
    if not BYTECODE:
        return f"# {BYTECODE.message}"
    entries = [entry.code for code in codes for entry in internals.cache_entries(code)]
    try:
        from depyf import decompile
    except ImportError:
        listing = [dis.Bytecode(code).dis() for code in entries]
        return "\n\n".join(["# disassembled; with depyf installed this is Python", *listing])
    return "\n\n".join(["# Dynamo's bytecode, decompiled by depyf", *(_readable(decompile, code) for code in entries)])


def _readable(decompile: object, code: types.CodeType) -> str:
    try:
        return str(decompile(code))  # type: ignore[operator]  # untyped
    except Exception as error:  # depyf passes on any error of its parser
        return f"# depyf could not decompile it: {error!r}\n{dis.Bytecode(code).dis()}"
