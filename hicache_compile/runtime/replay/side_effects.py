"""What the frame that Dynamo is compiling does beside its graph. Asked by backends, which Dynamo calls meanwhile."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import fx

from hicache_compile import internals
from hicache_compile.internals import InstructionTranslator
from hicache_compile.runtime.replay import frames

_OF_A_MODULE = ("_buffers", "_parameters")


def changes_python_state() -> bool:
    """Whether the frame Dynamo is compiling now changes an object that existed before the call, or may. Drawing from
    ``random`` changes its state."""
    if not internals.REPLAY:
        return True
    output = InstructionTranslator.current_tx().output
    effects = output.side_effects
    new = (internals.AttributeMutationNew, internals.ValueMutationNew)
    return any(not isinstance(var.mutation_type, new) for var in effects._get_modified_vars()) or bool(
        effects.tensor_hooks or output.random_calls
    )


def is_whole_call() -> bool:
    """Whether what Dynamo compiles now is a call from its first to its last line: else some of it runs beside the
    graph. What begins a call is the code of ``frames``; what goes on after a break has another name."""
    output = InstructionTranslator.current_tx().output
    ended, code = output.compile_subgraph_reason, output.root_tx.f_code
    begins = code.co_filename == frames.__file__ and not code.co_name.startswith("torch_dynamo_resume")
    return begins and not (ended is not None and ended.graph_break)


def compiled_within(model: torch.nn.Module) -> str:
    """The path of the submodule of ``model`` whose frame Dynamo is compiling now; empty for ``model`` itself.

    What is compiled serves every submodule of its class: the path is that of the first.
    """
    owner = InstructionTranslator.current_tx().output.root_tx.f_locals.get("self")
    if not isinstance(owner, torch.nn.Module) or owner not in set(model.modules()):
        return ""
    return next(path for path, module in model.named_modules() if type(module) is type(owner))


def assigned_anew(inputs: Sequence[fx.Node]) -> set[fx.Node]:
    """Those of ``inputs`` that hold a buffer or parameter which the frame assigns, as with
    ``self.calls = self.calls + 1``: what a model counts in this way is no change of its weights.
    """
    if not internals.REPLAY:
        return set()
    sources = set()
    for variable in InstructionTranslator.current_tx().output.side_effects._get_modified_vars():
        source, items = variable.source, getattr(variable, "items", None)
        if source is not None and getattr(source, "member", None) in _OF_A_MODULE and isinstance(items, dict):
            names = {f"{source.name}[{key.vt.as_python_constant()!r}]": value for key, value in items.items()}
            sources |= {name for name, value in names.items() if getattr(value.source, "name", None) != name}
    return {node for node in inputs if getattr(getattr(node, "_dynamo_source", None), "name", None) in sources}
