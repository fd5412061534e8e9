"""A budget for the anchors: the finest scope, order and dtype that fit are chosen from shapes, before anything runs.

python examples/memory_budget.py --budget 4GiB 200MiB 40MiB
python examples/memory_budget.py --tiny
"""

import argparse

import torch
from diffusers import FluxPipeline

from hicache_compile import HiCache, hicache_compile

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--model", default="black-forest-labs/FLUX.1-dev", help="name on the hub, or a folder")
parser.add_argument("--prompt", default="a lighthouse at dusk")
parser.add_argument("--budget", nargs="+", default=["4GiB", "200MiB", "40MiB"], help="bytes, over all branches")
parser.add_argument("--offload", action="store_true", help="keep the anchors in host memory")
parser.add_argument("--tiny", action="store_true", help="random weights on a CPU, nothing is downloaded")
args = parser.parse_args()

if args.tiny:
    from tiny import tiny

    pipe, backend, size, args.budget = tiny("flux"), "eager", 16, ["1MB", "8KB"]
else:
    pipe = FluxPipeline.from_pretrained(args.model, dtype=torch.bfloat16).to("cuda")
    backend, size = "inductor", 1024


def latents() -> torch.Tensor:  # from the same noise each time
    call = {"num_inference_steps": 28, "height": size, "width": size, "output_type": "latent"}
    return pipe(args.prompt, generator=torch.Generator().manual_seed(0), **call).images


transformer, full = pipe.transformer, latents()
for budget in args.budget:
    pipe.transformer = transformer  # as it was: hicache_compile did not change it
    hicache_compile(pipe, HiCache(interval=4), backend=backend, memory_budget=budget, offload=args.offload)
    error = (latents() - full).norm() / full.norm()
    report = pipe.transformer.report()
    print(f"{budget:>8}  {report.decisions()}  error {error:.5f}, {report.flops_speedup:.2f} times fewer FLOPs")
    print(f"{'':>8}  {report.memory}")
