"""Steps without Dynamo: they are made again only while nothing changed, and change nothing themselves."""

from __future__ import annotations

import threading
import types
from collections import deque
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from hicache_compile import FORA, CompiledDenoiser, HiCache, hicache_compile, internals
from hicache_compile.runtime.replay.dispatch_modes import GLOBAL_HOOKS
from hicache_compile.runtime.step import Step
from tests.support.models import ToyDiT, flux_inputs, random_flux

STEPS = 10


class Counted:
    """A denoiser at interval 1, so that it equals the model, and how many of its calls went through Dynamo."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.compiled: CompiledDenoiser = hicache_compile(model, HiCache(interval=1), backend="eager")
        self.guarded = 0
        traced = self.compiled._inner.denoise
        inner = traced._run

        def count(*args: Any, **kwargs: Any) -> Any:
            self.guarded += 1
            return inner(*args, **kwargs)

        traced._run = count  # type: ignore[method-assign]

    @torch.no_grad()
    def check(self, *args: Any, **kwargs: Any) -> bool:
        """Whether this step went through Dynamo; in any case it must give what the model gives."""
        before = self.guarded
        wanted = self.model(*args, **kwargs)
        torch.testing.assert_close(self.compiled(*args, **kwargs), wanted, rtol=0, atol=0)
        return self.guarded > before


def call(seed: int = 0, tokens: int = 5, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, tokens, 16, generator=generator).to(dtype), torch.rand(2, generator=generator).to(dtype)


def test_dynamo_runs_once_a_run() -> None:
    counted = Counted(ToyDiT())
    for _ in range(3):
        with counted.compiled.trajectory(STEPS):
            assert [counted.check(*call(step)) for step in range(STEPS)] == [True] + [False] * (STEPS - 1)


def test_each_branch_has_its_own() -> None:
    counted = Counted(ToyDiT())
    went = []
    with counted.compiled.trajectory(4):
        for step in range(4):
            for branch, tokens in (("cond", 5), ("uncond", 3)):
                with counted.compiled.cache_context(branch):
                    went.append(counted.check(*call(step, tokens)))
    # Before torch 2.13 the capture of the second registers modules: the first is looked at once more.
    assert went[:2] + went[3:] == [True, True] + [False] * 5


def replace_parameter(model: ToyDiT) -> None:
    model.head.weight = nn.Parameter(torch.randn(16, 16))


def replace_submodule(model: ToyDiT) -> None:
    model.layers[1].up = nn.Sequential(nn.Linear(16, 32), nn.Linear(32, 32))


def remove_submodule(model: ToyDiT) -> None:
    del model.layers[1]


def cast(model: ToyDiT) -> None:
    model.to(torch.float64)


def load_assigned(model: ToyDiT) -> None:
    model.load_state_dict({name: value * 2 for name, value in model.state_dict().items()}, assign=True)


def train(model: ToyDiT) -> None:
    model.train()


@pytest.mark.parametrize("change", [replace_parameter, replace_submodule, remove_submodule, cast, load_assigned, train])
def test_a_change_of_the_model_is_noticed(change: Callable[[ToyDiT], None]) -> None:
    counted = Counted(ToyDiT().eval())
    with counted.compiled.trajectory(STEPS):
        assert [counted.check(*call(step)) for step in range(3)] == [True, False, False]
        change(counted.model)
        dtype = next(counted.model.parameters()).dtype
        assert counted.check(*call(3, dtype=dtype))


def test_a_weight_written_to_drops_the_anchors() -> None:
    model = ToyDiT()
    compiled = hicache_compile(model, HiCache(interval=5, order=1, warmup=2), backend="eager")
    with torch.no_grad(), compiled.trajectory(STEPS):
        for step in range(STEPS):
            if step == 4:
                model.layers[0].down.weight.mul_(1.5)
            output = compiled(*call(step))
            if step == 4:
                torch.testing.assert_close(output, model(*call(step)), rtol=0, atol=0)
    assert compiled.report().decisions() == "FF..F.F..."


def test_weights_that_another_dtype_rounded_drop_the_anchors() -> None:
    compiled = hicache_compile(ToyDiT(), HiCache(interval=5, order=1, warmup=2), backend="eager")
    with torch.no_grad(), compiled.trajectory(STEPS):
        for step in range(STEPS):
            if step == 4:
                compiled.to(torch.bfloat16).to(torch.float32)
            if step == 7:
                compiled.to("cpu")  # where it is
            compiled(*call(step))
    assert compiled.report().decisions() == "FF..F.F..."


class Scale:
    """As attention processors are: an object of a model's that is called, with a setting."""

    factor = 1.0

    def __call__(self, x: Tensor) -> Tensor:
        return x * self.factor


