"""torch.compile(backend="hicache"): the same cache where a program already calls torch.compile, without a wrapper.

python examples/torch_compile_route.py
python examples/torch_compile_route.py --tiny
"""

import argparse
from typing import Any

import torch
from diffusers import FluxPipeline

from hicache_compile import inspect

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--model", default="black-forest-labs/FLUX.1-dev", help="name on the hub, or a folder")
parser.add_argument("--prompt", default="a lighthouse at dusk")
parser.add_argument("--tiny", action="store_true", help="random weights on a CPU, nothing is downloaded")
args = parser.parse_args()

if args.tiny:
    from tiny import tiny

    pipe, backend, size = tiny("flux"), "aot_eager", 16
else:
    pipe = FluxPipeline.from_pretrained(args.model, dtype=torch.bfloat16).to("cuda")
    backend, size = "inductor", 1024

options: Any = {"policy": {"preset": "HiCache", "interval": 4, "order": 2}, "backend": backend}  # plain data
pipe.transformer = torch.compile(pipe.transformer, backend="hicache", options=options)


def latents() -> torch.Tensor:  # from the same noise each time
    call = {"num_inference_steps": 28, "height": size, "width": size, "output_type": "latent"}
    return pipe(args.prompt, generator=torch.Generator().manual_seed(0), **call).images


cached = latents()
handle = inspect(pipe.transformer)  # trajectory, policy, report, graphs, explain, dump: as on the other route
report = handle.report()
print(report.decisions())
print(f"{report.flops_speedup:.2f} times fewer FLOPs, {report.programs} programs, {report.graph_breaks} graph breaks")

handle.policy = "TaylorSeer"  # of the next run
latents()
print(handle.report().decisions())

with handle.disabled():
    full = latents()
print(f"error of the first against uncached: {(cached - full).norm() / full.norm():.4f} (relative, 2-norm)")
