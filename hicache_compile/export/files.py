"""The files an exported denoiser is: ONNX, a ``torch.export`` program, an AOTInductor package; each with a manifest."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn
from torch.export import Dim, ExportedProgram

from hicache_compile.errors import HiCacheError, one_of, whole_number
from hicache_compile.export.archives import write_archive
from hicache_compile.export.manifest import Manifest, Port
from hicache_compile.export.plan import traits_when_exported
from hicache_compile.export.portable import portable
from hicache_compile.export.sizes import size_of
from hicache_compile.export.stepping import stepping
from hicache_compile.internals import has_free_unbacked_symbols, pytree
from hicache_compile.policy.compatibility import check
from hicache_compile.policy.files import check_writable, file_path, write_together, write_whole
from hicache_compile.policy.json_codec import as_policy
from hicache_compile.policy.layout import ANCHORS
from hicache_compile.policy.program_passes import ProgramPass, as_program_passes
from hicache_compile.policy.published import PublishedModel
from hicache_compile.policy.sparsity.chipmunk import as_sparsity
from hicache_compile.runtime.replay.capture import capture_call

log = logging.getLogger(__name__)

FEWER_SIZES = "export.dynamic = True: must be 'batch' or False for this denoiser"
MANIFEST = "hicache_compile.manifest"  # the key under which an ONNX file holds its manifest


def _exported(
    model: nn.Module,
    policy: Any,
    example_inputs: Any,
    num_steps: int,
    dynamic: bool | str,
    sparsity: Any,
    anchors: str | None,
    program_passes: Sequence[ProgramPass],
) -> tuple[ExportedProgram, Manifest]:
    whole_number("export", "num_steps", num_steps, 1)
    if not isinstance(model, nn.Module):
        raise HiCacheError(f"export.model = {type(model).__name__}: must be a torch.nn.Module")
    if not isinstance(dynamic, bool) and dynamic != "batch":
        raise HiCacheError(f"export.dynamic = {dynamic!r}: must be True, False or 'batch'")
    if anchors is not None:
        one_of("export", "anchors", anchors, ANCHORS)
    known = PublishedModel.of(model)
    wanted, own = as_policy(policy).for_model(known), as_program_passes("export", program_passes)
    for text in known.missing:
        log.warning(text)
    wanted.decisions(num_steps)
    check("export.policy", traits_when_exported(wanted))
    # Copies: two arguments that are one tensor are inputs of their own.
    inputs = pytree.tree_map_only(torch.Tensor, torch.clone, example_inputs)
    call = portable(capture_call(getattr(model, "_orig_mod", model), inputs, "export", dynamic))
    module, manifest, examples = stepping(call, wanted, num_steps, as_sparsity(sparsity), anchors, own)
    shapes = None
    if dynamic:
        sizes = {port.name: port.shape for port in (*manifest.arguments, *manifest.controls, *manifest.state)}
        names = [str(node.target) for node in module.graph.find_nodes(op="placeholder")]
        varying = [{i for i, size in enumerate(sizes.get(name, ())) if isinstance(size, str)} for name in names]
        shapes = tuple(dict.fromkeys(places, Dim.AUTO) for places in varying)
    try:
        with torch.no_grad():
            program = torch.export.export(module, tuple(examples), dynamic_shapes=shapes, strict=False)
    except RuntimeError as error:
        if dynamic is not True or "stride" not in str(error):
            raise
        raise HiCacheError(
            f"{FEWER_SIZES}; torch cannot tell that both branches return a sample of one layout when its sizes vary"
        ) from error
    settled = _settled(manifest, program)
    _check_sizes(settled)
    return program, settled


def _check_sizes(manifest: Manifest) -> None:
    """What runs the program makes its state, and knows the sizes of its arguments alone."""
    known = {size: 2 for port in manifest.arguments for size in port.shape if isinstance(size, str)}
    for port in manifest.state:
        for size in port.shape:
            try:
                size_of(size, known)
            except HiCacheError as error:
                raise HiCacheError(
                    f"{FEWER_SIZES}; for torch the sizes of its anchors are their own ({error})"
                ) from None


def _check_it_loads(program: ExportedProgram) -> None:
    """torch saves branches in which sizes depend on data, but does not load them."""
    for name, branch in program.graph_module.named_modules():
        values = [node.meta.get("val") for node in branch.graph.nodes] if isinstance(branch, fx.GraphModule) else []
        if name and any(isinstance(value, torch.Tensor) and has_free_unbacked_symbols(value) for value in values):
            raise HiCacheError(
                "export.model computes on tensors whose sizes depend on data: must not for a torch.export program, "
                "which torch cannot load; use export_aoti, or pick tokens before the denoiser"
            )


def _settled(manifest: Manifest, program: ExportedProgram) -> Manifest:
    """``manifest`` with the sizes that are left to vary in ``program``."""
    values = {node.name: node.meta["val"] for node in program.graph.find_nodes(op="placeholder")}

    def settled(port: Port) -> Port:
        sizes = values[port.name].shape if port.name in values else port.shape
        return replace(port, shape=tuple(int(str(size)) if str(size).isdigit() else str(size) for size in sizes))

    arguments, state = (tuple(map(settled, ports)) for ports in (manifest.arguments, manifest.state))
    return replace(manifest, arguments=arguments, state=state)


def export_program(
    model: nn.Module,
    policy: Any,
    example_inputs: Any,
    path: str | Path,
    *,
    num_steps: int = 50,
    dynamic: bool | str = False,
    sparsity: Any = None,
    anchors: str | None = None,
    program_passes: Sequence[ProgramPass] = (),
) -> Manifest:
    """Save the guarded denoiser as a ``torch.export`` program: ``torch.export.load(path).module()`` runs it.

    Args and errors: see ``export_onnx``. ``PATH.json`` is the manifest.
    """
    path = _writable("export_program", path)
    asked = (sparsity, anchors, program_passes)
    program, manifest = _exported(model, policy, example_inputs, num_steps, dynamic, *asked)
    _check_it_loads(program)
    write_archive(path, lambda file: torch.export.save(program, file))
    write_whole(_beside(path), manifest.to_json())
    return manifest


def export_aoti(
    model: nn.Module,
    policy: Any,
    example_inputs: Any,
    path: str | Path,
    *,
    num_steps: int = 50,
    dynamic: bool | str = False,
    sparsity: Any = None,
    anchors: str | None = None,
    program_passes: Sequence[ProgramPass] = (),
) -> Manifest:
    """Compile the guarded denoiser with AOTInductor into one package, weights included.

    ``torch._inductor.aoti_load_package(path)`` loads it where this library is not installed. Args and errors: see
    ``export_onnx``; ``path`` ends in ``.pt2``, and ``PATH.json`` is the manifest.
    """
    path = _writable("export_aoti", path)
    if path.suffix != ".pt2":
        raise HiCacheError(f"export_aoti.path = {str(path)!r}: must end in .pt2")
    asked = (sparsity, anchors, program_passes)
    program, manifest = _exported(model, policy, example_inputs, num_steps, dynamic, *asked)
    from hicache_compile.internals import inductor

    inductor.PACKAGES.require()
    write_archive(path, lambda file: inductor.aoti_compile_and_package(program, package_path=file))
    write_whole(_beside(path), manifest.to_json())
    return manifest


def export_onnx(
    model: nn.Module,
    policy: Any,
    example_inputs: Any,
    path: str | Path,
    *,
    num_steps: int = 50,
    dynamic: bool | str = False,
    sparsity: Any = None,
    anchors: str | None = None,
    program_passes: Sequence[ProgramPass] = (),
) -> Manifest:
    """Write the guarded denoiser as ONNX: one ``If`` whose branches are the full and the forecast step.

    Inputs are the tensors among the denoiser's arguments by name, then the controls (``computing`` (bool), ``position``
    ``[1]`` int64, ``weights`` ``[depth]``; more where guards or kinds are decided in the graph, see ``Manifest``), and
    the state, a ring ``anchors_0``, ... a slot; outputs are ``sample`` and ``next_anchors_0``, .... What is no tensor
    among the arguments is fixed. ``OnnxDenoiser`` runs it; the manifest is in the file's metadata. Weights over 1 GiB
    go to ``PATH.data``.

    Args:
        model: the denoiser, or what ``hicache_compile`` made of it.
        policy: as in ``hicache_compile``.
        example_inputs: the arguments of one call, by name or in order; the denoiser is called with them once.
        path: the file to write.
        num_steps: length of the run whose plan goes into the manifest.
        sparsity, anchors, program_passes: how sparse computed steps are, the dtype anchors are kept in, and passes of
            your own, as in ``hicache_compile``.
        dynamic: let every size vary, or with ``"batch"`` the batch alone: where a denoiser cuts its sample into
            patches, torch cannot export a branch on sizes of the sample. The example has two of what may vary.

    Raises:
        HiCacheError: nothing is cached under ``policy``, the denoiser is captured in several graphs, its sizes cannot
            vary, an argument is not what is allowed, or ``path`` cannot be written, which is then what it was.
    """
    if anchors == "float8_e4m3fn":  # its rows are written as bytes
        raise HiCacheError("export_onnx.anchors = 'float8_e4m3fn': must be another dtype, ONNX has no views as bytes")
    path = _writable("export_onnx", path, manifest=False)
    asked = (sparsity, anchors, program_passes)
    program, manifest = _exported(model, policy, example_inputs, num_steps, dynamic, *asked)
    names = [node.name for node in program.module().graph.find_nodes(op="placeholder")]
    outputs = [*manifest.outputs, *manifest.next_state]
    try:
        converted = torch.onnx.export(program, input_names=names, output_names=outputs, dynamo=True, verbose=False)
    except torch.onnx.OnnxExporterError as error:
        reason = next((line for line in str(error).splitlines() if "No ONNX function" in line), str(error))
        raise HiCacheError(
            "export_onnx.model: must be in ops that torch converts to ONNX, or be exported by export_program or "
            f"export_aoti; {reason.rpartition('>: ')[2]}"
        ) from error
    assert converted is not None
    converted.model.metadata_props[MANIFEST] = manifest.to_json()
    weights = sum(tensor.nbytes for tensor in program.state_dict.values())
    write_together(path, lambda unfinished: converted.save(str(unfinished), external_data=weights > 1 << 30))
    log.info("wrote %s: %d arguments, %d states", path, len(manifest.arguments), len(manifest.state))
    return manifest


def _writable(owner: str, path: str | Path, manifest: bool = True) -> Path:
    """``path``, which can be written, and the ``manifest`` beside it: an export takes minutes."""
    found = file_path(f"{owner}.path", path)
    for each in (found, _beside(found))[: 1 + manifest]:
        check_writable(each)
    return found


def _beside(path: str | Path) -> Path:
    return Path(f"{path}.json")
