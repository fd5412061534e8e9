"""split: programs cut where a guard decides, so that the host can look at what was measured before it goes on.

before   full:     m = f(x);  keep(measured_0, change(m, before_0));  keep(before_0, m);  y = g(m, h(x))
         forecast: y = x + forecast(anchors, w)
after    probe:    m = f(x);  keep(measured_0, ...);  keep(before_0, m);  return m
         full:     y = g(m, h(x))                 with m an input
         forecast: as it was: it reads nothing the probe made

Requires   programs of one guarded graph, with probes that are measured before a decision
Ensures    a probe and the rest of a program together do what the program did, each op once; what goes from one to the
           other is a tensor, an output of the probe and an input ``value:N`` of the rest
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import cycle

from torch import fx

from hicache_compile.passes.graph import ops
from hicache_compile.passes.graph.choices import Choice
from hicache_compile.passes.graph.graphs import copy_graph, copy_node, drop_dead_code, module_of, placeholders
from hicache_compile.passes.graph.input_writes import InputWrites
from hicache_compile.passes.graph.inputs import Role, StateInput, add_input, is_ring, role_of
from hicache_compile.passes.graph.regions import Contexts
from hicache_compile.passes.transforms.narrow_linears import narrow_linears
from hicache_compile.passes.work import Stage, Work

Number = int


def split_at_probes(work: Work) -> int:
    """Cut the programs at each guard's probe; a guard that skips ends the step with a forecast from its start on."""
    layout, programs = work.layout, work.programs
    if not work.sites:
        return 0
    guards = [number for number, probe in enumerate(layout.probes) if probe.before]
    starts = [layout.starts[number] for number in guards]
    groups = list(dict.fromkeys(site.group for site in work.sites)) if not layout.groups else [""]
    whole = [Choice.forecasting([g for g in groups if _start_of(g) >= at] or groups, groups) for at in starts]
    ways = (whole, [choice.with_tokens() for choice in whole]) if work.tokenwise else (whole,)
    skips = [copy_graph(programs[choice])[0] for choices in ways for choice in choices]
    parts = split(programs[Choice.FULL], skips, guards)
    programs[Choice.FULL] = parts.full
    ends: list[Choice] = []
    for number, (choice, probe) in enumerate(zip(whole, parts.probes, strict=True)):
        end = replace(choice, stage=number) if choice in ends else choice
        ends.append(end)
        work.stages.append(Stage(guards[number], Choice.probe(number), end))
        programs[work.stages[-1].probe] = probe
    for end, skip in zip([*ends, *(end.with_tokens() for end in ends)], parts.skips, strict=False):
        narrow_linears(skip)
        programs[end] = skip
    return len(work.stages)


def _start_of(group: str) -> int:
    """The block from which on the sites of ``group`` are forecast."""
    return int(group.removeprefix("from_") or 0)


@dataclass(frozen=True, slots=True)
class Parts:
    """What ``split`` makes. ``skips[i]``: what is left of a step that the guard of ``probes[i % len(probes)]`` ends."""

    probes: list[fx.GraphModule]
    full: fx.GraphModule
    skips: list[fx.GraphModule]


def split(full: fx.GraphModule, skips: Sequence[fx.GraphModule], guards: Sequence[int]) -> Parts:
    """Cut ``full`` after each stage, and off each of ``skips`` what ran by the stage it ends a step at.

    Args:
        full: the program of a computed step; the writes of stage ``i`` have ``meta["stage"] = i``.
        skips: the program of a step that the guard of stage ``i`` skips, once or more for all stages; it is changed.
        guards: the number of the guard of each stage.
    """
    for program in skips:
        _drop_probes(program)
    numbers = _Numbers()
    known = numbers.of(full)
    done: list[set[Number]] = []
    for guard in guards:
        measured = [n for n in full.graph.nodes if n.meta.get("stage") == guard and n.meta.get("probe") == "every"]
        done.append({known[node] for node in _closure(full, measured)} | (done[-1] if done else set()))
    cuts = [_Cut(full, known, done[-1])]
    cuts += [_Cut(program, numbers.of(program), before) for program, before in zip(skips, cycle(done), strict=False)]
    stages = [_Cut(full, known, before, upto) for before, upto in zip([set(), *done], done, strict=False)]
    handed = {number for cut in (*cuts, *stages) for number in cut.reads}
    place = {known[node]: index for index, node in enumerate(full.graph.nodes)}
    names = {number: StateInput(Role.VALUE, str(place[number])) for number in sorted(handed, key=place.__getitem__)}
    probes = [cut.program(names, [n for n in names if n in cut.upto and n not in cut.before]) for cut in stages]
    rest, *ends = (cut.program(names) for cut in cuts)
    return Parts(probes, rest, ends)


class _Numbers:
    """A number for each value, the same for values of several programs that are computed alike from the same inputs.

    A value that is written in place has one of its own: two that are made alike (empty) are filled with other things.
    """

    def __init__(self) -> None:
        self._known: dict[object, Number] = {}

    def of(self, program: fx.GraphModule) -> dict[fx.Node, Number]:
        numbers: dict[fx.Node, Number] = {}
        targets = [target for node in program.graph.nodes for target in ops.mutated(node)]
        written = {ops.storage(target) for target in targets if target.op != "placeholder"}
        for node in program.graph.nodes:
            if node.op == "placeholder":
                key: object = ("input", node.meta.get("input"), node.meta.get("state"))
            elif node.op == "output" or not ops.is_pure(node) or (written and ops.storage(node) in written):
                key = ("effect", node.name)
            else:
                read = fx.node.map_arg((node.args, node.kwargs), lambda a: f"%{numbers[a]}")
                target = id(node.target) if callable(node.target) else 0
                key = (node.op, str(node.target), target, node.meta.get("context"), repr(read))
            numbers[node] = self._known.setdefault(key, len(self._known))
        return numbers


