"""HunyuanVideo: anchors of a video are large, so they are kept in one byte a value, and for the whole stack of blocks.

python examples/hunyuan_video.py --prompt "a cat walks on the grass"
python examples/hunyuan_video.py --tiny
"""

import argparse

import torch
from diffusers import HunyuanVideoPipeline
from diffusers.utils import export_to_video

from hicache_compile import HiCache, hicache_compile

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--model", default="hunyuanvideo-community/HunyuanVideo", help="name on the hub, or a folder")
parser.add_argument("--prompt", default="a cat walks on the grass")
parser.add_argument("--steps", type=int, default=50)
parser.add_argument("--tiny", action="store_true", help="random weights on a CPU, nothing is downloaded")
args = parser.parse_args()

if args.tiny:
    from tiny import tiny

    pipe, backend = tiny("hunyuan-video"), "eager"
    size = {"height": 16, "width": 16, "num_frames": 9, "max_sequence_length": 16}
else:
    pipe, backend = HunyuanVideoPipeline.from_pretrained(args.model, dtype=torch.bfloat16).to("cuda"), "inductor"
    pipe.vae.enable_tiling()
    size = {"height": 720, "width": 1280, "num_frames": 129}

policy = HiCache(interval=5, order=2, scope="stack")
pipe = hicache_compile(pipe, policy, backend=backend, anchors="int8")  # "float8_e4m3fn" on GPUs that have it

made = pipe(args.prompt, num_inference_steps=args.steps, generator=torch.Generator().manual_seed(0), **size)
export_to_video(made.frames[0], "hunyuan_video.mp4", fps=24)

report = pipe.transformer.report()
print(report.decisions())
print(f"{report.computed} of {args.steps} steps computed, {report.flops_speedup:.2f} times fewer FLOPs")
print(f"{report.state_bytes:,} bytes of anchors, {report.graph_breaks} graph breaks")
