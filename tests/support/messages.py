"""Every text that the library logs, warns, refuses or fails with, read off its source."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCES = ("hicache_compile", "passes", "backends", "benchmarks")
GAP = "\0"  # what is filled in when the message is made
ERRORS = ("HiCacheError", "UnfitError", "NotByRowError")
KINDS = {"info": "info", "warning": "warning", "warn": "warning", "warn_once": "warning"}
# Functions whose texts end up in a warning or a refusal, besides those of passes that return `str | None`.
TEXTS = {
    "hicache_compile/internals/feature.py": ("message",),
    "hicache_compile/policy/published.py": ("name_in",),
    "hicache_compile/runtime/nothing_cached.py": ("why_nothing",),
    "hicache_compile/frontend/sharded_weights.py": ("_gather",),
    "passes/work.py": ("why_nothing",),
    "passes/transforms/mark_sparse.py": ("mark_sparse",),
}
SHORTEST = 12  # a text with fewer letters in one piece says nothing by itself
_VALUE = re.compile(rf"^[\w.{GAP}\[\], +-]+ = .*: (?:must|no) |^[\w{GAP}]+\.[\w.,{GAP}\[\] ]+: must ", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Message:
    """A text of the source. ``kind``: ``"info"``, ``"warning"``, ``"refusal"`` or ``"error"``."""

    kind: str
    place: str
    text: str

    @property
    def fragment(self) -> str:
        """Its longest piece that is always the same."""
        pieces = re.split(rf"{GAP}|%[-\d.]*[a-z]", self.text)
        return max((plain(piece).strip(" .,:;()[]'") for piece in pieces), key=len)

    @property
    def names_a_value(self) -> bool:
        """Whether it has the form ``Name.field = value: must be ...``, which is explained once for all."""
        return self.kind == "error" and bool(_VALUE.match(self.text))


def plain(text: str) -> str:
    """``text`` in one line without marks of code."""
    return " ".join(text.replace("`", "").replace("\\", "").split())


def messages() -> list[Message]:
    """All of them, in the order of the files."""
    found = []
    for folder in SOURCES:
        for path in sorted((ROOT / folder).rglob("*.py")):
            name = path.relative_to(ROOT).as_posix()
            tree = ast.parse(path.read_text(encoding="utf-8"))
            constants = dict(_constants(tree))
            found += [*_calls(name, tree, constants), *_returned(name, tree, constants)]
    return [message for message in found if len(message.fragment) >= SHORTEST]


def _constants(tree: ast.Module) -> Iterator[tuple[str, str]]:
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield from ((target.id, node.value.value) for target in node.targets if isinstance(target, ast.Name))


def _calls(name: str, tree: ast.Module, constants: dict[str, str]) -> Iterator[Message]:
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not node.args:
            continue
        called = getattr(node.func, "id", getattr(node.func, "attr", ""))
        of = {
            "CannotRewrite": ("refusal", -1),
            "Feature": ("warning", -1),
            **{name: (kind, 0) for name, kind in KINDS.items()},
        }
        kind, which = of.get(called, ("", 0))
        kind = "error" if called in ERRORS else kind
        if kind and (text := _text(node.args[which], constants)):
            yield Message("refusal" if called == "NotByRowError" else kind, f"{name}:{node.lineno}", text)


def _returned(name: str, tree: ast.Module, constants: dict[str, str]) -> Iterator[Message]:
    for function in ast.walk(tree):
        if not isinstance(function, ast.FunctionDef):
            continue
        returns = ast.unparse(function.returns) if function.returns else ""
        if function.name in TEXTS.get(name, ()):
            values = [node for node in ast.walk(function) if isinstance(node, ast.JoinedStr | ast.Constant)]
        elif name.startswith("passes/") and "|" in returns and "str" in returns.split(" | "):
            values = [node.value for node in ast.walk(function) if isinstance(node, ast.Return) and node.value]
        else:
            continue
        documented = ast.get_docstring(function, clean=False)
        for value in values:
            if (text := _text(value, constants)) and text != documented:
                yield Message("refusal", f"{name}:{value.lineno}", text)


def _text(node: ast.expr, constants: dict[str, str]) -> str:
    """The text of an expression, a gap where something is filled in; empty where it has none."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    if isinstance(node, ast.Name | ast.FormattedValue):
        return constants.get(getattr(getattr(node, "value", node), "id", ""), "")
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(part, constants) or GAP for part in node.values)
    if isinstance(node, ast.BinOp):
        return "".join(_text(part, constants) or GAP for part in (node.left, node.right))
    inner = {ast.IfExp: ("body", "orelse"), ast.BoolOp: ("values",)}.get(type(node), ())
    parts = [part for name in inner for part in _as_list(getattr(node, name))]
    return next((text for part in parts if (text := _text(part, constants))), "")


def _as_list(value: ast.expr | list[ast.expr]) -> list[ast.expr]:
    return value if isinstance(value, list) else [value]
