"""own passes: functions of a user's, run on each straight-line program when all passes of this package are done.

before   h = gelu(up)
after    h = gelu(up, approximate="tanh")     (or whatever the function makes of it)

Requires   a straight-line program; the function gets a copy of it
Ensures    the same inputs, outputs and writes; an example value and a place on every node; the name of the program in
           ``meta["program"]`` of the module
Refuses    with an error: a function that raises, or leaves something else
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace

from torch import fx

from hicache_compile.errors import HiCacheError
from hicache_compile.passes.graph.choices import Choice
from hicache_compile.passes.graph.examples import Calls, ExampleError, calls_of, update_metadata
from hicache_compile.passes.graph.graphs import copy_graph, placeholders
from hicache_compile.passes.own_contract import check_kept, check_returned
from hicache_compile.passes.transforms.fuel import spend_on_passes
from hicache_compile.passes.work import PassRecord, Work
from hicache_compile.policy.program_passes import ProgramPass, name_of_pass

log = logging.getLogger(__name__)


class OwnPasses:
    """Runs the own passes of a layout, as many as there is fuel for; ``work.records`` has one record for each, whose
    ``rewrites`` is the number of programs it changed.

    Args:
        work: where all other passes are done.
        verify: make sure that the graphs before the programs are left as they are.
    """

    def __init__(self, work: Work, verify: bool) -> None:
        given = work.layout.program_passes
        names = [name_of_pass(own) for own in given]
        allowed = spend_on_passes(work, names)
        self._work = work
        self._first = len(work.records)
        self._given = given[:allowed]
        self._records = work.records
        self._verify = verify
        work.records += [
            PassRecord(name, 0, int(number >= allowed), 0.0, own=True) for number, name in enumerate(names)
        ]

    def __call__(self, choice: Choice, program: fx.GraphModule) -> fx.GraphModule:
        """What they make of ``program``, which is left as it is.

        Raises:
            HiCacheError: one of them raised, or left something that is no program of this choice.
        """
        kept = self._earlier() if self._verify else None
        for number, own in enumerate(self._given):
            before, began = calls_of(program), time.perf_counter()
            record = self._records[self._first + number]
            owner = f"program_passes[{number}] ({record.name}) on program {choice}:"
            program = _run(owner, own, choice, program)
            changed, seconds = calls_of(program) != before, time.perf_counter() - began
            log.debug("%s %s, %.3f s", owner, "changed it" if changed else "changed nothing", seconds)
            self._records[self._first + number] = replace(
                record, rewrites=record.rewrites + changed, seconds=record.seconds + seconds
            )
        if kept != (self._earlier() if self._verify else None):
            raise HiCacheError(
                f"program_passes on program {choice}: changed the captured or the guarded graph; must change the "
                "program alone"
            )
        return program

    def _earlier(self) -> list[Calls]:
        graphs = [self._work.captured, *([self._work.guarded] if self._work.guarded is not None else [])]
        return [calls_of(part) for graph in graphs for part in graph.modules() if isinstance(part, fx.GraphModule)]


def _run(owner: str, own: ProgramPass, choice: Choice, program: fx.GraphModule) -> fx.GraphModule:
    given = copy_graph(program)[0]
    given.meta["program"] = str(choice)
    run: Callable[[fx.GraphModule], object] = own
    try:
        returned = run(given)
    except Exception as error:  # whatever a user's function raises
        raise HiCacheError(f"{owner} raised {type(error).__name__}: {error}") from error
    made = given if returned is None else returned
    check_returned(owner, made)
    assert isinstance(made, fx.GraphModule)
    try:
        update_metadata(made, program)
    except ExampleError as error:
        raise HiCacheError(f"{owner} left a graph that is not valid: {error}") from error
    check_kept(owner, program, made)
    return _as_ours(made, program)


def _as_ours(made: fx.GraphModule, origin: fx.GraphModule) -> fx.GraphModule:
    """``made`` with what a new module or new inputs lose: metadata, and Dynamo's marks on inputs."""
    made.meta = {**made.meta, **origin.meta}
    for mine, theirs in zip(placeholders(made), placeholders(origin), strict=True):
        mine.meta = {**mine.meta, **theirs.meta}
        if hasattr(theirs, "_dynamo_source"):
            mine._dynamo_source = theirs._dynamo_source
    return copy_graph(made)[0]
