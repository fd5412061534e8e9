"""A pass of your own: a function that changes the graph of each program before it is compiled.

python examples/own_pass.py
python examples/own_pass.py --tiny
"""

import argparse
import operator

import torch
from diffusers import FluxPipeline
from torch import fx

from hicache_compile import HiCache, hicache_compile

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--model", default="black-forest-labs/FLUX.1-dev", help="name on the hub, or a folder")
parser.add_argument("--tiny", action="store_true", help="random weights on a CPU, nothing is downloaded")
args = parser.parse_args()


def fuse_modulation(program: fx.GraphModule) -> None:
    """``norm(x) * (1 + scale) + shift`` in one kernel: ``addcmul(shift, norm(x), 1 + scale)``."""
    fused = 0
    for total in program.graph.find_nodes(op="call_function", target=operator.add):
        product, shift = total.args
        if getattr(product, "target", None) is not operator.mul or len(product.users) > 1:
            continue
        if not all(isinstance(node, fx.Node) for node in (*product.args, shift)):
            continue
        with program.graph.inserting_before(total):
            new = program.graph.call_function(torch.addcmul, (shift, *product.args))
        total.replace_all_uses_with(new)
        program.graph.erase_node(total)
        program.graph.erase_node(product)
        fused += 1
    print(f"{program.meta['program']}: {fused} sums of products fused")


if args.tiny:
    from tiny import tiny

    make, backend, size = (lambda: tiny("flux")), "eager", 16
else:
    backend, size = "inductor", 1024

    def make() -> FluxPipeline:
        return FluxPipeline.from_pretrained(args.model, dtype=torch.bfloat16).to("cuda")


call = {"num_inference_steps": 8, "height": size, "width": size, "output_type": "latent"}
found = {}
for passes in ([], [fuse_modulation]):
    pipe = hicache_compile(make(), HiCache(interval=3), backend=backend, program_passes=passes)
    found[len(passes)] = pipe("a lighthouse", generator=torch.Generator().manual_seed(0), **call).images
    counts = {name: len(graph.graph.nodes) for name, graph in pipe.transformer.graphs.items()}
    print(f"{len(passes)} own passes: {pipe.transformer.report().decisions()}  nodes {counts}")
print(f"relative difference {((found[1] - found[0]).norm() / found[0].norm()):.1e}")