@dataclass
class Setting:
    factor: float = 1.0


GLOBAL = IN_HELPER = 1.0
SETTINGS: dict[str, float] = {"scale": 1.0}
NAMESPACE = types.SimpleNamespace(scale=1.0)
TABLE = torch.ones(())
VARIABLE = ContextVar("scale", default=1.0)
settings = types.ModuleType("settings")  # as a file of a user's
settings.SCALE = settings.OTHER = 1.0  # type: ignore[attr-defined]


def helper() -> float:
    return inner() * SETTINGS["scale"] * settings.OTHER


def inner() -> float:
    def read() -> float:
        return IN_HELPER

    return read()


class Held(ToyDiT):
    """Reads what it holds, in whatever depth, a value of its class, and what its code names elsewhere."""

    bias = 0.0

    def __init__(self) -> None:
        super().__init__()
        self.renew()

    def renew(self) -> None:
        self.added, self.options, self.processor = [1.0], {"scale": 1.0}, Scale()
        self.setting, self.nested = Setting(), {"a": [Setting()]}
        self.skipped: set[int] = set()
        self.queue, self.pair = deque([1.0]), ({"a": 1.0},)
        mine = 1.0

        def read() -> float:
            return mine

        def write(value: float) -> None:
            nonlocal mine
            mine = value

        self.read, self.write = read, write

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        out = self.processor(super().forward(x, t) * self.options["scale"] + sum(self.added))
        out = out * self.setting.factor * self.nested["a"][0].factor * self.queue[0] * self.pair[0]["a"] * self.read()
        out = out * helper() * NAMESPACE.scale * TABLE * settings.SCALE
        return (out * 2 if 1 in self.skipped else out) * GLOBAL + self.bias


def set_global(model: Held) -> None:
    global GLOBAL  # noqa: PLW0603  # as a user's script does
    GLOBAL += 1


def set_in_helper(model: Held) -> None:
    global IN_HELPER  # noqa: PLW0603
    IN_HELPER += 1


def set_tensor(model: Held) -> None:
    global TABLE  # noqa: PLW0603
    TABLE = TABLE + 1


def set_of_class(model: Held) -> None:
    type(model).bias += 1


CHANGES: dict[str, Callable[[Held], object]] = {
    "list": lambda model: model.added.append(2.0),
    "dict": lambda model: model.options.update(scale=3.0),
    "processor": lambda model: setattr(model.processor, "factor", 4.0),
    "dataclass": lambda model: setattr(model.setting, "factor", 5.0),
    "in depth": lambda model: setattr(model.nested["a"][0], "factor", 6.0),
    "set": lambda model: model.skipped.add(1),
    "deque": lambda model: model.queue.appendleft(7.0),
    "dict in a tuple": lambda model: model.pair[0].update(a=8.0),
    "closure": lambda model: model.write(9.0),
    "global": set_global,
    "global of a helper": set_in_helper,
    "global dict": lambda model: SETTINGS.update(scale=SETTINGS["scale"] + 1),
    "global object": lambda model: setattr(NAMESPACE, "scale", NAMESPACE.scale + 1),
    "global tensor": set_tensor,
    "module": lambda model: setattr(settings, "SCALE", settings.SCALE + 1),
    "module of a helper": lambda model: setattr(settings, "OTHER", settings.OTHER + 1),
    "class": set_of_class,
}


