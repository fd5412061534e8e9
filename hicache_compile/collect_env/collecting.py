"""``collect``: everything that is known of a case, in one archive."""

from __future__ import annotations

import tempfile
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass
from json import loads
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from hicache_compile.collect_env.archive import Case, write
from hicache_compile.collect_env.environment import environment
from hicache_compile.collect_env.model import describe
from hicache_compile.collect_env.seen_calls import SeenCall, call_data, newest_contexts, of_error, of_newest_run
from hicache_compile.errors import HiCacheError
from hicache_compile.frontend.denoiser import CompiledDenoiser
from hicache_compile.frontend.handle import Handle
from hicache_compile.frontend.pipeline import is_pipeline
from hicache_compile.policy.json_codec import as_policy, to_dict
from hicache_compile.policy.policy import Policy
from hicache_compile.policy.run import DEFAULT_CONTEXT
from hicache_compile.runtime.options import CompileOptions
from hicache_compile.runtime.replay.capture import as_call

Found = TypeVar("Found")
STEPS = 8  # of a run whose length is not known


def collect(
    model: Any,
    path: str | Path,
    error: BaseException | None = None,
    *,
    policy: Any = None,
    options: Mapping[str, Any] | None = None,
    inputs: Mapping[str, Any] | Sequence[Any] | None = None,
    num_steps: int | None = None,
    config: Mapping[str, Any] | None = None,
) -> Case:
    """Write the archive ``path`` of a compiled denoiser, or of one that could not be compiled.

    It holds versions, the policy, the report, ``explain()``, the dump, the model's class and configuration, the shapes,
    dtypes and strides of its inputs, and the traceback; no weights, no contents of inputs, no secrets.

    Args:
        model: what ``hicache_compile`` returned, a pipeline with it, or the handle that ``inspect`` returns; where
            ``hicache_compile`` raised, the module it was given.
        error: what the run or the compilation raised, with its traceback.
        policy, options: what ``hicache_compile`` was given, where ``model`` is not compiled.
        inputs: the arguments of one call, by name or in order; by default those of the call that raised ``error``, or
            of a call of the newest run.
        num_steps: of the run; by default what is known of it.
        config: the arguments the model's class is made with, where its attributes do not say.

    Raises:
        HiCacheError: there is no denoiser in ``model``, or ``path`` cannot be written.
    """
    compiled, module = _parts(model, error)
    seen = of_error(error, compiled) if error is not None else None
    calls = _calls(compiled, seen, inputs)
    notes: list[str] = [] if calls else ["the arguments of a call are not known: give them to collect(..., inputs=...)"]
    texts: dict[str, str] = {} if error is None else {"traceback.txt": "".join(traceback.format_exception(error))}
    report = None
    if compiled is not None:
        report = _tried("report()", lambda: loads(compiled.report().to_json()), notes)
        texts |= _tried("dump()", lambda: _dumped(compiled), notes) or {}
    decisions = _decisions(compiled, report) if compiled is not None and report is not None else {}
    described = None if module is None else describe(module, config)
    case = Case(
        environment=environment(),
        policy=_tried("policy", lambda: _policy(compiled, policy), notes),
        options=_options(compiled) if compiled is not None else _plain(options or {}),
        model=described,
        inputs=calls,
        num_steps=num_steps or _steps(seen, decisions),
        decisions=decisions,
        failure=None if error is None else failure(error, seen),
        report=report,
        notes=notes,
        texts=texts,
    )
    write(path, case)
    return case


def failure(error: BaseException, seen: SeenCall | None) -> dict[str, Any]:
    """``error`` as data, and the step and context it happened in."""
    step, context = (seen.step, seen.context) if seen is not None else (None, None)
    name = f"{type(error).__module__}.{type(error).__qualname__}".removeprefix("builtins.")
    return {"type": name, "message": str(error), "step": step, "context": context}


