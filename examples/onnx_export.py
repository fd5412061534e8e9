"""Export to ONNX: full and forecast branch in one graph, the anchors as inputs and outputs. Needs the extra `onnx`.

python examples/onnx_export.py --out sd3.onnx
python examples/onnx_export.py --tiny
"""

import argparse

import torch
from diffusers import AutoModel

from hicache_compile import HiCache, export_onnx
from hicache_compile.architectures import Request, example_inputs
from hicache_compile.export import OnnxDenoiser

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--model", default="stabilityai/stable-diffusion-3.5-medium", help="on the hub, or a folder")
parser.add_argument("--steps", type=int, default=20)
parser.add_argument("--out", default="denoiser.onnx")
parser.add_argument("--tiny", action="store_true", help="random weights on a CPU, nothing is downloaded")
args = parser.parse_args()

if args.tiny:
    from tiny import tiny

    denoiser, request = tiny("flux").transformer, Request(height=64)
else:
    denoiser = AutoModel.from_pretrained(args.model, subfolder="transformer", dtype=torch.float32)
    request = Request(height=1024)

inputs = example_inputs(denoiser, request)  # or the arguments of a call of your own, by name
policy = HiCache(interval=4, order=1)
manifest = export_onnx(denoiser, policy, inputs, args.out, num_steps=args.steps)
print(f"{args.out}: inputs {', '.join(port.name for port in manifest.arguments)}; {len(manifest.state)} rings")

exported = OnnxDenoiser(args.out)  # ONNX Runtime, with a step counter
arrays = {port.name: inputs[port.name].numpy() for port in manifest.arguments}
x, first = arrays["hidden_states"], arrays["timestep"]
with exported.trajectory(num_steps=args.steps):
    for step in range(args.steps):
        arrays.update(hidden_states=x, timestep=first - first * step / args.steps)
        x = x - exported(**arrays)[0] / args.steps
print(exported.decisions["default"])

y = inputs["hidden_states"]
with torch.no_grad():  # the same in torch, uncached
    for step in range(args.steps):
        inputs.update(hidden_states=y, timestep=torch.from_numpy(first - first * step / args.steps))
        y = y - denoiser(**inputs)[0] / args.steps
print(f"error against uncached: {(torch.from_numpy(x) - y).norm() / y.norm():.4f} (relative, 2-norm)")
