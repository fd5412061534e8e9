"""FLUX.1-dev with HiCache: a third of the steps is computed, the others are forecast.

python examples/flux.py --prompt "a lighthouse at dusk" --compare
python examples/flux.py --tiny
"""

import argparse

import numpy as np
import torch
from diffusers import FluxPipeline

from hicache_compile import HiCache, hicache_compile

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--model", default="black-forest-labs/FLUX.1-dev", help="name on the hub, or a folder")
parser.add_argument("--prompt", default="a lighthouse at dusk")
parser.add_argument("--steps", type=int, default=28)
parser.add_argument("--size", type=int, default=1024, help="height and width in pixels")
parser.add_argument("--compare", action="store_true", help="also make it uncached, for the error")
parser.add_argument("--tiny", action="store_true", help="random weights on a CPU, nothing is downloaded")
args = parser.parse_args()

if args.tiny:
    from tiny import tiny

    pipe, backend, args.size, args.compare = tiny("flux"), "aot_eager", 16, True
else:
    pipe, backend = FluxPipeline.from_pretrained(args.model, dtype=torch.bfloat16).to("cuda"), "inductor"

pipe = hicache_compile(pipe, HiCache(interval=4, order=2), backend=backend)  # the line that is new


def make():  # from the same noise each time
    size = {"height": args.size, "width": args.size}
    return pipe(args.prompt, num_inference_steps=args.steps, generator=torch.Generator().manual_seed(0), **size)


image = make().images[0]
image.save("flux.png")
report = pipe.transformer.report()
print(report.decisions())  # F: computed, a dot: forecast
print(f"{report.computed} of {args.steps} steps computed, {report.flops_speedup:.2f} times fewer FLOPs")
print(f"{report.state_bytes:,} bytes of anchors, {report.programs} programs, {report.recompiles} recompiles")

if args.compare:
    with pipe.transformer.disabled():
        uncached = make().images[0]
    cached, full = (np.asarray(each, dtype=float) for each in (image, uncached))
    print(f"error against uncached: {np.linalg.norm(cached - full) / np.linalg.norm(full):.4f} (relative, 2-norm)")
