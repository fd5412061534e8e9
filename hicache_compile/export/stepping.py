"""The stepping graph: a guarded denoiser as one module without Python state.

``graph(*arguments, computing, position, weights, *anchors) -> (*outputs, *next_anchors)``; the denoiser's parameters
keep their names, other tensors it holds are constants.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from hicache_compile.errors import HiCacheError
from hicache_compile.export.manifest import Manifest, Port, plan_of
from hicache_compile.export.sizes import Size
from hicache_compile.frontend.options import check_decides_before
from hicache_compile.passes.graph import ops
from hicache_compile.passes.graph.graphs import output_node, placeholders
from hicache_compile.passes.lowering.either import either
from hicache_compile.policy.json_codec import to_dict
from hicache_compile.policy.policy import Policy
from hicache_compile.runtime.program_set import rewrite
from hicache_compile.runtime.replay.capture import CapturedCall
from hicache_compile.runtime.storage.budget import layout_of

Attributes = dict[str, Any]


def stepping(call: CapturedCall, policy: Policy, num_steps: int) -> tuple[fx.GraphModule, Manifest, list[torch.Tensor]]:
    """The stepping graph of ``call`` under ``policy``, its manifest, and example values of its inputs.

    Raises:
        HiCacheError: nothing is cached, or the denoiser returns something that is no tensor.
    """
    check_decides_before("export.policy", policy)
    made = rewrite(call.captured, layout_of(policy), policy.depth)
    if not made.sites:
        nearest = made.refused[0] if made.refused else "no list of modules with a residual stream was found"
        raise HiCacheError(f"export.policy: must cache something, scope {policy.scope!r} has no site; {nearest}")
    return _Writer(call, policy, either(made.programs)).write(num_steps)


class _Writer:
    def __init__(self, call: CapturedCall, policy: Policy, program: fx.GraphModule) -> None:
        self.call = call
        self.policy = policy
        self.program = program
        self.graph = fx.Graph()
        self.env: dict[fx.Node, fx.Node] = {}
        self.attributes: Attributes = {}
        self.examples: dict[str, torch.Tensor] = {}
        self.ports: dict[str, Port] = {}
        self.state: list[Port] = []
        self.depth = 0
        self.weights_dtype = torch.float32
        named = [
            *call.model.named_parameters(remove_duplicate=False),
            *call.model.named_buffers(remove_duplicate=False),
        ]
        self.weights = {id(tensor): name for name, tensor in named}
        self.arguments = _named_tensors(call.arguments)

    def write(self, num_steps: int) -> tuple[fx.GraphModule, Manifest, list[torch.Tensor]]:
        nodes = placeholders(self.program)
        given = {id(self.call.inputs[node.meta["input"]]): node for node in nodes if "input" in node.meta}
        for argument in self.arguments:  # in the order of the denoiser's signature
            if argument in given:
                self._argument(given[argument])
        for node in nodes:
            if "state" in node.meta:
                self._state(node)
        for node in nodes:
            if node not in self.env:
                self._constant(node)
        for node in self.program.graph.nodes:
            if node.op == "get_attr":
                self.env[node] = self.graph.get_attr(node.target)
                self.attributes[str(node.target)] = self.program.get_submodule(str(node.target))
            elif node.op != "placeholder":
                self.env[node] = self.graph.node_copy(node, self.env.__getitem__)
        module = fx.GraphModule(self.attributes, self.graph, "SteppingGraph")
        outputs = self._select_outputs()
        module.recompile()
        manifest = Manifest(
            to_dict(self.policy),
            tuple(self.ports.values()),
            tuple(self.state),
            outputs,
            self.depth,
            _dtype(self.weights_dtype),
            plan_of(self.policy, num_steps, self.depth),
        )
        return module, manifest, list(self.examples.values())

    def _placeholder(self, node: fx.Node, name: str, example: torch.Tensor) -> None:
        self.env[node] = self.graph.placeholder(name)
        self.env[node].meta = dict(node.meta)
        self.examples[name] = example

    def _argument(self, node: fx.Node) -> None:
        value = self.call.inputs[node.meta["input"]]
        name = self.arguments[id(value)]
        self._placeholder(node, name, value)
        self.ports[name] = Port(name, _sizes(node), _dtype(value.dtype))

    def _state(self, node: fx.Node) -> None:
        kind = node.meta["state"]
        value = ops.value(node)
        sizes = tuple(int(size) for size in value.shape)  # a size that varies has a hint
        if kind == "computing":
            self._placeholder(node, kind, torch.tensor(True))
            return
        self._placeholder(
            node, kind if kind != "anchors" else f"anchors_{len(self.state)}", torch.zeros(sizes, dtype=value.dtype)
        )
        if kind == "weights":
            self.depth, self.weights_dtype = sizes[0], value.dtype
        if kind == "anchors":
            self.state.append(Port(f"anchors_{len(self.state)}", _sizes(node), _dtype(value.dtype)))

    def _constant(self, node: fx.Node) -> None:
        value = self.call.inputs[node.meta["input"]]
        if not isinstance(value, torch.Tensor):
            self.env[node] = self._size(node)
            return
        name = self.weights.get(id(value), f"constant_{len(self.attributes)}")
        self.attributes[name] = value
        self.env[node] = self.graph.get_attr(name)

    def _size(self, node: fx.Node) -> fx.Node:
        """A size that Dynamo made an input: read off the argument it is of."""
        source = getattr(node, "_dynamo_source", None)
        owner = getattr(source, "base", None)
        for given in placeholders(self.program):
            if getattr(given, "_dynamo_source", None) == owner and owner is not None and given in self.env:
                return self.graph.call_function(torch.ops.aten.sym_size.int, (self.env[given], source.idx))  # type: ignore[union-attr]  # of a tensor
        raise HiCacheError(
            f"export: input {node.name} of the graph is no tensor and no size of one: must be a constant"
        )

    def _select_outputs(self) -> tuple[str, ...]:
        """Keep of the outputs what the denoiser returned, in its order, then the state; returns their names."""
        leaves = [leaf for leaf in pytree.tree_leaves(self.call.returned) if isinstance(leaf, torch.Tensor)]
        made = {id(value): index for index, value in enumerate(self.call.outputs)}
        if not leaves or any(id(leaf) not in made for leaf in leaves):
            raise HiCacheError("export.model: must return tensors its graph computes")
        node = output_node(self.graph)
        everything = list(node.args[0])  # type: ignore[arg-type]  # a tuple of nodes
        count = len(everything) - len(self.state)
        node.args = (tuple([everything[made[id(leaf)]] for leaf in leaves] + everything[count:]),)
        return ("sample",) if len(leaves) == 1 else tuple(f"sample_{i}" for i in range(len(leaves)))


def _named_tensors(arguments: dict[str, Any]) -> dict[int, str]:
    """The tensors among ``arguments`` by id, each under its path."""
    found: dict[int, str] = {}
    for path, leaf in pytree.tree_flatten_with_path(arguments)[0]:
        if isinstance(leaf, torch.Tensor):
            found.setdefault(id(leaf), re.sub(r"\W+", "_", pytree.keystr(path)).strip("_"))
    return found


def _sizes(node: fx.Node) -> tuple[Size, ...]:
    return tuple(size if isinstance(size, int) else str(size) for size in ops.value(node).shape)


def _dtype(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
