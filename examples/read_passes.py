"""What the passes do to a graph: each level as Python that runs, and what changes when a pass is left out.

python examples/read_passes.py --out graphs
python examples/read_passes.py --tiny
"""

import argparse
from collections import Counter
from pathlib import Path

import torch
from diffusers import FluxPipeline

from hicache_compile import HiCache, hicache_compile
from hicache_compile.passes import PASSES, rewrite

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--model", default="black-forest-labs/FLUX.1-dev", help="name on the hub, or a folder")
parser.add_argument("--out", type=Path, default=Path("graphs"), help="folder for the graphs")
parser.add_argument("--tiny", action="store_true", help="random weights on a CPU, nothing is downloaded")
args = parser.parse_args()

if args.tiny:
    from tiny import tiny

    pipe, size = tiny("flux"), 16
else:
    pipe, size = FluxPipeline.from_pretrained(args.model, dtype=torch.bfloat16).to("cuda"), 1024

policy = HiCache(interval=4, scope="block")
pipe = hicache_compile(pipe, policy, backend="eager")
pipe("a lighthouse at dusk", num_inference_steps=8, height=size, width=size)
print(pipe.transformer.report().decisions())

for name, graph in pipe.transformer.graphs.items():  # captured, guarded, and the programs made of it
    calls = [node for node in graph.graph.nodes if node.op == "call_function"]
    operators = Counter(getattr(node.target, "__name__", "") for node in calls)
    common = ", ".join(f"{count} {operator}" for operator, count in operators.most_common(4))
    print(f"{name:>9}: {operators.total():4} operators: {common}")
pipe.transformer.dump(args.out)  # the same as files, with index.html
print(f"written to {args.out}: {', '.join(sorted(path.name for path in args.out.glob('*.py')))}")

captured = pipe.transformer.graphs["captured"]
whole = rewrite(captured, policy.layout)
for record in whole.records:
    print(f"pass {record.name!r}: {record.rewrites} rewrites, {record.refused} refused, {record.seconds:.3f} s")
print("not needed here:", ", ".join(step.name for step in PASSES if not step.applies(policy.layout)))

without = rewrite(captured, policy.layout, without=["collapse"])
print(f"{len(whole.sites)} site with 'collapse', {len(without.sites)} sites without it")
