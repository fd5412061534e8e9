"""Dynamic sizes as arithmetic over symbols for the sizes of the arguments: ``"s0"``, ``"(s1//2)*(s2//2)"``."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping

from hicache_compile.errors import HiCacheError

Size = int | str

_ARITHMETIC: dict[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}


def size_of(size: Size, known: Mapping[str, int]) -> int:
    """The value of ``size`` with the symbol values in ``known``.

    Raises:
        HiCacheError: ``size`` is not arithmetic over these symbols.
    """
    if isinstance(size, int):
        return size
    try:
        return _evaluate(ast.parse(size, mode="eval").body, known)
    except (SyntaxError, KeyError, TypeError):
        raise HiCacheError(f"size {size!r}: must be arithmetic over {', '.join(known) or 'known sizes'}") from None


def _evaluate(node: ast.expr, known: Mapping[str, int]) -> int:
    if isinstance(node, ast.Constant) and isinstance(node.value, int):
        return node.value
    if isinstance(node, ast.Name):
        return known[node.id]
    if isinstance(node, ast.BinOp):
        return _ARITHMETIC[type(node.op)](_evaluate(node.left, known), _evaluate(node.right, known))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_evaluate(node.operand, known)
    raise TypeError(type(node).__name__)
