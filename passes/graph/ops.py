"""Classification of the ops in a Dynamo graph: names, carriers of a stream, data inputs, purity."""

from __future__ import annotations

from types import FunctionType
from typing import Any

import torch
from torch import fx

from hicache_compile import internals
from hicache_compile.internals import pytree, statically_known_true
from hicache_compile.operators.opaque import module_of
from hicache_compile.passes.graph import effects

CAST = frozenset({"to", "float", "half", "bfloat16", "double", "type", "type_as", "contiguous", "clone"})
RESHAPE = frozenset(
    {"reshape", "view", "flatten", "unflatten", "permute", "transpose", "swapaxes", "movedim", "unsqueeze", "squeeze"}
)
SELECT = frozenset({"getitem", "split", "split_with_sizes", "chunk", "narrow", "unbind"})
CLAMP = frozenset({"clip", "clamp", "nan_to_num"})
JOIN = frozenset({"cat", "concat", "concatenate"})
ADD = frozenset({"add", "iadd", "add_"})
SUBTRACT = frozenset({"sub", "isub", "sub_", "subtract"})
SUMS = ADD | SUBTRACT | {"lerp"}  # of two values: what is added, taken off, or mixed in
MUL = frozenset({"mul", "imul", "mul_", "multiply"})
DIV = frozenset({"div", "truediv", "itruediv", "div_"})
DROPOUT = frozenset({"dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_dropout"})
KERNELS = frozenset(f"_scaled_dot_product_{name}_attention" for name in ("flash", "efficient", "cudnn"))
LAYER = "_transformer_encoder_layer_fwd"  # of torch's nn.TransformerEncoderLayer outside training
ATTENTION = frozenset({"scaled_dot_product_attention", "flex_attention", "multi_head_attention_forward"}) | KERNELS
TRITON = "triton_kernel_wrapper_mutation"
CHECKS = frozenset({"_assert_scalar", "_assert_async", "_assert_tensor_metadata", "sym_constrain_range_for_size"})
OPAQUE = "opaque"  # a submodule that Dynamo cannot trace
HEAVY = ATTENTION | {
    OPAQUE,
    LAYER,
    "linear",
    "bilinear",
    "matmul",
    "mm",
    "bmm",
    "grouped_mm",
    "addmm",
    "baddbmm",
    "einsum",
    "conv1d",
    "conv2d",
    "conv3d",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
}
ACTIVATIONS = frozenset({"gelu", "silu", "relu", "sigmoid", "tanh", "mish", "hardswish", "leaky_relu", "elu"})

