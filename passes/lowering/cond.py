"""cond: every branch of a step in one graph, ``torch.cond`` choosing, with state as inputs and outputs.

before   full:      y = ...; remember(anchors_0, position, value)
         forecast:  y = ...forecast(anchors_0, weights)...
after    y, next_anchors_0 = cond(computing, full, forecast, [x, ..., position, weights, anchors_0])

Guards     probe, ask and branch: m = probe(...); answer = ask(parameters, m); cond(answer, forecast, rest, [...])
Groups     that are decided each by itself: one cond a site
Phases     of sparse steps: a chain of conds

Requires   the programs of one guarded graph
Ensures    nothing outside a branch is written to; inputs are the denoiser's own, then what decides, position and
           weights, memory and rings; outputs are the denoiser's own, contiguous and no views, then everything that is
           kept (``graph.meta["kept"]``) as it is after the step
Refuses    programs without rings: there is nothing to choose
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import fx

from hicache_compile.errors import HiCacheError
from hicache_compile.operators import guard_state as rules
from hicache_compile.operators import measurements
from hicache_compile.operators.anchors import forecast, full_or_forecast, remember
from hicache_compile.passes.graph import ops
from hicache_compile.passes.graph.choices import Choice
from hicache_compile.passes.graph.graphs import copy_node, fake_mode_of, module_of, output_node, placeholders
from hicache_compile.passes.graph.inputs import KEPT, MEASURED, Role, StateInput, add_input, memory, state_of
from hicache_compile.passes.work import Rewrite
from hicache_compile.policy.guards import Guard, Numbers
from hicache_compile.policy.sparsity.phases import phases_of

Key = int | StateInput  # an input of the denoiser by its place, or of the rewrite
Names = dict[Key, fx.Node]  # every value a part of the graph may read

COMPUTING = StateInput(Role.COMPUTING)
STEP, TABLE, RUN = StateInput(Role.STEP), StateInput(Role.TABLE), StateInput(Role.RUN)
POSITION, WEIGHTS = StateInput(Role.POSITION), StateInput(Role.WEIGHTS)


def parameters(guard: int) -> StateInput:
    return StateInput(Role.PARAMETERS, str(guard))


def remembered(guard: int) -> StateInput:
    return StateInput(Role.REMEMBERED, str(guard))


def computing(choice: Choice) -> StateInput:
    """The predicate of the branch of ``choice``."""
    return StateInput(Role.COMPUTING, "" if choice == Choice.FULL else str(choice))


def branches_of(rewrite: Rewrite) -> list[Choice]:
    """The computed branches of a graph in which the step index decides; the last branch is the forecast."""
    sparsity = rewrite.layout.sparsity
    phases = phases_of(sparsity) if sparsity is not None and rewrite.sparse else ()
    return [Choice.FULL, *(Choice.FULL.with_phases((("", phase),)) for phase in phases)]


def both_branches(rewrite: Rewrite, guards: Sequence[Guard] = ()) -> fx.GraphModule:
    """One graph of all branches of ``rewrite``; ``guards``: those that decide in it.

    Raises:
        HiCacheError: nothing is cached.
    """
    if guards:
        return _Guarded(rewrite, guards).write()
    if rewrite.layout.groups:
        return _PerSite(rewrite).write()
    return _Scheduled(rewrite).write()


class _Graph:
    """The outermost graph: its inputs, a part that makes the outputs, what is kept."""

    rows: tuple[StateInput, ...] = (POSITION, WEIGHTS)  # inputs; where guards decide they are made in the graph

    def __init__(self, rewrite: Rewrite, used: Sequence[fx.GraphModule]) -> None:
        self.rewrite = rewrite
        self.given: Names = {}
        for program in used:
            for node in placeholders(program):
                self.given.setdefault(_key(node), node)
        states = [key for key in self.given if isinstance(key, StateInput)]
        self.kept = sorted((key for key in states if key.role in KEPT), key=lambda key: key.place)
        if not any(key.role is Role.ANCHORS for key in self.kept):
            raise HiCacheError("cond: the policy must cache something to have two branches; nothing is")
        self.like = ops.value(next(self.given[key] for key in self.kept if key.role is Role.ANCHORS))

    def declared(self) -> dict[StateInput, torch.Tensor]:
        """The inputs that decide, with example values."""
        raise NotImplementedError

    def outputs(self, part: _Part) -> list[fx.Node]:
        """What the denoiser returns, then ``part.after`` of everything that is kept."""
        raise NotImplementedError

    def write(self) -> fx.GraphModule:
        graph, names = fx.Graph(), Names()
        for place in sorted(key for key in self.given if isinstance(key, int)):
            names[place] = copy_node(graph, self.given[place], _never)
        with fake_mode_of(self.like), torch.no_grad():
            declared = self.declared()
        for state, example in declared.items():
            names[state] = add_input(graph, state, example)
        for state in (*self.rows, *self.kept):
            if state in self.given and state not in names:
                names[state] = copy_node(graph, self.given[state], _never)
        part = _Part(graph, names)
        graph.output(tuple(self.outputs(part)))
        module = part.module()
        module.meta["kept"] = self.returned()
        return module

    def returned(self) -> list[StateInput]:
        return list(self.kept)


class _Scheduled(_Graph):
    """The step index decides: a chain of conds over the computed branches, the forecast last."""

    def __init__(self, rewrite: Rewrite) -> None:
        self.choices = branches_of(rewrite)
        super().__init__(rewrite, [rewrite.program(choice) for choice in (*self.choices, Choice.FORECAST)])

    def declared(self) -> dict[StateInput, torch.Tensor]:
        return {computing(choice): torch.empty((), dtype=torch.bool) for choice in self.choices}

    def outputs(self, part: _Part) -> list[fx.Node]:
        return self._chain(part, self.choices)

    def _chain(self, part: _Part, choices: Sequence[Choice]) -> list[fx.Node]:
        choice, *others = choices
        predicate = part.names.pop(computing(choice))
        chosen = part.branch(lambda inner: self._end(inner, choice))
        if others:
            rest = part.branch(lambda inner: self._chain(inner, others))
        else:
            rest = part.branch(lambda inner: self._end(inner, Choice.FORECAST))
        names = (str(choice), "rest" if others else str(Choice.FORECAST))
        return part.cond(predicate, chosen, rest, names)

    def _end(self, part: _Part, choice: Choice) -> list[fx.Node]:
        outputs = part.inline(self.rewrite.program(choice))
        return part.owned([*outputs, *(part.names[state] for state in self.kept)])


class _PerSite(_Graph):
    """Groups of sites are decided each by itself: one cond a site, on the predicate of its group."""

    def __init__(self, rewrite: Rewrite) -> None:
        super().__init__(rewrite, [rewrite.guarded])

    def declared(self) -> dict[StateInput, torch.Tensor]:
        return {StateInput(Role.COMPUTING, group): torch.empty((), dtype=torch.bool) for group in self.rewrite.groups}

    def outputs(self, part: _Part) -> list[fx.Node]:
        outputs = part.inline(self.rewrite.guarded, self._site)
        return part.owned([*outputs, *(part.names[state] for state in self.kept)])

    def _site(self, part: _Part, call: fx.Node, env: dict[fx.Node, fx.Node]) -> list[fx.Node]:
        """``call`` as a cond; the rings after it are what later parts read."""
        full, _, operands, carried, rings, position, weights = call.args
        rows = [weights] if isinstance(weights, fx.Node) else list(weights)  # type: ignore[arg-type]  # a list of nodes
        read: list[Any] = [*operands, *(node for node in carried if node is not None), *rings, position, *rows]  # type: ignore[misc,union-attr]
        given = dict.fromkeys(read)
        inner_names: Names = {place: env[node] for place, node in enumerate(given)}
        places = {node: place for place, node in enumerate(given)}
        program = self.rewrite.guarded.get_submodule(str(full.target))  # type: ignore[union-attr]  # a get_attr
        assert isinstance(program, fx.GraphModule)

        def computed(inner: _Part) -> list[fx.Node]:
            mine = {node: inner.names[place] for node, place in places.items()}
            values = dict(zip(placeholders(program), (mine[node] for node in operands), strict=True))  # type: ignore[union-attr]
            slots = inner.run(program, values)
            after = []
            for slot, stream, ring in zip(slots, carried, rings, strict=True):  # type: ignore[arg-type]  # lists
                kept = slot if stream is None else inner.call(torch.sub, slot, mine[stream])
                after.append(inner.remembered(mine[ring], mine[position], kept))
            return inner.owned([*slots, *after])

        def forecast_it(inner: _Part) -> list[fx.Node]:
            mine = {node: inner.names[place] for node, place in places.items()}
            dtypes = call.kwargs.get("dtypes") or [None] * len(rings)  # type: ignore[arg-type]  # a list of nodes
            each = rows * len(rings) if len(rows) == 1 else rows  # type: ignore[arg-type]  # a list of nodes
            slots = []
            for stream, ring, row, dtype in zip(carried, rings, each, dtypes, strict=True):  # type: ignore[arg-type]
                made = inner.call(forecast, mine[ring], mine[row], *(() if dtype is None else (dtype,)))
                slots.append(made if stream is None else inner.call(torch.add, mine[stream], made))
            return inner.owned([*slots, *(mine[ring] for ring in rings)])  # type: ignore[union-attr]  # a list of nodes

        site = _Part(part.graph, inner_names, part.attributes)
        site.origin = part.origin
        predicate = part.names[StateInput(Role.COMPUTING, call.meta["group"])]
        number = sum(node.target is torch.ops.higher_order.cond for node in part.graph.nodes)
        names = (f"full_{number}", f"forecast_{number}")
        made = site.cond(predicate, site.branch(computed), site.branch(forecast_it), names)
        count = len(made) - len(rings)  # type: ignore[arg-type]  # a list of nodes
        for ring, after in zip(rings, made[count:], strict=True):  # type: ignore[arg-type]  # a list of nodes
            part.names[_key(ring)] = env[ring] = after
        return made[:count]


class _Guarded(_Graph):
    """Guards decide in the graph: probe, ask, branch; which branch is taken never reaches the host."""

    rows = ()

    def __init__(self, rewrite: Rewrite, guards: Sequence[Guard]) -> None:
        self.rules = [rules.TensorRule(guard, Numbers) for guard in guards]
        self.stage_of = {stage.guard: stage for stage in rewrite.stages}
        used = [choice for stage in rewrite.stages for choice in (stage.probe, stage.skip)] or [Choice.FORECAST]
        super().__init__(rewrite, [rewrite.programs[choice] for choice in dict.fromkeys([*used, Choice.FULL])])
        self.depth = int(self.like.shape[0])
        self.state = [RUN, *(remembered(n) for n in range(len(guards)))]

    def returned(self) -> list[StateInput]:
        return [*self.kept, *self.state]

    def declared(self) -> dict[StateInput, torch.Tensor]:
        device = self.like.device
        widest = ops.value(self.given[WEIGHTS]).dtype
        made = {
            COMPUTING: torch.empty((), dtype=torch.bool, device=device),
            STEP: torch.empty(1, dtype=torch.float64, device=device),
            TABLE: torch.empty(rules.GAPS**self.depth, self.depth, dtype=widest, device=device),
            RUN: torch.empty(rules.HEAD + self.depth, dtype=torch.float64, device=device),
        }
        for number, rule in enumerate(self.rules):
            for state, length in (
                (parameters(number), len(rule.parameters(None))),
                (remembered(number), len(rule.first_remembered())),
            ):
                made[state] = torch.empty(length, dtype=torch.float64, device=device)
        return made

    def outputs(self, part: _Part) -> list[fx.Node]:
        given = [part.names[parameters(number)] for number in range(len(self.rules))]
        names = part.names
        forced = part.call(rules.starts_forced, names.pop(COMPUTING), names[RUN], names[STEP], *given)
        return self._ask(part, 0, forced, Choice.FORECAST)

    def _ask(self, part: _Part, number: int, forced: fx.Node, skip: Choice) -> list[fx.Node]:
        """Probe, ask guard ``number``, and branch; returns the outputs of the step. ``skip``: what ends it."""
        stage = self.stage_of.get(number)
        if stage is not None:
            part.inline(self.rewrite.programs[stage.probe])
            skip = stage.skip
        names, rule = part.names, self.rules[number]
        measured = part.names[memory(MEASURED, number)] if stage is not None else part.nothing()
        given = (names[parameters(number)], names[remembered(number)], forced, names[STEP], measured)
        answer = part.call(rule.ask, *given)
        names[RUN] = part.call(rules.counted, names[RUN], answer)
        names[remembered(number)] = part.call(rules.remembered_after, answer)
        still = part.call(rules.still_forced, answer)
        forced_key = StateInput(Role.VALUE, "forced")
        names[forced_key] = still
        skipped = part.branch(lambda inner: self._end(inner, number, skip))
        if number + 1 < len(self.rules):
            rest = part.branch(lambda inner: self._ask(inner, number + 1, inner.names[forced_key], skip))
        else:
            rest = part.branch(lambda inner: self._end(inner, number, None))
        return part.cond(part.call(rules.skips, answer), skipped, rest, ("skip", "rest"))

    def _end(self, part: _Part, number: int, skip: Choice | None) -> list[fx.Node]:
        names = part.names
        if skip is None:
            names[POSITION] = part.call(rules.position_of, names[RUN])
        else:
            given = (names[parameters(number)], names[remembered(number)], names[RUN], names[STEP], names[TABLE])
            names[WEIGHTS] = part.call(self.rules[number].weights, *given)
        outputs = part.inline(self.rewrite.programs[skip or Choice.FULL])
        for n, rule in enumerate(self.rules):
            late = memory(MEASURED, n)
            measured = names[late] if n not in self.stage_of and late in part.written else part.nothing()
            after = rule.after_full if skip is None else rule.after_forecast
            names[remembered(n)] = part.call(after, names[parameters(n)], names[remembered(n)], names[STEP], measured)
        if skip is None:
            names[RUN] = part.call(rules.run_after_full, names[RUN], names[STEP])
        else:
            names[RUN] = part.call(rules.run_after_forecast, names[RUN], number + 1)
        return part.owned([*outputs, *(names[state] for state in self.returned())])


class _Part:
    """A graph in the making, and what may be read in it by name."""

    def __init__(self, graph: fx.Graph, names: Names, attributes: dict[str, Any] | None = None) -> None:
        self.graph = graph
        self.names = names
        self.attributes: dict[str, Any] = {} if attributes is None else attributes
        self.written: set[Key] = set()
        self.origin: fx.GraphModule | None = None  # whose metadata the module takes over
        self._fresh: set[fx.Node] = set()  # made here, contiguous and no views: they may be returned as they are

    def call(self, function: Callable[..., Any], *args: Any) -> fx.Node:
        """A call of ``function``."""
        node = self.graph.call_function(function, args)
        tensors = [ops.value(a) if isinstance(a, fx.Node) else a for a in args]
        with fake_mode_of(next(t for t in tensors if isinstance(t, torch.Tensor))), torch.no_grad():
            node.meta = {"path": "", "example_value": function(*tensors)}
        return node

    def nothing(self) -> fx.Node:
        """A measurement of a guard that has none here."""
        return self.call(torch.full_like, self.names[STEP], float("nan"))

    def inline(self, program: fx.GraphModule, site: Callable[..., list[fx.Node]] | None = None) -> list[fx.Node]:
        """``program``, without writing: what it would write to is from here on read under its name.

        ``site``: writes a guarded call, and returns its slots.
        """
        env = {node: self.names[_key(node)] for node in placeholders(program) if _key(node) in self.names}
        outputs = self.run(program, env, site)
        returns = program.meta.get("returns", ())
        self.names |= dict(zip(returns, outputs, strict=True)) if returns else {}
        return outputs

    def run(
        self,
        program: fx.GraphModule,
        env: dict[fx.Node, fx.Node],
        site: Callable[..., list[fx.Node]] | None = None,
    ) -> list[fx.Node]:
        """The nodes of ``program`` for the inputs in ``env``; returns its outputs."""
        slots: dict[fx.Node, list[fx.Node]] = {}
        self.origin = self.origin or program
        for node in program.graph.nodes:
            if node.op == "placeholder":
                continue
            if node.op == "output":
                return [env[value] for value in node.args[0]]
            if node.target is full_or_forecast and site is not None:
                slots[node] = site(self, node, env)
            elif node.args and node.args[0] in slots:
                env[node] = slots[node.args[0]][node.args[1]]
            elif node.op == "get_attr":
                if site is None or not all(user.target is full_or_forecast for user in node.users):
                    env[node] = copy_node(self.graph, node, _never)
                    self.attributes[str(node.target)] = operator.attrgetter(str(node.target))(program)
            elif node.target is remember:
                ring, position, value = node.args
                self._rename(env, ring, self.remembered(env[ring], env[position], env[value]))
            elif node.target is measurements.keep:
                kept, value = node.args
                self._rename(env, kept, self.call(torch.Tensor.to, env[value], ops.value(kept).dtype))
            else:
                for written in _written(node):
                    self._rename(env, written, self.copied(env[written]))
                env[node] = copy_node(self.graph, node, env.__getitem__)
        raise AssertionError("a graph ends with its output")

    def _rename(self, env: dict[fx.Node, fx.Node], kept: fx.Node, value: fx.Node) -> None:
        self.names[_key(kept)] = env[kept] = value
        self.written.add(_key(kept))

    def remembered(self, ring: fx.Node, position: fx.Node, value: fx.Node) -> fx.Node:
        """``remember`` without writing: the ring with ``value`` in row ``position``."""
        row = self.graph.call_method("unsqueeze", (value, 0))
        row.meta = {"path": "", "example_value": ops.value(value).unsqueeze(0)}
        kept = self.graph.call_method("to", (row, ops.value(ring).dtype))
        kept.meta = {"path": "", "example_value": ops.value(row).to(ops.value(ring).dtype)}
        ring_after = self.graph.call_function(torch.index_copy, (ring, 0, position, kept))
        ring_after.meta = {"path": "", "example_value": ops.value(ring)}
        self._fresh.add(ring_after)
        return ring_after

    def copied(self, value: fx.Node) -> fx.Node:
        """A contiguous copy: branches must not return an input or a view, and must agree on strides."""
        copy = self.graph.call_method("clone", (value,), {"memory_format": torch.contiguous_format})
        copy.meta = {"path": "", "example_value": ops.value(value).clone(memory_format=torch.contiguous_format)}
        self._fresh.add(copy)
        return copy

    def owned(self, values: Sequence[fx.Node]) -> list[fx.Node]:
        """``values`` as a branch may return them, each once."""
        returned: list[fx.Node] = []
        for value in values:
            returned.append(value if value in self._fresh and value not in returned else self.copied(value))
        return returned

    def branch(self, write: Callable[[_Part], list[fx.Node]]) -> fx.GraphModule:
        """A branch that may read everything this part can; ``write`` returns its outputs."""
        graph = fx.Graph()
        names = {key: _operand(graph, key, node) for key, node in self.names.items()}
        part = _Part(graph, names)
        part.origin = self.origin
        graph.output(tuple(write(part)))
        return part.module()

    def cond(
        self, predicate: fx.Node, yes: fx.GraphModule, no: fx.GraphModule, names: tuple[str, str]
    ) -> list[fx.Node]:
        """``torch.cond`` over two branches of ``branch``; returns its outputs."""
        self.attributes |= dict(zip(names, (yes, no), strict=True))
        attributes = [self.graph.get_attr(name) for name in names]
        # No operand may be a view of another, as what probes hand over can be.
        operands = [node if node.op == "placeholder" else self.copied(node) for node in self.names.values()]
        call = self.graph.call_function(torch.ops.higher_order.cond, (predicate, *attributes, tuple(operands)))
        values = [ops.value(node) for node in output_node(no.graph).args[0]]  # type: ignore[union-attr,arg-type]  # a tuple
        call.meta = {"example_value": tuple(values), "path": ""}
        outputs = []
        for index, value in enumerate(values):
            item = self.graph.call_function(operator.getitem, (call, index))
            item.meta = {"example_value": value, "path": ""}
            outputs.append(item)
        self._fresh.update(outputs)
        return outputs

    def module(self) -> fx.GraphModule:
        """The graph as a module."""
        used: dict[str, Any] = {}
        for node in self.graph.find_nodes(op="get_attr"):
            if node.users:
                used[str(node.target)] = self.attributes[str(node.target)]
            else:
                self.graph.erase_node(node)
        origin = self.origin or next(value for value in used.values() if isinstance(value, fx.GraphModule))
        return module_of(self.graph, origin, used or None)


def _key(node: fx.Node) -> Key:
    place: int | None = node.meta.get("input")
    state = state_of(node)
    if place is not None:
        return place
    assert state is not None
    return state


def _operand(graph: fx.Graph, key: Key, node: fx.Node) -> fx.Node:
    unique = node.op == "placeholder" or isinstance(key, int)
    made = graph.placeholder(node.name if unique else "given_" + re.sub(r"\W", "_", str(key)))
    made.meta = {"path": "", "example_value": ops.value(node)}
    if node.op == "placeholder":
        made.meta |= {name: node.meta[name] for name in ("input", "state", "slot", "weight") if name in node.meta}
    made._dynamo_source = None  # see Note [Dynamo marks] in graphs
    return made


def _written(node: fx.Node) -> list[fx.Node]:
    """What is kept and an operator of our own writes to in place."""
    schema = getattr(node.target, "_schema", None)
    if schema is None or not schema.is_mutable:
        return []
    written: Mapping[int, Any] = {
        place: argument
        for place, argument in enumerate(schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    }
    given = [node.args[place] for place in written if place < len(node.args)]
    return [argument for argument in given if isinstance(argument, fx.Node) and state_of(argument) is not None]


def _never(node: fx.Node) -> fx.Node:
    raise AssertionError(f"`{node.name}` reads nothing")
