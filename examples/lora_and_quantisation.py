"""A LoRA and int8 weights under the cache: load, scale and unload as ever. Needs peft and torchao.

python examples/lora_and_quantisation.py --lora XLabs-AI/flux-RealismLora
python examples/lora_and_quantisation.py --tiny
"""

import argparse

import torch
from diffusers import FluxPipeline
from torchao.quantization import Int8WeightOnlyConfig, quantize_

from hicache_compile import HiCache, hicache_compile

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--model", default="black-forest-labs/FLUX.1-dev", help="name on the hub, or a folder")
parser.add_argument("--lora", default="XLabs-AI/flux-RealismLora", help="name on the hub, or a file")
parser.add_argument("--prompt", default="a lighthouse at dusk")
parser.add_argument("--tiny", action="store_true", help="random weights on a CPU, nothing is downloaded")
args = parser.parse_args()

if args.tiny:
    from tiny import tiny, tiny_lora

    pipe, backend, size, args.lora = tiny("flux"), "eager", 16, tiny_lora()
else:
    pipe = FluxPipeline.from_pretrained(args.model, dtype=torch.bfloat16).to("cuda")
    backend, size = "inductor", 1024

quantize_(pipe.transformer, Int8WeightOnlyConfig())  # before it is compiled
pipe = hicache_compile(pipe, HiCache(interval=4), backend=backend)


def make(what: str) -> torch.Tensor:
    call = {"num_inference_steps": 28, "height": size, "width": size, "output_type": "latent"}
    latents = pipe(args.prompt, generator=torch.Generator().manual_seed(0), **call).images
    report = pipe.transformer.report()
    print(f"{report.decisions()}  {report.flops_speedup:.2f} times fewer FLOPs  {what}")
    return latents


plain = make("int8")
pipe.load_lora_weights(args.lora, adapter_name="style")  # another graph: captured again, as torch.compile does
for scale in (1.0, 0.5):
    pipe.set_adapters(["style"], [scale])
    change = (make(f"int8 and LoRA at {scale}") - plain).norm() / plain.norm()
    print(f"the picture changed by {change:.3f}")
pipe.unload_lora_weights()
again = make("unloaded")
print(f"as it was: {torch.allclose(again, plain, atol=1e-5)}")
