"""A transformer and a sampling loop of your own: `trajectory` says where a run begins and how long it is.

python examples/own_model.py
python examples/own_model.py --tiny
"""

import argparse

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from hicache_compile import HiCache, hicache_compile

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--steps", type=int, default=30)
parser.add_argument("--tiny", action="store_true", help="small, on a CPU")
args = parser.parse_args()
width, depth, device, backend = (32, 4, "cpu", "aot_eager") if args.tiny else (1024, 24, "cuda", "inductor")


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.modulation = nn.Linear(width, 2 * width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        gate_attention, gate_mlp = self.modulation(time).unsqueeze(1).chunk(2, -1)
        q, k, v = (each.unflatten(-1, (4, -1)).transpose(1, 2) for each in self.qkv(x).chunk(3, -1))
        attended = scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + gate_attention * self.out(attended)
        return x + gate_mlp * self.down(nn.functional.gelu(self.up(x)))


class Denoiser(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed_time = nn.Linear(1, width)
        self.blocks = nn.ModuleList(Block() for _ in range(depth))

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        time = self.embed_time(t[:, None])
        for block in self.blocks:  # found by what the graph computes, not by a name
            x = block(x, time)
        return x


torch.manual_seed(0)
model = hicache_compile(Denoiser().to(device).eval(), HiCache(interval=4), backend=backend)
x = torch.randn(2, 64, width, device=device)
with torch.no_grad(), model.trajectory(num_steps=args.steps):
    for step in range(args.steps):
        t = torch.full((2,), 1 - step / args.steps, device=device)
        x = x - model(x, t) / args.steps
print(model.report().decisions(), f"{model.report().flops_speedup:.2f} times fewer FLOPs")
print(f"found {len(model.explain().blocks)} blocks")  # print(model.explain()) shows sites, FLOPs and bytes