def _parts(model: Any, error: BaseException | None) -> tuple[Handle | None, nn.Module | None]:
    """The compiled denoiser, if there is one, and the module that it was made of, if that is known."""
    if is_pipeline(model):
        model = _of_pipeline(model, error)
    if isinstance(model, Handle):
        return model, model._model
    if isinstance(model, nn.Module):
        return None, model
    raise HiCacheError(
        f"collect.model = {type(model).__name__}: must be what hicache_compile returned, a handle of inspect(), or a "
        "torch.nn.Module"
    )


def _of_pipeline(pipeline: Any, error: BaseException | None) -> CompiledDenoiser:
    """That denoiser of ``pipeline`` whose call raised ``error``, or the only one."""
    held = [part for part in pipeline.components.values() if isinstance(part, CompiledDenoiser)]
    seen = of_error(error) if error is not None else None
    found = [part for part in held if seen is not None and part is seen.model] or held
    if len(found) != 1:
        names = [name for name, part in pipeline.components.items() if isinstance(part, CompiledDenoiser)]
        raise HiCacheError(
            f"collect.model = {type(pipeline).__name__}: must have one compiled denoiser, it has "
            f"{', '.join(names) or 'none'}; give collect() that denoiser"
        )
    return found[0]


def _calls(compiled: Handle | None, seen: SeenCall | None, inputs: Any) -> dict[str, Any]:
    """By context, the arguments of a call as data."""
    if inputs is not None:
        return {DEFAULT_CONTEXT: call_data(*as_call(inputs, "collect"))}
    if seen is not None:
        return {seen.context: seen.inputs}
    return {} if compiled is None else {name: one.inputs for name, one in of_newest_run(compiled).items()}


def _decisions(compiled: Handle, report: Mapping[str, Any]) -> dict[str, str]:
    """Of the newest run, by context."""
    history = report["history"]
    return {name: history[name][-1] for name in newest_contexts(compiled) if history.get(name)}


def _steps(seen: SeenCall | None, decisions: Mapping[str, str]) -> int:
    known = seen.num_steps if seen is not None else None
    made = max(map(len, decisions.values()), default=0)
    failed = seen.step + 1 if seen is not None and seen.step is not None else 0
    return known or max(made, failed) or STEPS


def _policy(compiled: Handle | None, policy: Any) -> dict[str, Any]:
    chosen: Policy = as_policy(policy) if compiled is None else compiled.policy
    return to_dict(chosen)


def _options(compiled: Handle) -> dict[str, Any]:
    """The options of ``hicache_compile`` that are not the default; passes of a user's own by name."""
    options = compiled._session.options
    names = [one.name for one in fields(CompileOptions) if one.name not in ("policy", "contract")]
    given = {name: getattr(options, name) for name in names}
    defaults = {one.name: one.default for one in fields(CompileOptions)}
    passes = [getattr(one, "__name__", type(one).__name__) for one in given.pop("program_passes")]
    changed = {name: value for name, value in given.items() if name == "backend" or value != defaults[name]}
    return {**_plain(changed), **({"program_passes": passes} if passes else {})}


def _plain(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options as data for JSON."""
    held = {name: asdict(value) if _is_data(value) else value for name, value in options.items() if name != "policy"}
    return {name: value if isinstance(value, bool | int | dict) or value is None else str(value)
            for name, value in held.items()}  # fmt: skip


def _is_data(value: Any) -> bool:
    return is_dataclass(value) and not isinstance(value, type)


def _dumped(compiled: Handle) -> dict[str, str]:
    """The files of ``dump()`` under ``dump/``, and ``explain.txt``."""
    with tempfile.TemporaryDirectory() as folder:
        compiled.dump(folder)
        files = {one.name: one.read_text(encoding="utf-8") for one in sorted(Path(folder).iterdir()) if one.is_file()}
    return {"explain.txt": files["explain.txt"], **{f"dump/{name}": text for name, text in files.items()}}


def _tried(what: str, make: Callable[[], Found], notes: list[str]) -> Found | None:
    """What ``make`` returns. A case that failed may fail here as well, which belongs into the archive."""
    try:
        return make()
    except Exception as error:
        notes.append(f"{what} is not in the archive: {type(error).__name__}: {error}")
        return None
