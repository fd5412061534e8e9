"""What a denoiser returns, in whatever it returns it, has the rows of all runs, whether or not they share a call."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from torch import Tensor, nn

from hicache_compile import FORA, HiCacheError, hicache_compile
from hicache_compile.runtime.rows.arguments import joined, taken_apart
from tests.support.models import ToyDiT


@dataclass
class Output:
    sample: Tensor
    note: str | None = None


Named = namedtuple("Named", "sample time")  # as users write them
FORMS: dict[str, tuple[Callable[[Tensor, Tensor], Any], Callable[[Any], Tensor]]] = {
    "tensor": (lambda x, t: x, lambda out: out),
    "dataclass": (lambda x, t: Output(x, "as it is"), lambda out: out.sample),
    "model output": (lambda x, t: Transformer2DModelOutput(sample=x), lambda out: out.sample),
    "list": (lambda x, t: [x, t], lambda out: out[0]),
    "named tuple": (Named, lambda out: out.sample),
    "nested": (lambda x, t: {"out": (Output(x), [t, 1])}, lambda out: out["out"][0].sample),
    "namespace": (lambda x, t: SimpleNamespace(sample=x, count=3), lambda out: out.sample),
}


class Returning(nn.Module):
    """Returns its sample in a form; ``alone``: sample by sample, so that rows cannot share a call."""

    def __init__(self, form: Callable[[Tensor, Tensor], Any], alone: bool) -> None:
        super().__init__()
        self.inner, self.form, self.alone = ToyDiT(depth=2), form, alone

    def forward(self, x: Tensor, t: Tensor) -> Any:
        if self.alone:
            return self.form(torch.cat([self.inner(x[i : i + 1], t[i : i + 1]) for i in range(len(x))]), t)
        return self.form(self.inner(x, t), t)


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize("name", FORMS)
def test_rows_of_two_runs(name: str, alone: bool) -> None:
    torch.manual_seed(0)
    form, sample_of = FORMS[name]
    model = Returning(form, alone).eval()
    compiled: Any = hicache_compile(model, FORA(interval=2, warmup=1), backend="eager")
    x, t = torch.randn(2, 16, 16), torch.rand(2)
    with torch.no_grad():
        expected = model(x, t)
        runs = [compiled.run(4), compiled.run(4)]
        for _ in range(3):
            with compiled.rows(runs):
                made = compiled(x, t)
            torch.testing.assert_close(sample_of(made), sample_of(expected), rtol=1e-5, atol=1e-5)
            assert type(made) is type(expected)
    assert [run.decisions() for run in runs] == ["F.F", "F.F"]


@pytest.mark.parametrize("name", FORMS)
def test_apart_and_together_again(name: str) -> None:
    form, sample_of = FORMS[name]
    x, t = torch.randn(3, 4), torch.rand(3)
    parts = taken_apart(form(x, t), [1, 2])
    assert [torch.equal(sample_of(part), each) for part, each in zip(parts, (x[:1], x[1:]), strict=True)] == [True] * 2
    whole = joined(parts)
    assert type(whole) is type(form(x, t))
    assert torch.equal(sample_of(whole), x)


def test_a_list_of_samples_is_a_batch() -> None:
    """As Z-Image takes and returns them, of sizes of their own."""
    samples = [torch.randn(size, 4) for size in (2, 3, 4)]
    parts = taken_apart((samples,), [2, 1], by_sample=True)
    assert [len(part[0]) for part in parts] == [2, 1]
    assert all(map(torch.equal, joined(parts, by_sample=True)[0], samples))


def test_calls_that_return_a_dataclass_are_replayed() -> None:
    torch.manual_seed(0)
    model = Returning(FORMS["nested"][0], alone=False).eval()
    compiled: Any = hicache_compile(model, FORA(interval=2, warmup=1), backend="eager")
    with torch.no_grad(), compiled.trajectory(8):
        for _ in range(6):
            x, t = torch.randn(2, 16, 16), torch.rand(2)
            made = compiled(x, t)
            assert type(made["out"][0]) is Output
    replays = compiled._session.contexts["default"].replays
    assert len(replays._known) == 1
    x, t = torch.randn(2, 16, 16), torch.rand(2)
    with torch.no_grad(), compiled.trajectory(2):
        assert torch.equal(FORMS["nested"][1](compiled(x, t)), FORMS["nested"][1](model(x, t)))


def test_gradients_asked_for_in_a_dataclass_are_refused() -> None:
    class Taking(ToyDiT):
        def forward(self, given: Output, t: Tensor) -> Tensor:  # type: ignore[override]
            return super().forward(given.sample, t)

    compiled: Any = hicache_compile(Taking(), FORA(), backend="eager")
    with pytest.raises(HiCacheError, match="argument 0 requires grad"):
        compiled(Output(torch.randn(1, 16, 16, requires_grad=True)), torch.ones(1))
