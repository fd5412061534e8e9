"""``hicache doctor``: what is installed here, and what of the library works with it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import sys
import time
from dataclasses import asdict, dataclass

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor, nn
from typer import Exit

from hicache_compile.backends import BACKENDS
from hicache_compile.cli import shared
from hicache_compile.errors import one_line
from hicache_compile.frontend.compile import hicache_compile
from hicache_compile.internals.feature import FEATURES
from hicache_compile.policy.presets import HiCache

PACKAGE = "hicache_compile"
STEPS = 4
_NAME, _EXTRA = re.compile(r"[\w.-]+"), re.compile(r"extra == ['\"]([\w-]+)['\"]")


@dataclass(frozen=True, slots=True)
class Finding:
    """One line: what was looked at, how it is, and whether it is as it should be (``None``: may be either)."""

    about: str
    found: str
    well: bool | None = None


def doctor(json: shared.AsJson = False) -> None:
    """Tell versions, compiler and GPU, try every backend on a small model, and list what extras lack."""
    findings = [*_machine(), *map(_tried, BACKENDS), *_lacking(), *_extras()]
    if json:
        shared.print_json([asdict(each) for each in findings])
    else:
        Console(markup=False).print(table(findings))
    if any(each.well is False for each in findings):
        raise Exit(1)


def table(findings: list[Finding]) -> Table:
    """A row for each finding."""
    made = Table(box=box.SIMPLE, show_header=False, padding=(0, 1), pad_edge=False)
    marks = {True: Text("works", style="green"), False: Text("fails", style="red"), None: Text()}
    for each in findings:
        made.add_row(each.about, marks[each.well], each.found)
    return made


def _machine() -> list[Finding]:
    compilers = filter(None, map(shutil.which, (os.environ.get("CXX", ""), "g++", "clang++")))
    compiler = next(compilers, "none: Inductor cannot compile for the CPU; backend='aot_eager' can")
    gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return [
        Finding(PACKAGE, importlib.metadata.version(PACKAGE)),
        Finding("Python", f"{platform.python_version()}, {platform.system()} on {platform.machine()}"),
        Finding("torch", f"{torch.__version__}, {torch.get_num_threads()} threads"),
        Finding("C++ compiler", compiler),
        Finding("GPU", ", ".join(gpus) or "none that torch can use"),
    ]


class Small(nn.Module):
    """Two residual blocks between an embedding and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(4, 8), nn.Linear(8, 4)
        self.blocks = nn.ModuleList(nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8), nn.GELU()) for _ in range(2))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        x = self.embed(x) + t
        for block in self.blocks:
            x = x + block(x)
        out: Tensor = self.head(x)
        return out


def _tried(backend: str) -> Finding:
    """Whether a small model, cached through ``backend``, is right: computed steps equal it, the others are forecast."""
    print(f"trying {backend} ...", file=sys.stderr)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, x = Small().to(device), torch.ones(2, 3, 4, device=device)
    began = time.perf_counter()
    try:
        compiled = hicache_compile(model, HiCache(interval=2, order=0, warmup=1, scope="stack"), backend=backend)
        with torch.no_grad(), compiled.trajectory(STEPS):
            for step in range(STEPS):
                time_left = torch.full((1,), 1.0 - step / STEPS, device=device)
                found, wanted = compiled(x, time_left), model(x, time_left)
                if step % 2 == 0 and not torch.allclose(found, wanted, rtol=1e-3, atol=1e-4):
                    raise ValueError(f"step {step} differs from the model by {(found - wanted).abs().max():.2g}")
        decisions = compiled.report().decisions()
        if decisions != "F.F.":
            raise ValueError(f"the steps were {decisions}, and not F.F.")
    except Exception as error:
        return Finding(f"backend {backend}", one_line(f"{type(error).__name__}: {error}"), well=False)
    seconds = time.perf_counter() - began
    return Finding(f"backend {backend}", f"on {device}, {seconds:.0f} s with compilation", well=True)


def _lacking() -> list[Finding]:
    """The features that are off with this torch."""

    features = [feature for feature in FEATURES if not feature]
    return [Finding(feature.name, feature.message, well=False) for feature in features]


def _extras() -> list[Finding]:
    """For each extra of the package: the versions of what it needs, or what is missing and how to get it."""
    needed: dict[str, list[str]] = {}
    for line in importlib.metadata.requires(PACKAGE) or ():
        name, extra = _NAME.match(line), _EXTRA.search(line)
        if name is not None and extra is not None and name[0] != PACKAGE:
            needed.setdefault(extra[1], []).append(name[0])
    return [_extra(extra, names) for extra, names in needed.items() if extra != "dev"]


def _extra(extra: str, names: list[str]) -> Finding:
    found = {name: _version(name) for name in names}
    missing = [name for name, version in found.items() if version is None]
    if missing:
        return Finding(f"extra {extra}", f"without {', '.join(missing)}: pip install '{PACKAGE}[{extra}]'")
    return Finding(f"extra {extra}", ", ".join(f"{name} {version}" for name, version in found.items()))


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
