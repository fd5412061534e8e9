"""How a batch of rows of several runs is computed: rows that do the same run as one program, by page."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import Any

import torch

from hicache_compile.passes.analysis.batch import Batch, NotByRowError
from hicache_compile.passes.graph.choices import Choice
from hicache_compile.passes.graph.inputs import MEASURED, StateInput, memory
from hicache_compile.passes.lowering.pages import ROWS
from hicache_compile.runtime.compiled_graph import CompiledGraph
from hicache_compile.runtime.deciders.base import Ask, Asking, Decision, Inputs
from hicache_compile.runtime.places import same_place
from hicache_compile.runtime.program_set import Program
from hicache_compile.runtime.replay.dispatch_modes import brought_back
from hicache_compile.runtime.replay.parameters import Parameters
from hicache_compile.runtime.rows.gather import in_order, rows_of
from hicache_compile.runtime.rows.independence import check_apart
from hicache_compile.runtime.rows.part import Part, begin, check, find_anchors
from hicache_compile.runtime.rows.row import Row
from hicache_compile.runtime.step import Step


def lower(graph: CompiledGraph, rows: Sequence[Row], pool: Hashable) -> None:
    """Lower what the first step of each row needs; ``pool``: see ``RowsStep``.

    Raises:
        NotByRowError: see ``compute``.
    """
    batch = graph.batch
    capacity = graph.session.shared.pools.capacity if pool is None else len(rows)
    for row in rows:
        programs = graph.programs(graph.layout(row.step.context.policy, row.step, {})[0])
        check(graph, programs, batch)
        for choice in programs.at_start(row.step.uncached):
            programs.paged(choice, batch, capacity, graph.options.backend, graph.options.mode)


def compute(
    graph: CompiledGraph,
    step: Step,
    rows: Sequence[Row],
    inputs: Sequence[Any],
    parameters: Parameters,
    pool: Hashable,
) -> Any:
    """What the denoiser returns for the batch ``inputs``; ``pool``: see ``RowsStep``.

    Raises:
        NotByRowError: the rows cannot be told apart.
    """
    batch = graph.batch
    if len(step.graphs) > 1:
        raise NotByRowError("the denoiser is several graphs, and what is between them is Python")
    if any(inputs[place].shape[dim] != len(rows) for place, dim in batch.inputs.items()):
        raise NotByRowError(f"an input has no row for each of the {len(rows)} samples")
    bindings = graph.bindings(inputs)
    parts = [begin(graph, row, batch, bindings) for row in rows]
    ranks = parts[0].live.programs.rewrite.ranks
    with same_place(ranks, rows[0].step, f"{len(rows)} rows", communicates=True):
        sizes = (len(rows), *bindings.values())
        if sizes not in graph.by_row:
            batch.check_sizes(len(rows), bindings)
            if not graph.by_row:
                check_apart(graph.captured, batch, inputs, len(rows), ranks)
            graph.by_row.add(sizes)
        find_anchors(graph, parts, parameters, pool)
        made = _Made(graph, batch, step, inputs, parts)
        try:
            made.decide()
            outputs = made.finish()
        except Exception:
            for part in parts:
                part.put_back()
            raise
    for part in parts:
        if part.storage is not None:
            part.storage.next_step = part.row.step.index + 1
    return outputs


class _Made:
    """One call under way.

    Args:
        inputs: of the whole batch.
        parts: its rows.
    """

    def __init__(
        self, graph: CompiledGraph, batch: Batch, step: Step, inputs: Sequence[Any], parts: Sequence[Part]
    ) -> None:
        self.graph, self.batch, self.step, self.inputs, self.parts = graph, batch, step, inputs, parts
        self._handed: list[tuple[list[int], Program, Sequence[torch.Tensor]]] = []  # by probes, of which rows

    def decide(self) -> None:
        """Decide for each row, running probes for all rows that ask for the same at once."""
        asking: dict[int, Asking] = {}
        asks: dict[int, Ask] = {}

        def go_on(number: int, measured: list[Any] | None) -> None:
            try:
                asks[number] = asking[number].send(measured)  # type: ignore[arg-type]  # None starts a generator
            except StopIteration as end:
                asks.pop(number, None)
                self.parts[number].decision = end.value

        for number, part in enumerate(self.parts):
            if part.storage is None:
                continue
            decided = part.decider.decide(part.row.step.index, part.row.step.forced)
            if isinstance(decided, Decision):
                part.decision = decided
            else:
                asking[number] = decided
                go_on(number, None)
        while asks:
            for numbers in self._alike(list(asks), lambda number: asks[number].probe):
                first = asks[numbers[0]]
                program, values = self._run(first.probe, numbers, {})
                self._handed.append((numbers, program, values))
                reading = [number for number in numbers if asks[number].reads]
                found = dict(zip(reading, self._measured(reading, first.guard), strict=True))
                for number in numbers:
                    go_on(number, found.get(number, []))

    def finish(self) -> Any:
        """Run the programs that end the step; what all rows return, in the order of the batch."""
        results = []
        groups = self._alike(range(len(self.parts)), lambda number: self.parts[number].decision.choice)
        for numbers in groups:
            choice = self.parts[numbers[0]].decision.choice
            _, outputs = self._run(choice, numbers, self._data(numbers))
            results.append(outputs)
        for numbers in groups:
            self._record(numbers)
        return results[0] if len(groups) == 1 else in_order(groups, results, self.batch)

    def _alike(self, numbers: Iterable[int], choice: Any) -> list[list[int]]:
        groups: dict[Hashable, list[int]] = {}
        for number in numbers:
            groups.setdefault(self.parts[number].alike(choice(number)), []).append(number)
        return list(groups.values())

    def _data(self, numbers: Sequence[int]) -> Inputs:
        """Weights and positions ``[B, ...]`` of rows that run as one program."""
        each: list[Inputs] = []
        for part in (self.parts[number] for number in numbers):
            if part.storage is None:
                return {}
            step, programs = part.row.step, part.live.programs
            step.syncs += part.storage.prepare(part.decision, step.index, part.live.programs.rewrite.ranks)
            device = part.storage.tensors[0].device
            each.append(part.decider.inputs(step.index, part.decision, device, programs.weights_dtype))
        return {state: torch.stack([inputs[state] for inputs in each]) for state in each[0]}

    def _run(self, choice: Choice, numbers: list[int], data: Inputs) -> tuple[Program, Any]:
        first, options = self.parts[numbers[0]], self.graph.options
        capacity = first.pool.capacity if first.pool is not None else 1
        program = first.live.programs.paged(choice, self.batch, capacity, options.backend, options.mode)
        given = {**data, ROWS: self._pages(numbers)} if first.pool is not None else dict(data)
        arguments = [
            rows_of(self.inputs[place], place, numbers, self.batch, len(self.parts)) for place in program.inputs
        ]
        for state, place in zip(program.state, program.kept, strict=True):
            if place >= 0:
                assert first.pool is not None
                arguments.append(first.pool.tensors[place])
            else:
                handed = state in program.rows
                arguments.append(self._handed_over(state, program.rows[state], numbers) if handed else given[state])
        if not self.step.modes:
            return program, program.run(*arguments)
        with brought_back(self.step.modes):
            return program, program.run(*arguments)

    def _pages(self, numbers: Sequence[int]) -> torch.Tensor:
        rings = [part.storage for part in (self.parts[number] for number in numbers)]
        places = [each.page.index for each in rings if each is not None and each.page is not None]
        assert rings[0] is not None
        return self.graph.session.shared.pools.rows(tuple(places), rings[0].tensors[0].device)

    def _handed_over(self, state: StateInput, dim: int | None, numbers: list[int]) -> torch.Tensor:
        """What probes made for later programs; ``dim``: of its rows."""
        parts = []
        for number in numbers:
            of, program, values = next(
                entry for entry in self._handed if number in entry[0] and state in entry[1].returns
            )
            value = values[program.returns.index(state)]
            if dim is None or of == numbers:
                return value
            parts.append(value.narrow(dim, of.index(number), 1))
        return torch.cat(parts, dim or 0)

    def _measured(self, numbers: Sequence[int], guard: int) -> list[list[Any]]:
        """What ``guard`` measured of each of the rows: read in one go."""
        if not numbers:
            return []
        parts = [self.parts[number] for number in numbers]
        for part in {id(part.row.session): part for part in parts}.values():
            part.row.step.syncs += 1
        pool, first = parts[0].pool, parts[0].live.programs
        assert pool is not None
        kept = pool.tensors[first.place[memory(MEASURED, guard)]]
        found: list[list[Any]] = kept.index_select(0, self._pages(numbers)).tolist()
        return found

    def _record(self, numbers: Sequence[int]) -> None:
        """Each row's decider learns what its step was; what guards read late is read for all rows at once."""
        late: dict[int, dict[int, list[Any]]] = {}
        parts = {number: self.parts[number] for number in numbers}
        for guard in dict.fromkeys(guard for part in parts.values() for guard in part.decision.reads):
            asked = [number for number, part in parts.items() if guard in part.decision.reads]
            for number, found in zip(asked, self._measured(asked, guard), strict=True):
                late.setdefault(number, {})[guard] = found
        for number, part in parts.items():
            step = part.row.step
            if part.storage is None:
                step.choices.append((self.graph, Choice.PLAIN, 0.0))
                continue
            part.storage.keep(part.decision, step.index)
            part.decider.after(step.index, part.decision, late.get(number, {}))
            step.record(self.graph, part.decision)
