"""Wan 2.2: two transformers share the steps, one for much noise and one for little. Both are compiled by one call.

python examples/wan_video.py --prompt "two cats box on a stage"
python examples/wan_video.py --model Wan-AI/Wan2.1-T2V-14B-Diffusers      one transformer
python examples/wan_video.py --tiny
"""

import argparse

import torch
from diffusers import WanPipeline
from diffusers.utils import export_to_video

from hicache_compile import HiCache, hicache_compile

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--model", default="Wan-AI/Wan2.2-T2V-A14B-Diffusers", help="name on the hub, or a folder")
parser.add_argument("--prompt", default="two cats box on a stage")
parser.add_argument("--negative-prompt", default="blurred, static, low quality")
parser.add_argument("--steps", type=int, default=40)
parser.add_argument("--tiny", action="store_true", help="random weights on a CPU, nothing is downloaded")
args = parser.parse_args()

if args.tiny:
    from tiny import tiny

    pipe, backend, size = tiny("wan-2.2"), "eager", {"height": 16, "width": 16, "num_frames": 9}
else:
    pipe, backend = WanPipeline.from_pretrained(args.model, dtype=torch.bfloat16).to("cuda"), "inductor"
    pipe.vae.to(torch.float32)  # bfloat16 shows in the frames
    size = {"height": 720, "width": 1280, "num_frames": 81}

pipe = hicache_compile(pipe, HiCache(interval=4, order=1, scope="stack"), backend=backend)

made = pipe(
    args.prompt,
    negative_prompt=args.negative_prompt,
    num_inference_steps=args.steps,
    generator=torch.Generator().manual_seed(0),
    **size,
)
export_to_video(made.frames[0], "wan_video.mp4", fps=16)

for name in ("transformer", "transformer_2"):  # each makes its own part of the run
    denoiser = getattr(pipe, name, None)
    if denoiser is not None:
        report = denoiser.report()
        print(f"{name:>13} {report.decisions()}  {report.flops_speedup:.2f} times fewer FLOPs")
        print(f"{'':>13} branches: {', '.join(report.history)}; {report.state_bytes:,} bytes of anchors")
