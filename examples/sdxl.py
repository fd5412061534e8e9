"""Stable Diffusion XL: a UNet. Its attention and MLPs are found in the graph as those of a transformer are.

python examples/sdxl.py --prompt "an astronaut rides a horse"
python examples/sdxl.py --tiny
"""

import argparse

import torch
from diffusers import StableDiffusionXLPipeline

from hicache_compile import HiCache, hicache_compile

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--model", default="stabilityai/stable-diffusion-xl-base-1.0", help="on the hub, or a folder")
parser.add_argument("--prompt", default="an astronaut rides a horse")
parser.add_argument("--steps", type=int, default=40)
parser.add_argument("--compare", action="store_true", help="also make it uncached, for the error")
parser.add_argument("--tiny", action="store_true", help="random weights on a CPU, nothing is downloaded")
args = parser.parse_args()

if args.tiny:
    from tiny import tiny

    pipe, backend, size, args.compare = tiny("sdxl"), "eager", 16, True
else:
    pipe = StableDiffusionXLPipeline.from_pretrained(args.model, dtype=torch.bfloat16).to("cuda")
    backend, size = "inductor", 1024

pipe = hicache_compile(pipe, HiCache(interval=3, order=1), backend=backend)
call = {"num_inference_steps": args.steps, "height": size, "width": size, "output_type": "pt"}

cached = pipe(args.prompt, generator=torch.Generator().manual_seed(0), **call).images
pipe.image_processor.postprocess(2 * cached - 1)[0].save("sdxl.png")

report = pipe.unet.report()
print(report.decisions())
print(f"{report.computed} of {args.steps} steps computed, {report.flops_speedup:.2f} times fewer FLOPs")
for site, reason in report.refused[:5]:  # what is computed in each step, and why
    print(f"not cached: {site}: {reason}")

if args.compare:
    with pipe.unet.disabled():
        full = pipe(args.prompt, generator=torch.Generator().manual_seed(0), **call).images
    print(f"error against uncached: {(cached - full).norm() / full.norm():.4f} (relative, 2-norm)")
