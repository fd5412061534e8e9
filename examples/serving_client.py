"""A client of `hicache serve`: OpenAI's own, with the cache of each request in `extra_body`. Needs openai.

hicache serve FLUX.1-dev --policy HiCache --steps 28 &
python examples/serving_client.py --url http://127.0.0.1:8000
python examples/serving_client.py --tiny        starts a server in this process; needs the extra `serve`
"""

import argparse
import base64
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

from openai import OpenAI

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--url", default="http://127.0.0.1:8000")
parser.add_argument("--key", default="any", help="one of --api-keys, where the service has keys")
parser.add_argument("--prompt", default="a lighthouse at dusk")
parser.add_argument("--tiny", action="store_true", help="random weights on a CPU, nothing is downloaded")
args = parser.parse_args()

with ExitStack() as stack:
    if args.tiny:
        from tiny_server import serving

        args.url = stack.enter_context(serving("flux"))
    client = OpenAI(base_url=f"{args.url}/v1", api_key=args.key)
    print("serves", client.models.list().data[0].id)

    def make(cache):
        more = {"seed": 7, "num_inference_steps": 12, "cache": cache}
        return client.images.generate(prompt=args.prompt, extra_body=more)

    caches = ["off", "HiCache", {"preset": "TaylorSeer", "interval": 3, "warmup": 2}]
    with ThreadPoolExecutor() as pool:  # at once: rows of one call of the denoiser, each under its own policy
        answers = list(pool.map(make, caches))
    for number, (cache, answer) in enumerate(zip(caches, answers, strict=True)):
        facts = answer.model_extra["hicache"]
        print(f"{facts['decisions'][0]}  {facts['seconds'][0]:.2f} s  {cache}")
        Path(f"serving_{number}.png").write_bytes(base64.b64decode(answer.data[0].b64_json))

    for event in client.images.generate(prompt=args.prompt, stream=True, extra_body={"num_inference_steps": 12}):
        print(getattr(event, "decision", ""), end="", flush=True)  # a letter for each step as it is made
    print("  streamed")
