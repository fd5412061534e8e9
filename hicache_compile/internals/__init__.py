"""What the library takes from torch's internals: all of it, looked up once, when it is imported.

A release of torch may change any of it. What is missing then costs the feature that needs it, which a warning and
``hicache doctor`` name. Names of a feature that may be off are read here where they are used, after asking for it.
"""

import torch

from hicache_compile.internals.feature import FEATURES, Feature

with Feature("compiling"):
    from torch._dynamo import error_on_graph_break, maybe_mark_dynamic, optimize
    from torch._dynamo.backends.registry import lookup_backend
    from torch._dynamo.convert_frame import compile_lock
    from torch._dynamo.eval_frame import OptimizedModule
    from torch._dynamo.exc import BackendCompilerFailed, ShortenTraceback, TorchDynamoException, UserError
    from torch._dynamo.symbolic_convert import InstructionTranslator
    from torch._guards import TracingContext, tracing
    from torch._inductor import list_mode_options
    from torch._ops import OpOverload, OpOverloadPacket
    from torch._subclasses import FakeTensor, FakeTensorMode
    from torch._subclasses.fake_tensor import DynamicOutputShapeException
    from torch.fx.experimental.symbolic_shapes import (
        GuardOnDataDependentSymNode,
        free_unbacked_symbols,
        has_free_unbacked_symbols,
        statically_known_true,
    )
    from torch.nn.modules.module import _global_forward_hooks as global_forward_hooks
    from torch.nn.modules.module import _global_forward_pre_hooks as global_forward_pre_hooks
    from torch.utils import _pytree as pytree
    from torch.utils._python_dispatch import (
        TorchDispatchMode,
        _disable_current_modes,
        _get_current_dispatch_mode_stack,
        _pop_mode,
        _push_mode,
    )

    dynamo_config = torch._dynamo.config
    OPTIONS = (  # looked up
        dynamo_config.recompile_limit,
        dynamo_config.accumulated_recompile_limit,
        dynamo_config.capture_dynamic_output_shape_ops,
        dynamo_config.specialize_float,
    )

with Feature("replayed steps", "Dynamo checks its guards in every step, which takes longer") as REPLAY:
    from torch._C import _dispatch_keys as dispatch_keys
    from torch._C import _is_torch_function_mode_enabled as is_torch_function_mode_enabled
    from torch._C import _len_torch_function_stack as len_torch_function_stack
    from torch._C._dynamo.guards import GlobalStateGuard, dict_version
    from torch._dynamo.side_effects import SideEffects
    from torch._dynamo.variables.base import AttributeMutationNew, ValueMutationNew

    SideEffects._get_modified_vars  # noqa: B018  # looked up

with Feature("readings", "a denoiser whose own code reads data on the host has several graphs") as READINGS:
    from torch._dynamo import assume_constant_result
    from torch._dynamo.comptime import comptime
    from torch._dynamo.utils import get_real_value

    TracingContext.extract_stack  # noqa: B018  # looked up

with Feature("graphs that are code when called", "compiling takes a tenth longer") as LAZY:
    from torch.fx._lazy_graph_module import _LazyGraphModule

with Feature("opaque modules", "a denoiser whose submodules break the graph has several graphs") as BREAKS:
    from torch._dynamo.utils import graph_break_reasons

with Feature("the backend of torch.compile", "hicache_compile(model, policy) compiles the same") as BACKEND:
    from torch._dynamo.eval_frame import innermost_backend

with Feature("dropping compiled code", "the code of denoisers that are gone stays in memory") as DROPPING:
    from torch._dynamo.eval_frame import remove_from_cache

with Feature("Python floats under dynamic shapes", "compiling with dynamic=True may start over for them") as FLOATS:
    from torch._dynamo.symbolic_convert import TensorifyState
    from torch.utils._sympy.symbol import SymT, symbol_is_type

with Feature("torch.func in denoisers", "what is computed under it is not analysed") as VMAP:
    from torch._C._functorch import is_functorch_wrapped_tensor

with Feature("Triton kernels in denoisers", "they count as writing to all that they are given") as TRITON:
    from torch._higher_order_ops.triton_kernel_wrap import get_mutated_tensors

with Feature("ranks that sample one thing", "where guards decide, each rank decides for itself") as RANKS:
    from torch._C._distributed_c10d import _resolve_process_group as group_named
    from torch.distributed import _functional_collectives
    from torch.distributed.distributed_c10d import _get_default_store as default_store
    from torch.distributed.distributed_c10d import _get_object_coll_device as device_of_group

    _functional_collectives.RANK_TYPES  # noqa: B018  # looked up: the import makes the operators
    functional_collectives = torch.ops._c10d_functional

with Feature("layerwise casting", "leave it out, or keep the weights in the dtype that computes") as CASTING:
    from torch.nn.utils.stateless import _reparametrize_module as reparametrize_module

# Its modules take a second to import: what is missing is found where weights are sharded.
SHARDED = Feature("weights sharded by FSDP2", "its hooks break the graph at every module that it shards")

with Feature("dumps of bytecode", "a dump has no Python of what Dynamo compiled") as BYTECODE:
    from torch._dynamo.eval_frame import _debug_get_cache_entry_list as cache_entries

with Feature("TORCH_TRACE", "tlparse shows no graphs of this library") as TRACES:
    from torch._logging._internal import trace_structured
