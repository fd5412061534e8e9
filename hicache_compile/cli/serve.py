"""``hicache serve``: a pipeline behind the API of OpenAI's image clients, with a page to try it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hicache_compile.cli import served_policy, shared
from hicache_compile.cli.call_options import NOTHING_GIVEN, Call, with_call_options
from hicache_compile.cli.ray_option import Ray
from hicache_compile.errors import HiCacheError

if TYPE_CHECKING:
    from hicache_compile.serving.http import Service, Settings
    from hicache_compile.serving.http.source import Source

DEMO = "demo"  # the emoji model of the package


@with_call_options
def serve(
    model: Annotated[str, typer.Argument(help="Folder of a diffusers pipeline (save_pretrained), or demo.")],
    policy: Annotated[
        str | None,
        typer.Option(help="A preset name, a .json file or JSON; default: HiCache. Requests may bring others."),
    ] = None,
    pack: Annotated[
        Path | None, typer.Option(help="File of hicache eval --pack, in place of --policy; needs a promise.")
    ] = None,
    max_error: Annotated[
        float | None, typer.Option(help="Promise: the fastest policy of the pack that keeps it.")
    ] = None,
    max_seconds: Annotated[float | None, typer.Option(help="Promise: the most accurate as fast as that.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen at; 0.0.0.0 is every one.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    name: Annotated[str | None, typer.Option(help="Of the model in the API; default: the folder's.")] = None,
    api_keys: Annotated[
        Path | None, typer.Option(help="File of keys, one a line; without it anybody is served.")
    ] = None,
    fixed_policy: Annotated[
        bool, typer.Option("--fixed-policy", help="Requests choose it, off, or by promise.")
    ] = False,
    steps: Annotated[
        int | None,
        typer.Option(min=1, max=shared.MOST, help="Of a request that does not say; default: the pack's, or 28."),
    ] = None,
    call: Call = NOTHING_GIVEN,
    sizes: Annotated[list[str] | None, typer.Option(help="WxH that may be asked for; several; default: any.")] = None,
    max_batch: Annotated[int, typer.Option(min=1, max=shared.MOST, help="Rows of a call.")] = 8,
    max_wait: Annotated[float, typer.Option(min=0, max=60, help="Seconds that full rows wait for company.")] = 0.02,
    max_requests: Annotated[int, typer.Option(min=1, max=shared.MOST, help="Pictures in the making at a time.")] = 32,
    queue: Annotated[int, typer.Option(min=1, help="Pictures accepted and not yet made; beyond: 429.")] = 64,
    most_n: Annotated[int, typer.Option(min=1, help="Pictures of a request.")] = 10,
    most_steps: Annotated[int, typer.Option(min=1, max=shared.MOST, help="Steps of a request.")] = 200,
    most_edge: Annotated[int, typer.Option(min=1, max=shared.MOST_PIXELS, help="Pixels of an edge.")] = 2048,
    most_frames: Annotated[int, typer.Option(min=1, max=shared.MOST, help="Frames of a clip.")] = 129,
    most_prompt: Annotated[int, typer.Option(min=1, help="Characters of a prompt.")] = 4000,
    most_body: Annotated[int, typer.Option(min=1, help="Bytes of a request.")] = 2**20,
    timeout: Annotated[float, typer.Option(help="Seconds of a request; beyond: 504.")] = 600,
    read_timeout: Annotated[float, typer.Option(help="Seconds for a request to arrive; beyond: 408.")] = 20,
    grace: Annotated[float, typer.Option(min=0, help="Seconds to finish what runs after Ctrl-C.")] = 30,
    warm: Annotated[bool, typer.Option("--warm-up/--no-warm-up", help="Compile before the first request.")] = True,
    backend: shared.Backend = "inductor",
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...; default: a GPU if any.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, float16 or bfloat16.")] = None,
    ray: Ray = None,
    replicas: Annotated[str, typer.Option(help="With --ray, N Batchers there; LEAST:MOST as work demands.")] = "1",
    json: shared.AsJson = False,
) -> None:
    """Serve pictures over HTTP as OpenAI's clients ask for them; many requests share the calls of one model.

    Ctrl-C lets what runs finish.
    """
    from hicache_compile.serving.http import Limits, Settings
    from hicache_compile.serving.http.keys import read_keys
    from hicache_compile.serving.http.source import Source

    call = {**_demo_call(), **call} if model == DEMO else call
    limits = Limits(
        body_bytes=most_body,
        prompt=most_prompt,
        n=min(most_n, queue),
        steps=most_steps,
        frames=most_frames,
        edge=most_edge,
        sizes=tuple(map(_size, sizes or ())),
        queue=queue,
        seconds=timeout,
        body_seconds=read_timeout,
    )
    wanted = served_policy.of_options(policy, pack, max_error, max_seconds)
    settings = Settings(
        model=name or (model if model == DEMO else Path(model).resolve().name),
        policy=wanted.policy,
        policy_name=wanted.name,
        steps=wanted.steps(steps),
        size=_size_of(call),
        keys=read_keys(api_keys) if api_keys else (),
        call={name: value for name, value in call.items() if name not in ("height", "width")},
        fixed_policy=fixed_policy,
        limits=limits,
    )
    source = Source(
        folder=_folder(model),
        policy=wanted.policy,
        pack=wanted.pack,
        **wanted.promise,
        backend=backend,
        device=device or "",
        dtype=dtype or "",
        max_batch=max_batch,
        max_wait=max_wait,
        max_requests=max_requests,
    )
    _run(source, settings, (host, port), grace=grace, warm=warm, ray=ray, replicas=_counts(replicas), json=json)


def _run(
    source: Source,
    settings: Settings,
    address: tuple[str, int],
    *,
    grace: float,
    warm: bool,
    ray: str | None,
    replicas: tuple[int, int],
    json: bool,
) -> None:
    """Open the source, listen, and close it all again, whatever ends it."""
    from hicache_compile.serving.http import create_app, server
    from hicache_compile.serving.http.source import open_service

    with ExitStack() as opened:
        listening = opened.enter_context(server.bind(*address))
        server.end_at_sigterm()
        service = _open(partial(open_service, source, settings, warm), ray, replicas)
        opened.callback(service.batcher.close)
        app = create_app(service, settings)
        rows = _facts(source, settings, service, server.address_of(listening), ray, replicas)
        running = server.made(app, settings.limits, grace, lambda: _print(rows, json))
        server.log_requests()
        try:
            running.run([listening])
        except KeyboardInterrupt:
            raise KeyboardInterrupt("requests that were taken are answered") from None


def _open(opener: Callable[[], Service], ray: str | None, replicas: tuple[int, int]) -> Service:
    if ray is None:
        return opener()
    from hicache_compile.serving.ray_serve import open_replicas

    return open_replicas(opener, ray, *replicas)


def _facts(
    source: Source, settings: Settings, service: Service, address: str, ray: str | None, replicas: tuple[int, int]
) -> dict[str, str]:
    limits = settings.limits
    batches = f"{source.max_batch} rows a call, full ones wait {1000 * source.max_wait:g} ms"
    sizes = ", ".join(map(str, limits.sizes)) or f"any up to {limits.edge}, multiples of {service.abilities.multiple}"
    return {
        "address": address,
        "model": f"{settings.model} ({service.abilities.pipeline}, {source.backend})",
        "policy": served_policy.described(source, settings),
        "batches": batches
        if ray is None
        else f"{batches}; on Ray, {' to '.join(map(str, sorted({*replicas})))} replicas",
        "keys": f"{len(settings.keys)} in use" if settings.keys else "none: anybody is served",
        "sizes": sizes,
        "limits": f"n {limits.n}, steps {limits.steps}, prompt {limits.prompt} characters, queue {limits.queue} "
        f"pictures, {limits.seconds:g} s a request",
    }


def _print(rows: dict[str, str], json: bool) -> None:
    from rich.console import Console

    if json:
        shared.print_json(rows)
    else:
        console = Console(markup=False, highlight=False, width=min(100, shutil.get_terminal_size().columns))
        console.print(shared.facts(list(rows.items())))


def _folder(model: str) -> Path:
    if model != DEMO:
        return Path(model)
    from importlib.resources import files

    return Path(str(files("hicache_compile.demo.emoji").joinpath("emoji-pipeline")))


def _demo_call() -> dict[str, Any]:
    from hicache_compile.demo.emoji import GUIDANCE, SIZE, TOKENS

    guided = {"negative_prompt": "", "true_cfg_scale": GUIDANCE}
    return {"height": SIZE, "width": SIZE, "max_sequence_length": TOKENS, **guided}


def _counts(text: str) -> tuple[int, int]:
    """The least and the most replicas."""
    least, _, most = text.partition(":")
    counts = [int(part) if part.isdecimal() and len(part) < 5 else 0 for part in (least, most or least)]
    if not 1 <= counts[0] <= counts[1]:
        raise HiCacheError(f"serve.replicas = {text!r}: must be a number of 1 or more, or LEAST:MOST, like 1:4")
    return counts[0], counts[1]


def _size(text: str) -> Any:
    from hicache_compile.serving.http.settings import Size

    size = Size.parse(text)
    if size is None:
        raise HiCacheError(f"serve.sizes = {text!r}: must be WIDTHxHEIGHT, like '1024x768'")
    return size


def _size_of(call: Call) -> Any:
    """The size that ``--height`` and ``--width`` give; one alone is a square's."""
    from hicache_compile.serving.http.settings import Size

    edges = [call.get("width", call.get("height")), call.get("height", call.get("width"))]
    return None if edges[0] is None else Size(*edges)
