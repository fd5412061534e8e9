"""FLUX.1-schnell, which has four steps: a mask says which are computed, since an interval is too coarse for so few.

python examples/few_steps.py --mask 1101
python examples/few_steps.py --tiny
"""

import argparse

import torch
from diffusers import FluxPipeline

from hicache_compile import Newton, Policy, Reuse, StepMask, hicache_compile

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--model", default="black-forest-labs/FLUX.1-schnell", help="name on the hub, or a folder")
parser.add_argument("--prompt", default="a lighthouse at dusk")
parser.add_argument("--mask", default="1101", help="one digit a step: 1 is computed, 0 is forecast")
parser.add_argument("--tiny", action="store_true", help="random weights on a CPU, nothing is downloaded")
args = parser.parse_args()

if args.tiny:
    from tiny import tiny

    pipe, backend, size = tiny("flux-schnell"), "eager", 16
else:
    pipe = FluxPipeline.from_pretrained(args.model, dtype=torch.bfloat16).to("cuda")
    backend, size = "inductor", 1024

pipe = hicache_compile(pipe, Policy(StepMask(args.mask), Newton(1), "stack"), backend=backend)
call = {"num_inference_steps": len(args.mask), "guidance_scale": 0.0, "height": size, "width": size}


def latents() -> torch.Tensor:  # from the same noise each time
    return pipe(args.prompt, generator=torch.Generator().manual_seed(0), output_type="latent", **call).images


with pipe.transformer.disabled():
    full = latents()
print("a skipped step is a large part of so short a run: look at the error before you use it")
for forecaster in (Reuse(), Newton(1)):
    pipe.transformer.policy = Policy(StepMask(args.mask), forecaster, "stack")  # compiles nothing
    error = (latents() - full).norm() / full.norm()
    report = pipe.transformer.report()
    print(f"{report.decisions()}  {forecaster}: {report.flops_speedup:.2f} times fewer FLOPs, error {error:.4f}")

pipe(args.prompt, generator=torch.Generator().manual_seed(0), **call).images[0].save("few_steps.png")
