"""FLUX.1-Kontext edits a picture: its tokens run along with those of the sample, and are cached with them.

python examples/flux_edit.py cat.png --prompt "give the cat a hat"
python examples/flux_edit.py --tiny
"""

import argparse

import torch
from diffusers import FluxKontextPipeline
from diffusers.utils import load_image

from hicache_compile import HiCache, hicache_compile

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("image", nargs="?", help="file or URL of the picture")
parser.add_argument("--model", default="black-forest-labs/FLUX.1-Kontext-dev", help="name on the hub, or a folder")
parser.add_argument("--prompt", default="give the cat a hat")
parser.add_argument("--steps", type=int, default=28)
parser.add_argument("--tiny", action="store_true", help="random weights on a CPU, nothing is downloaded")
args = parser.parse_args()

if args.tiny:
    from tiny import picture, tiny

    pipe, image, backend = tiny("flux-kontext"), picture(), "aot_eager"
    size = {"height": 16, "width": 16, "max_area": 256, "_auto_resize": False}  # else it edits at a megapixel
elif args.image:
    pipe = FluxKontextPipeline.from_pretrained(args.model, dtype=torch.bfloat16).to("cuda")
    image, backend, size = load_image(args.image), "inductor", {}
else:
    parser.error("a picture to edit must be given")

# scope "stack" keeps anchors of the whole stack of blocks, not of each attention and MLP: little memory
pipe = hicache_compile(pipe, HiCache(interval=4, scope="stack"), backend=backend)

made = pipe(image, args.prompt, num_inference_steps=args.steps, generator=torch.Generator().manual_seed(0), **size)
made.images[0].save("flux_edit.png")

report = pipe.transformer.report()
print(report.decisions())
print(f"{report.computed} of {args.steps} steps computed, {report.flops_speedup:.2f} times fewer FLOPs")
print(f"{report.state_bytes:,} bytes of anchors")