_AUGMENTED = frozenset(
    {"iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "imatmul", "iand", "ior", "ixor"}
)
_WRITES = _AUGMENTED | {"setitem", TRITON}
_WRITES_IF = frozenset({"out", "inplace"})  # arguments
_TAKES_FORM = frozenset({"type_as", "expand_as", "view_as", "reshape_as"})
_RANDOM_SOURCES = frozenset({"rand", "randn", "randint", "randperm", "rand_like", "randn_like", "randint_like"})


def op(node: fx.Node) -> str:
    """The bare name of the called function: ``torch.add``, ``operator.add`` and ``Tensor.add`` are all ``add``."""
    if node.op == "call_method":
        return str(node.target)
    if node.op == "call_function":
        name = getattr(node.target, "__name__", str(node.target))
        return name.split(".")[0]
    return ""


def value(node: fx.Node) -> Any:
    """The fake value recorded for ``node`` by Dynamo or a pass."""
    return node.meta.get("example_value")


def argument(node: fx.Node, position: int, name: str, default: Any = None) -> Any:
    """The argument of a call, given by its place or by its name."""
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def is_tensor(node: object) -> bool:
    return isinstance(node, fx.Node) and isinstance(value(node), torch.Tensor)


def same_shape(a: fx.Node, b: fx.Node) -> bool:
    """Whether two tensor nodes have the same shape for all sizes the graph supports."""
    if not (is_tensor(a) and is_tensor(b)):
        return False
    left, right = value(a).shape, value(b).shape
    return len(left) == len(right) and all(statically_known_true(x == y) for x, y in zip(left, right, strict=True))


def shares_storage(a: fx.Node, b: fx.Node) -> bool:
    """Whether the values of ``a`` and ``b`` share one storage."""
    return a is b or storage(a) == storage(b)


def storage(node: fx.Node) -> object:
    """What tells whether two nodes have one storage: equal for those that do. A node itself, where that is unknown."""
    if not is_tensor(node) or (internals.VMAP and internals.is_functorch_wrapped_tensor(value(node))):
        return node
    return int(value(node).untyped_storage()._cdata)


def carriers(node: fx.Node) -> list[fx.Node]:
    """The arguments through which a residual stream may pass: those of sums, joins, slices, casts, reshapes and
    constant scales.
    """
    name = op(node)
    tensors = [argument for argument in node.args if isinstance(argument, fx.Node)]
    if name in JOIN:
        parts = node.args[0] if node.args else ()
        return [part for part in parts if isinstance(part, fx.Node)]  # type: ignore[union-attr]  # a list of nodes
    if name in SUBTRACT:
        return [argument for argument in node.args[:1] if isinstance(argument, fx.Node)]
    if name in SUMS:
        return tensors[:2]
    first = name == "addcmul" or name in CAST | RESHAPE | SELECT | CLAMP or (name in DROPOUT and not is_random(node))
    return tensors[:1] if first or (name in MUL | DIV and len(tensors) == 1) else []


def data_inputs(node: fx.Node) -> list[fx.Node]:
    """The arguments whose data ``node`` uses; not those from which it takes only a size or a dtype."""
    if op(node) in _TAKES_FORM:
        return [argument for argument in node.args[:1] if isinstance(argument, fx.Node)]
    if op(node).endswith("_like") or op(node).startswith("new_"):
        return []
    return [argument for argument in node.all_input_nodes if not isinstance(value(argument), torch.SymInt)]


def _bound(node: fx.Node, position: int, name: str, default: Any) -> Any:
    given = argument(node, position, name, default)
    # Under dynamic shapes a Python float is a node; asking for its truth makes Dynamo guard on the answer.
    return value(given) if isinstance(given, fx.Node) else given


def is_random(node: fx.Node) -> bool:
    """Whether ``node`` draws random numbers. Dropout with ``p=0`` or outside training does not."""
    name = op(node)
    if name in DROPOUT:
        return bool(_bound(node, 1, "p", 0.5)) and bool(_bound(node, 2, "training", True))
    if name == "multi_head_attention_forward":  # nn.MultiheadAttention hands its dropout on outside training too
        return bool(_bound(node, 10, "dropout_p", 0.0)) and bool(_bound(node, 13, "training", True))
    if name in ATTENTION - KERNELS:
        return name != "flex_attention" and bool(_bound(node, 4, "dropout_p", 0.0))
    if name in _RANDOM_SOURCES or name == OPAQUE:
        return name != OPAQUE or module_of(str(node.args[0])).random
    if (seen := _seen(node)) is not None:
        return seen.random
    values = fx.node.map_arg((node.args, node.kwargs), value)
    return any(effects.draws(overload, *values) for overload in effects.overloads(node.target, name))


def mutated(node: fx.Node) -> list[fx.Node]:
    """The arguments that ``node`` writes to in place."""
    if not node.op.startswith("call") or _reads_only(node):  # passes ask very often
        return []
    if (seen := _seen(node)) is not None:
        tensors = [argument for argument in _nodes((node.args, node.kwargs)) if is_tensor(argument)]
        return [tensors[place] for place in seen.written]
    return _written_by_name(node)


def _written_by_name(node: fx.Node) -> list[fx.Node]:
    name = op(node)
    if name in _AUGMENTED or name in ("setitem", "__setitem__"):
        return [argument for argument in node.args[:1] if is_tensor(argument)]  # type: ignore[misc]  # a node then
    if (out := _nodes(node.kwargs.get("out"))) or node.kwargs.get("inplace") is True:
        return out or _nodes(node.args)[:1]
    found = effects.overloads(node.target, name)
    if effects.has_schema(node.target):
        return _nodes([list(effects.written_arguments(each, node.args, node.kwargs)) for each in found])
    inplace = name.endswith("_") and not name.endswith("__")
    return _nodes(node.args[:1]) if inplace and any(each._schema.is_mutable for each in found) else []


def _reads_only(node: fx.Node) -> bool:
    """Whether the name of a builtin or method and its keywords say that it writes to nothing."""
    if isinstance(node.target, FunctionType) or effects.has_schema(node.target):
        return False
    name = op(node)
    return not name.endswith("_") and name not in _WRITES and _WRITES_IF.isdisjoint(node.kwargs)


def _seen(node: fx.Node) -> effects.Effects | None:
    """What the Python function or Triton kernel that ``node`` calls does; ``None``: it calls none, or one that is known
    by its name."""
    target = node.target
    if op(node) == TRITON:
        given = [name for name, argument in node.kwargs["kwargs"].items() if is_tensor(argument)]  # type: ignore[union-attr]
        written = effects.written_by_triton(fx.node.map_arg(node.kwargs, value))
        return effects.Effects(tuple(place for place, name in enumerate(given) if name in written))
    if node.op != "call_function" or not isinstance(target, FunctionType):
        return None
    if str(target.__module__).startswith("hicache_compile") or op(node) in ATTENTION or op(node).startswith(_EFFECTS):
        return None
    known = node.meta.get("effects")
    if known is None or known[0] is not target:
        known = target, effects.seen(target, *fx.node.map_arg((node.args, node.kwargs), value))
        node.meta["effects"] = known
    return known[1]


def _nodes(arguments: Any) -> list[fx.Node]:
    """The nodes in ``arguments``, in their order; one that is there twice is there twice."""
    return [leaf for leaf in pytree.tree_leaves(arguments) if isinstance(leaf, fx.Node)]


# Assertions, and ops that open or close a context: autocast, a level of vmap.
OPENS = ("_enter_autocast", "_vmap_increment_nesting", "_grad_increment_nesting", "_jvp_increment_nesting")
CLOSES = ("_exit_autocast", "_vmap_decrement_nesting", "_grad_decrement_nesting", "_jvp_decrement_nesting")
_SETS = ("_set_", "set_", "_sdpa_kernel")
_EFFECTS = ("_assert", "sym_constrain", "_check", "lazy_load_decompositions", *_SETS, *OPENS, *CLOSES)


def is_pure(node: fx.Node) -> bool:
    """Whether ``node`` may be removed when it has no users."""
    if node.op in ("placeholder", "output"):
        return False
    if node.op == "get_attr":
        return True
    if op(node).startswith(_EFFECTS) or mutated(node):
        return False
    return not node.meta.get("side_effect") and not is_random(node)
