"""The one call: ``hicache_compile(model, policy)``, of a denoiser or of a pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar, overload

import torch

from hicache_compile.errors import HiCacheError
from hicache_compile.frontend.compiled_already import differences
from hicache_compile.frontend.denoiser import CompiledDenoiser
from hicache_compile.frontend.pipeline import compile_pipeline, is_pipeline
from hicache_compile.policy.program_passes import ProgramPass
from hicache_compile.runtime.options import CompileOptions

Pipeline = TypeVar("Pipeline")


@overload
def hicache_compile(model: torch.nn.Module, policy: Any, *, backend: str = ..., **options: Any) -> CompiledDenoiser: ...


@overload
def hicache_compile(model: Pipeline, policy: Any, **options: Any) -> Pipeline: ...


def hicache_compile(  # type: ignore[misc]  # the overloads leave the options to this signature
    model: Any,
    policy: Any,
    *,
    backend: str = "inductor",
    sparsity: Any = None,
    dynamic: bool | None = None,
    mode: str | None = None,
    memory_budget: str | int | None = None,
    offload: bool = False,
    anchors: str | None = None,
    decide_together: bool | None = None,
    together: bool = False,
    program_passes: Sequence[ProgramPass] = (),
    max_error: float | None = None,
    max_seconds: float | None = None,
) -> Any:
    """Compile ``model`` to sample with the cache ``policy`` describes.

    Nothing is compiled yet: Dynamo captures the denoiser at its first call, like ``torch.compile``.

    Args:
        model: the denoiser, any module Dynamo can capture; it is not changed and shares its weights. Or a diffusers
            pipeline: its denoisers are compiled in place, and its scheduler says where a run begins and ends.
        policy: a ``Policy`` (or a preset, which returns one), a preset's name, a dict, or a path to JSON. Or a pack
            (``hicache eval --pack``), from which the promise picks the policy.
        backend: what a program is lowered to: ``"inductor"``, ``"aot_eager"`` or ``"eager"``; ``"cond"``,
            ``"cond_aot_eager"`` and ``"cond_eager"`` keep both branches, and what guards decide, in one program.
        sparsity: a ``Chipmunk`` (or a dict of its fields, or a path to a YAML file of the original): attention and
            MLPs of computed steps are sparse. ``None``: they stay dense. With it ``policy`` may be ``None``: every
            step is computed.
        dynamic: as in ``torch.compile``.
        mode: as in ``torch.compile``, for Inductor: ``"reduce-overhead"``, ``"max-autotune"``, ...
        memory_budget: bytes of anchors on the device over all guidance branches, like ``"4GiB"``: the finest scope,
            order and anchor dtype that fit are chosen from shapes at the first call; ``report().memory`` says which.
        offload: keep the anchors on the CPU; the device then holds one row a slot.
        anchors: the dtype anchors are kept in: ``"float32"``, ``"float16"``, ``"bfloat16"``, or with a scale for each
            anchor ``"float8_e4m3fn"`` or ``"int8"``. ``None``: the dtype of what is cached.
        decide_together: whether the ranks of ``torch.distributed`` run one sampling (sequence or tensor parallel,
            sharded weights): what guards measure is summed over them, so that all decide what one process would. By
            default the ranks that the denoiser's graph has collectives with; ``True``: all; ``False``: each by itself.
        together: the samples of a batch decide as one: guards go by the largest measurement of all of them. By default
            each sample is computed and forecast as it is alone, those that do the same in one call.
        program_passes: functions of your own, each ``fn(torch.fx.GraphModule) -> torch.fx.GraphModule | None``:
            run in this order on each straight-line program, in which nothing of the cache is left to decide, before it
            is compiled. ``None``: it was changed in place. Inputs, outputs and what is kept stay as they are.
        max_error, max_seconds: the promise, with a pack: the fastest policy whose pictures have a relative error
            (2-norm) of at most ``max_error`` in 95 of 100 runs; the most accurate whose runs take at most
            ``max_seconds``.

    Returns:
        A module used like ``model``, with ``trajectory``, ``reset``, ``disabled``, ``report``, ``graphs`` and
        ``policy``; of a pipeline, the same pipeline, whose ``transformer`` (or ``unet``) is such a module.

    Raises:
        HiCacheError: an argument is not what is allowed; the message says what is.
    """
    pipeline = is_pipeline(model)
    if not pipeline and not isinstance(model, torch.nn.Module):
        raise HiCacheError(
            f"hicache_compile.model = {type(model).__name__}: must be a torch.nn.Module or a diffusers pipeline"
        )
    options = CompileOptions.of(
        policy,
        backend=backend,
        sparsity=sparsity,
        dynamic=dynamic,
        mode=mode,
        memory_budget=memory_budget,
        offload=offload,
        anchors=anchors,
        decide_together=decide_together,
        together=together,
        program_passes=program_passes,
        max_error=max_error,
        max_seconds=max_seconds,
    )

    def wrap(module: torch.nn.Module) -> CompiledDenoiser:
        if isinstance(module, torch.jit.ScriptModule):
            raise HiCacheError(
                f"hicache_compile.model = {type(module).__name__}: must not be TorchScript, which Dynamo cannot trace; "
                "compile the module that it was made of"
            )
        if not isinstance(module, CompiledDenoiser):
            return CompiledDenoiser(module, options)
        found = differences(module, options)
        if not pipeline or found:
            has = f"; it has {'; '.join(found)}" if found else ""
            promised = module.contract is not None and options.contract is not None
            instead = "keep another promise inside of its promising(...)" if promised else "set its policy instead"
            raise HiCacheError(f"hicache_compile.model is compiled already: {instead}{has}")
        return module  # two pipelines share it

    return compile_pipeline(model, wrap) if pipeline else wrap(model)
