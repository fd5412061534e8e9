"""How the source is laid out: what imports what, what stays free of torch, how long a file gets."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from importlib.util import resolve_name
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ORDER = """errors, config, key_partitions, internals < policy < operators < passes < backends < runtime < inspection
    < frontend < export, generate, serving, demo, architectures < evaluation, collect_env < tune < benchmarks < cli"""
LAYERS = {name.strip(): place for place, names in enumerate(ORDER.split("<")) for name in names.split(",")}
# Re-exports, which stand where the last of what they hand out does.
LAYERS |= {"serialize": LAYERS["policy"], "__main__": LAYERS["cli"], "": LAYERS["export"]}
LONGEST = 250  # lines
TABLES: frozenset[str] = frozenset()  # files of data and of Triton kernels that are longer
CONCRETE = {"ScheduledDecider", "GuardedDecider", "InGraphDecider", "PartitionDecider", "Rings", "HostRings"}
MAY_TELL_THEM_APART = ("hicache_compile.runtime.deciders", "hicache_compile.runtime.storage")


def _modules() -> dict[str, Path]:
    """The file of every module; ``passes``, ``backends`` and ``benchmarks`` are packages of ``hicache_compile``."""
    found = {}
    for top in ("hicache_compile", "passes", "backends", "benchmarks"):
        for path in (ROOT / top).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            parts = parts if top == "hicache_compile" else ("hicache_compile", *parts)
            found[".".join(parts).removesuffix(".__init__")] = path
    return found


MODULES = _modules()
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}


def _imports(module: str) -> Iterator[str]:
    """Every name that ``module`` imports, as a dotted path; inside functions too."""
    package = module if MODULES[module].name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = resolve_name("." * node.level + (node.module or ""), package)
            yield from (f"{base}.{alias.name}" for alias in node.names)


def _edges(module: str) -> set[str]:
    """The modules that ``module`` imports; of a package's ``__init__``, which re-exports, not its own members."""
    found = {name if name in MODULES else name.rpartition(".")[0] for name in _imports(module)} & set(MODULES)
    own = f"{module}." if MODULES[module].name == "__init__.py" else None
    return {name for name in found if name != module and (own is None or not name.startswith(own))}


EDGES = {module: _edges(module) for module in MODULES}


def _layer(module: str) -> int:
    return LAYERS[f"{module}.".split(".")[1]]


def test_a_module_imports_its_own_layer_or_one_before_it() -> None:
    pairs = [(module, other) for module, others in EDGES.items() for other in sorted(others)]
    assert len(pairs) > 500  # the files were found and read
    assert [f"{module} -> {other}" for module, other in pairs if _layer(other) > _layer(module)] == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    in_order = list(TopologicalSorter(EDGES).static_order())  # raises with the circle
    assert set(in_order) >= set(MODULES)


@pytest.mark.parametrize(
    "line", ["import hicache_compile.policy", "from hicache_compile import HiCache, Policy, Chipmunk, PAB"]
)
def test_policies_import_where_torch_cannot_be(line: str) -> None:
    code = f"import sys; sys.modules['torch'] = None\n{line}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_operators_know_nothing_of_graphs() -> None:
    operators = [module for module in MODULES if module.startswith("hicache_compile.operators")]
    found = {module: [name for name in _imports(module) if f"{name}.".startswith("torch.fx.")] for module in operators}
    assert {module: names for module, names in found.items() if names} == {}


PRIVATE = re.compile(r"torch(\.\w+)*\._\w*[a-z]|torch\.fx\.experimental")
# functions and objects of torch's that its own documentation names
DOCUMENTED = ("torch.ops.", "torch._check", "torch._assert_async", "torch._foreach_", "torch.__version__")


def test_internals_of_torch_are_taken_from_one_package() -> None:
    outside = [module for module in MODULES if not module.startswith("hicache_compile.internals")]
    taken = {module: [name for name in _torch_names(module) if PRIVATE.match(name)] for module in outside}
    taken = {module: [name for name in names if not name.startswith(DOCUMENTED)] for module, names in taken.items()}
    assert {module: names for module, names in taken.items() if names} == {}
    assert "torch._dynamo.optimize" in set(_imports("hicache_compile.internals"))  # names were found


def _torch_names(module: str) -> Iterator[str]:
    """What ``module`` imports, and every attribute that it reads of a name."""
    yield from _imports(module)
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.Attribute):
            yield ast.unparse(node)


def test_deciders_and_storages_are_not_told_apart_outside() -> None:
    outside = [module for module in MODULES if not module.startswith(MAY_TELL_THEM_APART)]
    asked = [f"{module}: {ast.unparse(node)}" for module in outside for node in ast.walk(TREES[module]) if _asks(node)]
    assert asked == []


def _asks(node: ast.AST) -> bool:
    """Whether ``node`` asks if something is of a concrete class."""
    if isinstance(node, ast.MatchClass):
        return CONCRETE & _names(node.cls) != set()
    called = node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else ""
    return called in ("isinstance", "issubclass") and bool(CONCRETE & _names(node.args[1]))  # type: ignore[attr-defined]


def _names(node: ast.AST) -> set[str]:
    every = list(ast.walk(node))
    names = {each.id for each in every if isinstance(each, ast.Name)}
    return names | {each.attr for each in every if isinstance(each, ast.Attribute)}


def test_files_are_short() -> None:
    ours = {name: path for name, path in MODULES.items() if not name.startswith("hicache_compile.benchmarks")}
    lines = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in ours.items()}
    assert {name: count for name, count in lines.items() if count > LONGEST and name not in TABLES} == {}


def test_few_modules_are_loose() -> None:
    loose = {path.name for path in (ROOT / "hicache_compile").glob("*.py")} - {"__init__.py"}
    assert len(loose) <= 6, loose
