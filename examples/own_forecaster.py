"""A forecaster of your own is one method: the weights of the anchors, newest first. It handles no tensors.

python examples/own_forecaster.py
python examples/own_forecaster.py --tiny
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from diffusers import FluxPipeline

from hicache_compile import Interval, Newton, Policy, Reuse, hicache_compile

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--model", default="black-forest-labs/FLUX.1-dev", help="name on the hub, or a folder")
parser.add_argument("--prompt", default="a lighthouse at dusk")
parser.add_argument("--tiny", action="store_true", help="random weights on a CPU, nothing is downloaded")
args = parser.parse_args()


@dataclass(frozen=True)
class Damped:
    """A straight line through the last two anchors, of which the slope counts less the further it is followed."""

    damping: float = 0.9

    def weights(self, anchors: Sequence[int], target: int) -> list[float]:
        if len(anchors) < 2:
            return [1.0]
        distance = target - anchors[0]
        ahead = distance / (anchors[0] - anchors[1]) * self.damping**distance
        return [1 + ahead, -ahead]


if args.tiny:
    from tiny import tiny

    pipe, backend, size = tiny("flux"), "eager", 16
else:
    pipe = FluxPipeline.from_pretrained(args.model, dtype=torch.bfloat16).to("cuda")
    backend, size = "inductor", 1024


def latents() -> torch.Tensor:  # from the same noise each time
    call = {"num_inference_steps": 28, "height": size, "width": size, "output_type": "latent"}
    return pipe(args.prompt, generator=torch.Generator().manual_seed(0), **call).images


pipe = hicache_compile(pipe, Policy(Interval(4), Damped()), backend=backend)
with pipe.transformer.disabled():
    full = latents()
for forecaster in (Reuse(), Newton(1), Damped(0.9), Damped(0.7)):  # weights are data: compiled once for all of them
    pipe.transformer.policy = Policy(Interval(4), forecaster)
    error = (latents() - full).norm() / full.norm()
    print(f"{pipe.transformer.report().decisions()}  error {error:.5f}  {forecaster}")
print(f"{pipe.transformer.report().programs} programs, {pipe.transformer.report().recompiles} recompiles")
