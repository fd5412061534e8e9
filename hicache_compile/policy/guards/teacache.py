"""TeaCache (2411.19108): the rescaled changes of a cheap signal are added up until they reach a threshold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar

from hicache_compile.errors import HiCacheError, numbers, one_of, real_number, true_or_false
from hicache_compile.policy.guards.arithmetic import Arithmetic, HostArithmetic, Number, Numbers, Truth
from hicache_compile.policy.guards.base import Guard, Measure, Probe, Signal, nonnegative
from hicache_compile.policy.guards.models import TEACACHE_MODELS
from hicache_compile.policy.plain_data import plain_data
from hicache_compile.policy.published import PublishedModel

PUBLISHED = ("threshold", "coefficients", "signal", "warmup", "cooldown")
TERMS = 10  # of the polynomial, at most
SIGNALS = (Signal.MODULATED, Signal.MODULATION, Signal.TIME, Signal.RESIDUAL)


@plain_data
class TeaCacheGuard(Guard):
    """Skip while ``sum poly(change(signal))`` since the last computed step is below ``threshold``.

    Args:
        threshold: 0 computes every step.
        coefficients: of the polynomial, highest power first, fitted to one model (``TEACACHE_MODELS``); ``(1, 0)``
            takes the change as it is.
        signal: ``"modulated"`` (the modulated input of block 0: FLUX, HunyuanVideo, ...), ``"modulation"`` (the
            projected time embedding: Wan with ret steps), ``"time"`` (the time embedding: Wan, CogVideoX, HiDream) or
            ``"residual"`` (of block 0, which then always runs: Z-Image).
        exact: the polynomial as published, which is negative in places, so that the sum goes down; by default it is
            cut off at 0.
        reference: ``"previous"``: changes from step to step. ``"computed"``: from the last computed step, and added up
            all the same (the first FlexCache).
        warning: under ``Policy.tokens``, the share of ``threshold`` from which on the sum lets skipped steps compute
            some tokens (X-Slim, 2512.12604); below it they are forecast whole. 0: any skipped step may.
        left_open: names of fields that take what is published for the model that is compiled, if anything is.
    """

    threshold: float = 0.2
    coefficients: tuple[float, ...] = (1.0, 0.0)
    signal: str = "modulated"
    exact: bool = False
    reference: str = "previous"
    left_open: tuple[str, ...] = ()
    warning: float = 0.0

    remembers: ClassVar[Mapping[str, float]] = {"accumulated": 0.0}
    numbers_are_data: ClassVar[bool] = True

    def __post_init__(self) -> None:
        self.check()
        nonnegative("TeaCacheGuard", "threshold", self.threshold)
        object.__setattr__(self, "coefficients", numbers("TeaCacheGuard", "coefficients", self.coefficients))
        if len(self.coefficients) > TERMS:
            raise HiCacheError(f"TeaCacheGuard.coefficients: {len(self.coefficients)} of them, must be at most {TERMS}")
        true_or_false("TeaCacheGuard", "exact", self.exact)
        one_of("TeaCacheGuard", "signal", self.signal, SIGNALS)
        one_of("TeaCacheGuard", "reference", self.reference, ("previous", "computed"))
        if self.warning != 0:
            real_number("TeaCacheGuard", "warning", self.warning, 0.0, 1.0)
        names = tuple(self.left_open) if isinstance(self.left_open, list | tuple) else (self.left_open,)
        for name in names:
            one_of("TeaCacheGuard", "left_open", name, PUBLISHED)
        object.__setattr__(self, "left_open", names)

    def for_model(self, model: PublishedModel) -> TeaCacheGuard:
        """With the values of ``TEACACHE_MODELS`` for ``model``."""
        if not self.left_open:
            return self
        changes = "changes count as they are" if "coefficients" in self.left_open else "the fit is the one given"
        name = model.name_in(
            TEACACHE_MODELS,
            "TeaCache",
            f"{changes}, threshold {self.threshold:g}; fit it with `hicache tune --fit teacache`, or name a model",
        )
        published = {field: getattr(TEACACHE_MODELS[name], field) for field in self.left_open} if name else {}
        return replace(self, left_open=(), **published)

    @property
    def probe(self) -> Probe:
        signal = Signal(self.signal)
        blocks = 1 if signal is Signal.RESIDUAL else 0
        return Probe(Measure.CHANGE, signal, blocks, every_step=self.reference == "previous")

    def parameters(self, num_steps: int | None) -> Mapping[str, float | Sequence[float]]:
        powers = (0.0,) * (TERMS - len(self.coefficients)) + self.coefficients
        return {"threshold": self.threshold, "exact": self.exact, "coefficients": powers}

    def ask(self, m: Arithmetic, p: Numbers, s: Numbers, step: Number, seen: Sequence[Number]) -> tuple[Truth, Numbers]:
        total = s.accumulated + _rescaled(m, p, seen[0])
        return (p.threshold > 0) & (total < p.threshold), s.replace(accumulated=total)

    def after_full(self, m: Arithmetic, p: Numbers, s: Numbers, step: Number, seen: Sequence[Number]) -> Numbers:
        return s.replace(accumulated=0.0)

    def polishes(self, m: Arithmetic, p: Numbers, s: Numbers) -> Truth:
        return (self.warning <= 0) | (s.accumulated >= self.warning * p.threshold)

    def rescaled(self, change: float) -> float:
        """The polynomial at ``change``."""
        return float(_rescaled(HostArithmetic(), Numbers(self.parameters(None)), change))


def _rescaled(m: Arithmetic, p: Numbers, change: Number) -> Number:
    """The polynomial at ``change``, cut off at 0 unless it is taken as published."""
    total = 0.0 * change
    for coefficient in p.coefficients:
        total = total * change + coefficient
    return m.where(p.exact > 0, total, m.maximum(total, 0.0))