class _Cut:
    """A part of a program: what is not done ``before`` it, and where given only what is done by ``upto``."""

    def __init__(
        self,
        origin: fx.GraphModule,
        numbers: dict[fx.Node, Number],
        before: set[Number],
        upto: set[Number] | None = None,
    ) -> None:
        self.origin = origin
        self.numbers = numbers
        self.before = before
        self.upto = set(numbers.values()) if upto is None else upto
        self.nodes = {node for node in origin.graph.nodes if self._runs_here(node)}
        self._take_in_what_cannot_be_handed_over()
        self._take_in_contexts()
        read = {argument for node in self.nodes for argument in node.all_input_nodes} - self.nodes
        self.reads = {numbers[node] for node in read if node.op not in ("placeholder", "get_attr")}

    def _runs_here(self, node: fx.Node) -> bool:
        number = self.numbers[node]
        return node.op not in ("placeholder", "get_attr") and number not in self.before and number in self.upto

    def _take_in_what_cannot_be_handed_over(self) -> None:
        """Sizes and tuples are computed again where they are read."""
        for node in reversed(self.origin.graph.nodes):
            if node.op in ("placeholder", "get_attr") or node in self.nodes or ops.is_tensor(node):
                continue
            if ops.is_pure(node) and any(user in self.nodes for user in node.users):
                self.nodes.add(node)

    def _take_in_contexts(self) -> None:
        """What opens and closes a context (autocast) goes wherever something in it goes."""
        for span in Contexts(self.origin.graph).spans:
            ends = [node for node in span if ops.op(node) in ops.OPENS + ops.CLOSES]
            if any(node in self.nodes for node in span if node not in ends):
                self.nodes.update(ends)
            else:
                self.nodes.difference_update(ends)

    def program(self, names: dict[Number, StateInput], returned: Iterable[Number] | None = None) -> fx.GraphModule:
        """The part as a program; ``returned``: what it hands over, where it is a probe."""
        graph = fx.Graph()
        env: dict[fx.Node, fx.Node] = {}
        made = {self.numbers[node]: node for node in self.origin.graph.nodes}
        inputs = placeholders(self.origin)
        for node in (node for node in inputs if not is_ring(node)):
            env[node] = copy_node(graph, node, env.__getitem__)
        for number in sorted(self.reads, key=list(names).index):
            given = made[number]
            env[given] = add_input(graph, names[number], ops.value(given))
            alike = [node for node in self.origin.graph.nodes if self.numbers[node] == number]
            env.update(dict.fromkeys(alike, env[given]))
        for node in filter(is_ring, inputs):
            env[node] = copy_node(graph, node, env.__getitem__)
        for node in self.origin.graph.nodes:
            if node.op == "output" and node in self.nodes:
                for given in node.all_input_nodes:
                    if given in env and role_of(env[given]) is Role.VALUE:  # an output must not be an input
                        env[given] = _copy_of(graph, env[given])
            if node not in env and (node.op == "get_attr" or node in self.nodes):
                env[node] = copy_node(graph, node, env.__getitem__)
        if returned is not None:
            graph.output(tuple(env[made[number]] for number in returned))
        for node in (*graph.find_nodes(op="placeholder"), *graph.find_nodes(op="get_attr")):
            if not node.users:
                graph.erase_node(node)
        program = module_of(graph, self.origin)
        if returned is not None:
            program.meta["returns"] = [names[number] for number in returned]
        return program


def _copy_of(graph: fx.Graph, value: fx.Node) -> fx.Node:
    copy = graph.call_method("clone", (value,))
    copy.meta = {"path": "", "example_value": ops.value(value).clone()}
    return copy


def _drop_probes(program: fx.GraphModule) -> None:
    """What is measured before a decision is measured by the probe alone."""
    for node in reversed(program.graph.nodes):
        if "stage" in node.meta and node.meta["probe"] != "forecast":
            program.graph.erase_node(node)
    drop_dead_code(program.graph)


def _closure(program: fx.GraphModule, roots: Iterable[fx.Node]) -> set[fx.Node]:
    """What has to run for ``roots``: with it what writes to one of these values in place (rotary embeddings fill an
    empty tensor), what writes to an input of the denoiser before one of them reads it, with all that reads it before
    that, and all parts of a tuple of which one has to."""
    closure: set[fx.Node] = set()
    queue = list(roots)
    written = [(node, target) for node in program.graph.nodes for target in ops.mutated(node)]
    writes = InputWrites(program.graph)
    while queue:
        while queue:
            node = queue.pop()
            if node not in closure:
                closure.add(node)
                queue += node.all_input_nodes
        held = {ops.storage(node) for node in closure if node.op != "placeholder"}
        queue = [node for node, target in written if node not in closure and ops.storage(target) in held]
        queue += writes.wanted_by(closure)
    for node in program.graph.nodes:
        if ops.op(node) == "getitem" and node.args[0] in closure and not ops.is_tensor(node.args[0]):
            closure.add(node)
    return closure