@pytest.mark.parametrize(
    ("change", "counted_by"),
    [*((name, "torch") for name in CHANGES), ("dict", "nobody"), ("in depth", "nobody"), ("global object", "nobody")],
)
def test_a_change_in_what_the_model_holds_is_noticed(
    change: str, counted_by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also in what it holds in place of another, since the run before or since a step; and where torch is not told of
    attributes that are set, as on Python 3.13."""
    if counted_by == "nobody":
        monkeypatch.setattr(internals, "dict_version", id)  # which stays
    counted = Counted(Held())
    for renewed_at in (None, 0, 2):
        with counted.compiled.trajectory(STEPS):
            for step in range(STEPS):
                if step == renewed_at:
                    counted.model.renew()  # type: ignore[operator]
                if step == 4:
                    CHANGES[change](counted.model)  # type: ignore[arg-type]
                assert counted.check(*call(step)) == (step in (0, renewed_at, 4))


def test_a_context_variable_that_changes_is_noticed() -> None:
    class Varying(ToyDiT):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return super().forward(x, t) * VARIABLE.get()

    counted = Counted(Varying())
    with counted.compiled.trajectory(STEPS):
        for step in range(STEPS):
            if step == 4:
                token = VARIABLE.set(2.0)
            counted.check(*call(step))
    VARIABLE.reset(token)


def test_methods_of_the_model_are_noticed() -> None:
    class Scaled(ToyDiT):
        factor = 1.0

        def set_factor(self, factor: float) -> None:
            self.factor = factor

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return super().forward(x, t) * self.factor

    counted = Counted(Scaled())
    with counted.compiled.trajectory(STEPS):
        assert [counted.check(*call(step)) for step in range(3)] == [True, False, False]
        counted.compiled.set_factor(3.0)
        assert counted.check(*call(3))
        assert not counted.check(*call(4))


class Arguments(nn.Module):
    """A denoiser that reads all kinds of arguments and hands out all kinds of values."""

    def __init__(self) -> None:
        super().__init__()
        self.body = ToyDiT()

    def forward(self, x: Tensor, t: Tensor, other: Tensor, options: dict[str, Any], *, as_dict: bool = False) -> Any:
        y = self.body(x, t) * options["scale"] + other.sum()
        if other is x:
            y = y + 1
        return {"sample": y, "given": x, "none": None, "same": 3} if as_dict else (y, [y * 2])


def test_what_looks_different_is_guarded_again() -> None:
    counted = Counted(Arguments())
    x, t = call()
    given: dict[str, Any] = {"x": x, "t": t, "other": torch.ones(3), "options": {"scale": 1.0, "name": "a"}}
    looks: list[dict[str, Any]] = [
        {},
        {"options": {"scale": 2.0, "name": "a"}},
        {"options": {"scale": 1.0, "name": "b"}},
        {"as_dict": True},
        {"other": x.clone()},
        {"other": x},
        {"other": torch.ones(4)},
        {"other": torch.ones(3, dtype=torch.float64)},
        {"other": torch.ones(6)[::2]},
    ]
    with counted.compiled.trajectory(100):
        for look in looks:
            assert counted.check(**{**given, **look}), look
            assert not counted.check(**{**given, **look}), look
        with torch.autocast("cpu", torch.bfloat16):
            assert counted.check(**given)


def test_more_looks_than_are_kept() -> None:
    counted = Counted(ToyDiT())
    with counted.compiled.trajectory(100):
        for _ in range(2):
            assert all(counted.check(*call(tokens=tokens)) for tokens in range(3, 13))


def test_a_class_of_outputs() -> None:
    counted = Counted(random_flux(1, 1))
    inputs = flux_inputs()
    compiled, model = counted.compiled, counted.model
    with torch.no_grad(), compiled.trajectory(3):
        for step in range(3):
            time = torch.full((2,), 1 - step / 3)
            found, wanted = compiled(**inputs, timestep=time), model(**inputs, timestep=time)
            assert type(found) is type(wanted)
            assert torch.equal(found.sample, wanted.sample)
    assert counted.guarded == 1


def test_python_state_goes_through_dynamo() -> None:
    class Counting(ToyDiT):
        calls = 0

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            self.calls += 1
            return super().forward(x, t)

    model = Counting()
    compiled = hicache_compile(model, HiCache(interval=1), backend="eager")
    with torch.no_grad(), compiled.trajectory(STEPS):
        for step in range(STEPS):
            compiled(*call(step))
    assert model.calls == STEPS


def test_arguments_of_unknown_types_go_through_dynamo() -> None:
    @dataclass
    class Size:
        scale: float

    class Sized(ToyDiT):
        def forward(self, x: Tensor, t: Tensor, size: Size) -> Tensor:  # type: ignore[override]
            return super().forward(x, t) * size.scale

    counted = Counted(Sized())
    with counted.compiled.trajectory(4):
        assert all(counted.check(*call(step), Size(1.0 + step % 2)) for step in range(4))


def test_a_module_made_in_the_forward_is_compiled_once() -> None:
    class Making(ToyDiT):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return nn.Sequential(nn.GELU(), nn.Identity())(super().forward(x, t))

    compiled = hicache_compile(Making(), HiCache(interval=3, warmup=2), backend="eager")
    with torch.no_grad():
        for _ in range(12):
            with compiled.trajectory(4):
                for step in range(4):
                    compiled(*call(step))
    report = compiled.report()
    assert (report.programs, report.recompiles, report.decisions()) == (2, 0, "FF..")


def test_a_mode_of_another_thread_is_left_alone() -> None:
    """torch's flag says that some thread has a mode: its hooks must not be taken off, nor put back once it is done."""
    compiled = hicache_compile(ToyDiT(depth=2), HiCache(interval=2), backend="eager")
    inside, go_on = threading.Event(), threading.Event()

    def count() -> None:
        with FlopCounterMode(display=False):
            inside.set()
            go_on.wait(60)

    other = threading.Thread(target=count)

    def end_it(step: Step, call: object, make: Callable[[], Tensor]) -> Tensor:
        go_on.set()
        other.join()
        return make()

    other.start()
    inside.wait(60)
    with torch.no_grad(), compiled.trajectory(2), compiled.observed(end_it):
        compiled(torch.randn(1, 5, 16), torch.ones(1))
    assert [len(hooks) for hooks in GLOBAL_HOOKS] == [0, 0]


def test_a_run_that_is_compiled_in_every_step_says_why(caplog: pytest.LogCaptureFixture) -> None:
    class Scalar(ToyDiT):
        def forward(self, x: Tensor, t: float) -> Tensor:  # type: ignore[override]
            return super().forward(x, torch.as_tensor(t).expand(len(x)))

    compiled = hicache_compile(Scalar(), HiCache(interval=3), backend="eager")
    for _ in range(2):
        with torch.no_grad(), compiled.trajectory(STEPS):
            for step in range(STEPS):
                compiled(torch.ones(2, 5, 16), 1 - step / STEPS)
    ours = [record.getMessage() for record in caplog.records if record.name.startswith("hicache_compile")]
    assert [text.partition(":")[0] for text in ours] == ["compiled anew"]


def test_a_run_without_forecasts_says_why(caplog: pytest.LogCaptureFixture) -> None:
    """Autocast in every second step: anchors of one dtype are none of the other."""
    compiled = hicache_compile(ToyDiT(), FORA(3, scope="stack"), backend="eager")
    for casts in (True, False):
        caplog.clear()
        with compiled.trajectory(6), torch.no_grad():
            for step in range(6):
                with torch.autocast("cpu", torch.bfloat16, enabled=casts and step % 2 == 1):
                    compiled(torch.randn(2, 5, 16), torch.full((2,), 1 - step / 6))
        said = "0 forecasts: all 6 steps of context 'default' were computed, 4 of them because the anchors had started"
        assert (said in caplog.text) == casts
        assert compiled.report().decisions() == ("FFFFFF" if casts else "F..F..")


@torch.compiler.disable
def beside_the_graph(x: Tensor) -> Tensor:
    return x * 2 + 1


class BeforeTheGraph(ToyDiT):
    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return super().forward(beside_the_graph(x), t)


class AfterTheGraph(ToyDiT):
    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return beside_the_graph(super().forward(x, t))


class FrameThatIsSkipped(ToyDiT):
    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return super().forward(x.to_sparse().to_dense(), t)


@pytest.mark.parametrize("kind", [BeforeTheGraph, AfterTheGraph, FrameThatIsSkipped])
def test_a_call_with_python_beside_its_only_graph_is_not_replayed(kind: type[ToyDiT]) -> None:
    torch.manual_seed(0)
    model = kind()
    compiled = hicache_compile(model, HiCache(interval=1), backend="eager")
    for _ in range(2):
        with torch.no_grad(), compiled.trajectory(4):
            for _ in range(4):
                x, t = torch.randn(1, 5, 16), torch.rand(1)
                assert torch.equal(compiled(x, t), model(x, t))
