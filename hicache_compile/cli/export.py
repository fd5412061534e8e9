"""``hicache export``: a denoiser from a folder as ONNX, a ``torch.export`` program or an AOTInductor package."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hicache_compile.cli import shared
from hicache_compile.errors import one_of

DYNAMIC: dict[str, bool | str] = {"none": False, "batch": "batch", "all": True}


def export(
    model: Annotated[str, typer.Argument(help="Folder of a diffusers model or pipeline, with its weights.")],
    out: Annotated[Path, typer.Option(help="The file to write.")],
    policy: Annotated[str, typer.Option(help="A preset name, a .json file or JSON.")] = "HiCache",
    format: Annotated[str, typer.Option(help="onnx, pt2 (torch.export) or aoti (AOTInductor).")] = "onnx",
    steps: Annotated[int, typer.Option(min=1, max=shared.MOST, help="Steps of the run whose plan goes along.")] = 50,
    height: shared.Height = None,
    width: shared.WidthOfSquare = None,
    frames: shared.Frames = None,
    batch: shared.Batch = 1,
    anchors: shared.Anchors = None,
    dynamic: Annotated[str, typer.Option(help="Which sizes may vary: none, batch or all.")] = "none",
    json: shared.AsJson = False,
) -> None:
    """Write a denoiser with its cache as one graph that needs neither this library nor Python."""
    from hicache_compile.architectures import Request, example_inputs, resolve
    from hicache_compile.export.files import export_aoti, export_onnx, export_program
    from hicache_compile.policy.files import check_writable

    formats = {"onnx": export_onnx, "pt2": export_program, "aoti": export_aoti}
    one_of("export", "format", format, formats)
    one_of("export", "dynamic", dynamic, DYNAMIC)
    check_writable(out)
    denoiser = resolve(model).with_weights()
    inputs = example_inputs(denoiser, Request(height, width, frames, batch))
    manifest = formats[format](
        denoiser, policy, inputs, out, num_steps=steps, dynamic=DYNAMIC[dynamic], anchors=anchors
    )
    arguments, rings = len(manifest.arguments), sum(port.name.startswith("anchors") for port in manifest.state)
    if json:
        shared.print_json({"file": str(out), "arguments": arguments, "rings": rings, "anchors": manifest.depth})
    else:
        print(f"{out}: {arguments} arguments, {rings} rings of {manifest.depth} anchors")
