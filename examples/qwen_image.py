"""Qwen-Image with true guidance: two calls a step. Each branch has anchors of its own; the pipeline names the branches.

python examples/qwen_image.py --prompt "a shop sign that says OPEN"
python examples/qwen_image.py --tiny
"""

import argparse

import torch
from diffusers import QwenImagePipeline

from hicache_compile import TaylorSeer, hicache_compile

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--model", default="Qwen/Qwen-Image", help="name on the hub, or a folder")
parser.add_argument("--prompt", default="a shop sign that says OPEN")
parser.add_argument("--negative-prompt", default="blurred")
parser.add_argument("--steps", type=int, default=50)
parser.add_argument("--tiny", action="store_true", help="random weights on a CPU, nothing is downloaded")
args = parser.parse_args()

if args.tiny:
    from tiny import tiny

    pipe, backend, size = tiny("qwen-image"), "eager", 16
else:
    pipe, backend = QwenImagePipeline.from_pretrained(args.model, dtype=torch.bfloat16).to("cuda"), "inductor"
    size = 1328

pipe = hicache_compile(pipe, TaylorSeer(interval=5, order=1), backend=backend)

made = pipe(
    args.prompt,
    negative_prompt=args.negative_prompt,
    true_cfg_scale=4.0,
    height=size,
    width=size,
    num_inference_steps=args.steps,
    generator=torch.Generator().manual_seed(0),
)
made.images[0].save("qwen_image.png")

report = pipe.transformer.report()
for branch in report.history:  # "cond" and "uncond"
    print(f"{branch:>7} {report.decisions(branch)}")
calls = report.computed + report.forecast
print(f"{report.computed} of {calls} calls computed, {report.flops_speedup:.2f} times fewer FLOPs")
print(f"{report.state_bytes:,} bytes of anchors over both branches, {report.programs} programs")
