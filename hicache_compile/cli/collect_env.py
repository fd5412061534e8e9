"""``hicache collect-env``: a case in one archive for a bug report, and the case of an archive run again."""

from __future__ import annotations

import shlex
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from hicache_compile.cli import shared
from hicache_compile.errors import HiCacheError, one_line, one_of

if TYPE_CHECKING:
    from hicache_compile.collect_env import Case, Outcome

NAME = "collect-env"


def collect_env(
    model: Annotated[
        str | None, typer.Argument(help="demo, a known name, a model or pipeline folder, a config.json.")
    ] = None,
    policy: Annotated[str | None, typer.Option(help="A preset name, a .json file or JSON.")] = None,
    out: Annotated[Path, typer.Option(help="The archive to write.")] = Path("case.zip"),
    rerun: Annotated[Path | None, typer.Option(help="Run the case of this archive again instead.")] = None,
    steps: shared.Steps = 8,
    height: shared.Height = None,
    width: shared.WidthOfSquare = None,
    frames: shared.Frames = None,
    batch: shared.Batch = 1,
    dtype: Annotated[str | None, typer.Option(help="float32, float16 or bfloat16.")] = None,
    backend: shared.Backend = "inductor",
    memory_budget: Annotated[str | None, typer.Option(help='Bytes of anchors, like "4GiB".')] = None,
    offload: Annotated[bool, typer.Option(help="Keep the anchors on the CPU.")] = False,
    anchors: shared.Anchors = None,
    sparsity: shared.Sparsity = None,
    json: shared.AsJson = False,
) -> None:
    """Sample briefly with random inputs and write what a bug report needs into one archive; no weights, no secrets.

    --rerun makes the model of an archive again, with random weights, and tells whether the same happens. It imports the
    class that the archive names: run archives of people you trust.
    """
    if (model is None) == (rerun is None):
        raise HiCacheError(f"{NAME}.model: must be given (demo, or a folder), or else --rerun with an archive")
    if rerun is not None:
        _run_again(rerun, json)
        return
    assert model is not None  # checked above
    if policy is None:
        raise HiCacheError(f"{NAME}.policy: must be given: a preset name, a .json file or JSON")
    from hicache_compile.architectures import Request
    from hicache_compile.collect_env.subject import FRAMES, HEIGHT, TEXT_TOKENS
    from hicache_compile.policy.sparsity.chipmunk import as_sparsity

    request = Request(height or HEIGHT, width or height or HEIGHT, frames or FRAMES, batch, TEXT_TOKENS)
    given = {"memory_budget": memory_budget, "offload": offload, "anchors": anchors, "sparsity": as_sparsity(sparsity)}
    options = {"backend": backend, **{name: value for name, value in given.items() if value}}
    case = _collected(model, policy, out, request, dtype, steps, options)
    if json:
        data = {"path": str(out), "failure": case.failure, "decisions": case.decisions, "notes": case.notes}
        shared.print_json(data)
    else:
        _print_case(case, out)


def _collected(
    model: str, policy: str, out: Path, request: Any, dtype: str | None, steps: int, options: dict[str, Any]
) -> Case:
    """The case of a short run, which is written to ``out``."""
    from hicache_compile.backends import BACKENDS
    from hicache_compile.collect_env import collect
    from hicache_compile.collect_env.sampling import attempt
    from hicache_compile.collect_env.subject import open_subject
    from hicache_compile.generate.pipelines import DTYPES
    from hicache_compile.policy.files import check_writable
    from hicache_compile.policy.json_codec import as_policy
    from hicache_compile.policy.run import DEFAULT_CONTEXT

    one_of(NAME, "backend", options["backend"], BACKENDS)
    if dtype is not None:
        one_of(NAME, "dtype", dtype, DTYPES)
    wanted = as_policy(policy)
    check_writable(out)
    module, call = open_subject(model, None if dtype is None else DTYPES[dtype], request)
    made = attempt(module, wanted, options, {DEFAULT_CONTEXT: call}, steps)
    more: dict[str, Any] = {} if made.compiled is not None else {"policy": wanted, "options": options}
    return collect(made.compiled or module, out, made.error, inputs=call[1], num_steps=steps, **more)


def _run_again(path: Path, json: bool) -> None:
    from hicache_compile.collect_env import rerun

    outcome = rerun(path)
    if json:
        shared.print_json({one.name: getattr(outcome, one.name) for one in fields(outcome) if one.name != "error"})
    else:
        _print_outcome(outcome)
    raise typer.Exit(0 if outcome.same else 1)


def _print_case(case: Case, out: Path) -> None:
    console = Console(markup=False, highlight=False)
    console.print(shared.facts(_happened(case.failure, case.decisions)))
    for note in case.notes:
        console.print(one_line(note), style="yellow")
    console.print(f"wrote {out}; run it again with: hicache {NAME} --rerun {shlex.quote(str(out))}", soft_wrap=True)


def _print_outcome(outcome: Outcome) -> None:
    console = Console(markup=False, highlight=False)
    recorded = _happened(outcome.recorded, outcome.recorded_decisions)
    found = _happened(outcome.found, outcome.found_decisions)
    rows = [(f"recorded: {name}", what) for name, what in recorded] + [(f"here: {name}", what) for name, what in found]
    console.print(shared.facts(rows))
    for note in outcome.notes:
        console.print(one_line(note), style="yellow")
    console.print(
        "the same happens" if outcome.same else "something else happens", style="green" if outcome.same else "red"
    )


def _happened(failed: dict[str, Any] | None, decisions: dict[str, str]) -> list[tuple[str, str]]:
    rows = [(f"decisions, {context}", letters) for context, letters in decisions.items()]
    if failed is None:
        return rows
    where = "" if failed["step"] is None else f" in step {failed['step']}"
    return [(f"failure{where}", one_line(f"{failed['type']}: {failed['message']}")), *rows]
