"""The stepping graph: a guarded denoiser as one module without Python state.

``graph(*arguments, *controls, *state) -> (*outputs, *next_state)``, see ``Manifest``; the denoiser's parameters keep
their names, other tensors it holds are constants.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import fx

from hicache_compile.errors import HiCacheError
from hicache_compile.export.manifest import Manifest, Port
from hicache_compile.export.plan import Branches, constants_of, control_name, first_state, plan_of, traits_when_exported
from hicache_compile.export.sizes import Size
from hicache_compile.internals import pytree
from hicache_compile.passes import Rewrite, rewrite
from hicache_compile.passes.graph import ops
from hicache_compile.passes.graph.graphs import output_node, placeholders
from hicache_compile.passes.graph.inputs import Role, StateInput, state_of
from hicache_compile.passes.lowering.cond import both_branches
from hicache_compile.policy.compatibility import Trait, check
from hicache_compile.policy.json_codec import to_dict
from hicache_compile.policy.policy import Policy
from hicache_compile.policy.program_passes import ProgramPass
from hicache_compile.policy.sparsity.chipmunk import Chipmunk
from hicache_compile.runtime.program_set import ProgramSet
from hicache_compile.runtime.replay.capture import CapturedCall

Attributes = dict[str, Any]


def _name_of(state: StateInput) -> str:
    """The name of a control or of what lasts from step to step."""
    if state.role is Role.COMPUTING:
        return control_name(state.name)
    return state.name if state.role is Role.MEMORY else "_".join(part for part in (str(state.role), state.name) if part)


def stepping(
    call: CapturedCall,
    policy: Policy,
    num_steps: int,
    sparsity: Chipmunk | None = None,
    anchors: str | None = None,
    program_passes: tuple[ProgramPass, ...] = (),
) -> tuple[fx.GraphModule, Manifest, list[torch.Tensor]]:
    """The stepping graph of ``call`` under ``policy``, its manifest, and example values of its inputs.

    Raises:
        HiCacheError: nothing is cached, a part of the policy cannot be exported, or the denoiser returns something that
            is no tensor.
    """
    options = {Trait.SPARSITY: sparsity is not None, Trait.ANCHOR_DTYPE: anchors is not None}
    asked = frozenset(trait for trait, given in options.items() if given)
    check("export.policy", traits_when_exported(policy) | asked)
    made = rewrite(
        call.captured, replace(policy.layout, sparsity=sparsity, anchors=anchors, program_passes=program_passes)
    )
    if made.ranks:
        raise HiCacheError(
            "export: must be the denoiser of one process, this one communicates with other ranks, and a file knows none"
        )
    if not made.sites:
        why = made.why_nothing or "every step is computed"
        raise HiCacheError(f"export.policy: must cache something, scope {policy.scope!r} has no site; {why}")
    return _Writer(call, policy, made, both_branches(made, policy.guards)).write(num_steps)


class _Writer:
    def __init__(self, call: CapturedCall, policy: Policy, rewritten: Rewrite, program: fx.GraphModule) -> None:
        self.call = call
        self.policy = policy
        self.rewritten = rewritten
        self.program = program
        self.graph = fx.Graph()
        self.env: dict[fx.Node, fx.Node] = {}
        self.attributes: Attributes = {}
        self.examples: dict[str, torch.Tensor] = {}
        self.ports: dict[str, Port] = {}
        self.controls: list[Port] = []
        self.state: dict[StateInput, Port] = {}
        self.states = _named_states(program)
        named = [
            *call.model.named_parameters(remove_duplicate=False),
            *call.model.named_buffers(remove_duplicate=False),
        ]
        self.weights = {id(tensor): name for name, tensor in named}
        self.arguments = _named_tensors(call.arguments, [name for _, name in self.states.values()])

    def write(self, num_steps: int) -> tuple[fx.GraphModule, Manifest, list[torch.Tensor]]:
        nodes = placeholders(self.program)
        given = {id(self.call.inputs[node.meta["input"]]): node for node in nodes if "input" in node.meta}
        for argument in self.arguments:  # in the order of the denoiser's signature
            if argument in given:
                self._argument(given[argument])
        for state, (node, name) in self.states.items():
            self._state(node, name, state)
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
        return module, self._manifest(num_steps, outputs), list(self.examples.values())

    def _manifest(self, num_steps: int, outputs: tuple[str, ...]) -> Manifest:
        sparsity = self.rewritten.layout.sparsity
        programs = ProgramSet(self.rewritten, self.policy.depth)
        spec = programs.rows(self.policy.depth, 0)
        branches = Branches(self.rewritten.groups, bool(self.rewritten.sparse), self.rewritten.tokenwise)
        names = [port.name for port in self.controls]
        return Manifest(
            policy=_as_data(self.policy),
            arguments=tuple(self.ports.values()),
            controls=tuple(self.controls),
            state=tuple(self.state.values()),
            outputs=outputs,
            depth=self.policy.depth,
            weights_dtype=_dtype(programs.weights_dtype),
            plan=plan_of(self.policy, num_steps, spec, branches, sparsity, names),
            constants=constants_of(self.policy, num_steps, self.policy.depth),
            first=first_state(self.policy),
            groups=spec.groups,
            group_of=spec.group_of,
            per_slot=spec.per_slot,
            parts=spec.parts,
            sparsity=sparsity.to_dict() if sparsity is not None and self.rewritten.sparse else None,
            unread=tuple(name for name in self.arguments.values() if name not in self.ports),
        )

    def _placeholder(self, node: fx.Node, name: str, example: torch.Tensor) -> None:
        self.env[node] = self.graph.placeholder(name)
        self.env[node].meta = dict(node.meta)
        self.examples[name] = example

    def _argument(self, node: fx.Node) -> None:
        value = self.call.inputs[node.meta["input"]]
        name = self.arguments[id(value)]
        self._placeholder(node, name, value)
        self.ports[name] = Port(name, _sizes(node), _dtype(value.dtype))

    def _state(self, node: fx.Node, name: str, state: StateInput) -> None:
        """A control of the step, or what lasts from step to step."""
        value = ops.value(node)
        sizes = tuple(int(size) for size in value.shape)  # a size that varies has a hint
        port = Port(name, _sizes(node), _dtype(value.dtype))
        example = torch.tensor(True) if state.role is Role.COMPUTING else torch.zeros(sizes, dtype=value.dtype)
        self._placeholder(node, name, example)
        if state in self.program.meta["kept"]:
            self.state[state] = port
        else:
            self.controls.append(port)

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
        node = output_node(self.graph)
        everything = list(node.args[0])  # type: ignore[arg-type]  # a tuple of nodes
        count = len(everything) - len(self.state)
        made = {id(value): everything[index] for index, value in enumerate(self.call.outputs)}
        with self.graph.inserting_before(node):
            for place, leaf in enumerate(leaves):
                if id(leaf) not in made:
                    made[id(leaf)] = self._handed_back(place, leaf)
        if not leaves:
            raise HiCacheError(
                f"export.model: returns {type(self.call.returned).__name__}, in which torch sees no tensor: must "
                "return tensors, in tuples, lists, dicts or a class known to torch.export.register_dataclass"
            )
        node.args = (tuple([made[id(leaf)] for leaf in leaves] + everything[count:]),)
        names = ["sample"] if len(leaves) == 1 else [f"sample_{i}" for i in range(len(leaves))]
        return tuple([f"out_{name}" if name in self.ports else name for name in names])

    def _handed_back(self, place: int, leaf: torch.Tensor) -> fx.Node:
        """A copy of an argument that the denoiser returns as it was given."""
        for given in placeholders(self.program):
            if given in self.env and "input" in given.meta and self.call.inputs[given.meta["input"]] is leaf:
                return self.graph.call_function(torch.ops.aten.clone.default, (self.env[given],))
        raise HiCacheError(f"export.model: returns a tensor, number {place}, that its graph neither reads nor computes")


def _as_data(policy: Policy) -> dict[str, Any]:
    """``policy`` as plain data; nothing where it has a part of your own, which only Python can name."""
    try:
        return to_dict(policy)
    except HiCacheError:
        return {}


def _named_states(program: fx.GraphModule) -> dict[StateInput, tuple[fx.Node, str]]:
    """The controls of ``program``, then what it keeps from step to step, each with its node and its name."""
    kept: list[StateInput] = program.meta["kept"]
    nodes = {state: node for node in placeholders(program) if (state := state_of(node)) is not None}
    states = [*(state for state in nodes if state not in kept), *kept]
    rings = [state for state in states if state.role is Role.ANCHORS]
    names = {ring: f"anchors_{place}" for place, ring in enumerate(rings)}
    return {state: (nodes[state], names.get(state) or _name_of(state)) for state in states}


def _named_tensors(arguments: dict[str, Any], others: Iterable[str]) -> dict[int, str]:
    """The tensors among ``arguments`` by id, each under its path, with ``_`` behind it where ``others`` have that."""
    taken, found = set(others), {}
    for path, leaf in pytree.tree_flatten_with_path(arguments)[0]:
        if isinstance(leaf, torch.Tensor) and id(leaf) not in found:
            name = re.sub(r"\W+", "_", pytree.keystr(path)).strip("_")
            while name in taken:
                name += "_"
            taken.add(name)
            found[id(leaf)] = name
    return found


def _sizes(node: fx.Node) -> tuple[Size, ...]:
    return tuple(size if isinstance(size, int) else str(size) for size in ops.value(node).shape)


def _dtype(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
