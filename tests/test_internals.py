"""A torch that changed an internal costs one feature, with a message that names it."""

from __future__ import annotations

import subprocess
import sys

import pytest

# One name of each feature that may be off.
OPTIONAL = {
    "replayed steps": "torch._C._dynamo.guards.GlobalStateGuard",
    "readings": "torch._dynamo.utils.get_real_value",
    "opaque modules": "torch._dynamo.utils.graph_break_reasons",
    "the backend of torch.compile": "torch._dynamo.eval_frame.innermost_backend",
    "dropping compiled code": "torch._dynamo.eval_frame.remove_from_cache",
    "Python floats under dynamic shapes": "torch.utils._sympy.symbol.symbol_is_type",
    "torch.func in denoisers": "torch._C._functorch.is_functorch_wrapped_tensor",
    "Triton kernels in denoisers": "torch._higher_order_ops.triton_kernel_wrap.get_mutated_tensors",
    "dumps of bytecode": "torch._dynamo.eval_frame._debug_get_cache_entry_list",
    "TORCH_TRACE": "torch._logging._internal.trace_structured",
    "Inductor": "torch._inductor.compile_fx.compile_fx",
    "ranks that sample one thing": "torch._C._distributed_c10d._resolve_process_group",
    "layerwise casting": "torch.nn.utils.stateless._reparametrize_module",
    "the layout of streams": "torch._inductor.inductor_prims.force_stride_order",
    "dumps of Inductor's code": "torch._inductor.graph.GraphLowering.save_output_code",
    "AOTInductor packages": "torch._inductor.aoti_compile_and_package",
}
WITHOUT = """
import pkgutil, sys
import torch, torch._dynamo.comptime, torch._inductor.compile_fx

class Lacking:
    def __init__(self, module, name): self.__dict__.update(vars(module)); del self.__dict__[name]

for path in {paths}:
    owner, _, name = path.rpartition(".")
    module = pkgutil.resolve_name(owner)
    if isinstance(module, type):
        delattr(module, name)
    else:
        sys.modules[owner] = Lacking(module, name)  # torch itself uses what is there
"""
SAMPLE = """
import logging; logging.basicConfig(format="%(message)s")
from pathlib import Path
from torch import nn
from hicache_compile import HiCache, HiCacheError, hicache_compile, inspect
from hicache_compile.internals import inductor
from hicache_compile.internals.feature import FEATURES

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)
    def forward(self, x):
        return x + self.down(nn.functional.gelu(self.up(x)))

class Denoiser(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(3))
    def forward(self, x, t):
        for block in self.blocks:
            x = block(x * t)
        return x

def message(call):
    try:
        call()
    except HiCacheError as error:
        return str(error)

model, x = Denoiser(), torch.ones(1, 4, 8)
with torch.no_grad():
    compiled = hicache_compile(model, HiCache(interval=2, warmup=1), backend="aot_eager")
    with compiled.trajectory(6):
        outputs = [compiled(x, torch.tensor([1 - step / 6])) for step in range(6)]
    assert compiled.report().decisions() == "F.F.F."
    assert all(torch.allclose(outputs[s], model(x, torch.tensor([1 - s / 6])), atol=1e-6) for s in (0, 2, 4))
    compiled.dump(sys.argv[1])
    assert "needed for dumps of bytecode" in next(Path(sys.argv[1]).glob("*bytecode*")).read_text()
    assert "needed for Inductor" in message(lambda: hicache_compile(model, HiCache(interval=2))(x, torch.ones(1)))
    inspected = message(lambda: inspect(torch.compile(model, backend="hicache")))
    assert "needed for the backend of torch.compile" in inspected
print(*sorted(feature.name for feature in FEATURES if not feature), sep="\\n")
"""


def _run(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_what_torch_lacks_costs_its_features_alone(tmp_path: object) -> None:
    done = _run(WITHOUT.format(paths=list(OPTIONAL.values())) + SAMPLE, str(tmp_path))
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split("\n")[:-1] == sorted(OPTIONAL)
    for name in OPTIONAL:
        assert f"lacks what is needed for {name}" in done.stderr


def test_nothing_compiles_without_what_compiling_needs() -> None:
    path = "torch._dynamo.convert_frame.compile_lock"
    done = _run(WITHOUT.format(paths=[path]) + "from hicache_compile import hicache_compile")
    assert done.returncode == 1
    assert "HiCacheError: torch 2." in done.stderr
    assert "lacks what is needed for compiling (cannot import name 'compile_lock'" in done.stderr
