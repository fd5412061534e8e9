"""``hicache export``: a denoiser from a folder as ONNX, a ``torch.export`` program or an AOTInductor package."""

from __future__ import annotations

from pathlib import Path

from hicache_compile.architectures import Request, example_inputs, resolve
from hicache_compile.errors import one_of
from hicache_compile.export.files import export_aoti, export_onnx, export_program

FORMATS = {"onnx": export_onnx, "pt2": export_program, "aoti": export_aoti}
DYNAMIC: dict[str, bool | str] = {"none": False, "batch": "batch", "all": True}


def run(name: str, policy: str, request: Request, file_format: str, out: Path, steps: int, dynamic: str) -> None:
    """Export the denoiser in the folder ``name``.

    Raises:
        HiCacheError: an argument is not what is allowed.
    """
    one_of("export", "format", file_format, FORMATS)
    one_of("export", "dynamic", dynamic, DYNAMIC)
    model = resolve(name).with_weights()
    inputs = example_inputs(model, request)
    manifest = FORMATS[file_format](model, policy, inputs, out, num_steps=steps, dynamic=DYNAMIC[dynamic])
    print(f"{out}: {len(manifest.arguments)} arguments, {len(manifest.state)} rings of {manifest.depth} anchors")
