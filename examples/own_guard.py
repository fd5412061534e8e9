"""A guard of your own decides by what the graph measures: a probe says what, a rule says when a step may be skipped.

python examples/own_guard.py --threshold 0.3
python examples/own_guard.py --tiny
"""

import argparse
from dataclasses import dataclass

import torch
from diffusers import FluxPipeline

from hicache_compile import Free, Guard, Hermite, Policy, hicache_compile
from hicache_compile.policy.guards import Measure, Probe, Signal

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--model", default="black-forest-labs/FLUX.1-dev", help="name on the hub, or a folder")
parser.add_argument("--prompt", default="a lighthouse at dusk")
parser.add_argument("--threshold", type=float, nargs="+", default=[0.2, 0.5, 1.0])
parser.add_argument("--tiny", action="store_true", help="random weights on a CPU, nothing is downloaded")
args = parser.parse_args()


@dataclass(frozen=True, slots=True, kw_only=True)
class Impatient(Guard):
    """Skip the n-th step in a row while the modulated input is within ``most / n`` of the last computed step's."""

    most: float
    remembers = {"skipped": 0.0}  # noqa: RUF012  # from step to step, one for each run and branch
    numbers_are_data = True  # the rule reads them from p: another threshold compiles nothing

    @property
    def probe(self) -> Probe:
        return Probe(Measure.CHANGE, Signal.MODULATED, every_step=False)

    def ask(self, m, p, s, step, seen):  # written once: floats here, tensors in a cond backend or an export
        return seen[0] * (s.skipped + 1) < p.most, s

    def after_forecast(self, m, p, s, step, seen):
        return s.replace(skipped=s.skipped + 1)

    def after_full(self, m, p, s, step, seen):
        return s.replace(skipped=0.0)


if args.tiny:
    from tiny import tiny

    pipe, backend, size = tiny("flux"), "eager", 16
else:
    pipe = FluxPipeline.from_pretrained(args.model, dtype=torch.bfloat16).to("cuda")
    backend, size = "inductor", 1024

policies = [Policy(Free(), Hermite(2), "stack", guards=(Impatient(most=most),)) for most in args.threshold]
pipe = hicache_compile(pipe, policies[0], backend=backend)
for policy, most in zip(policies, args.threshold, strict=True):
    pipe.transformer.policy = policy
    pipe(args.prompt, num_inference_steps=28, height=size, width=size, generator=torch.Generator().manual_seed(0))
    report = pipe.transformer.report()
    print(f"{report.decisions()}  threshold {most}: {report.flops_speedup:.2f} times fewer FLOPs")
