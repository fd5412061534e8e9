"""Every guard and schedule on the trained demo model: computed steps against fidelity.

Digits are sampled one at a time, so that each has its own decisions, from the same noise under every policy. Methods
that need a fit (TeaCache's polynomial, MagCache's table) are fitted on other noise first.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hicache_compile import (
    FORA,
    PAB,
    SCM,
    AdaCache,
    DBCache,
    DiCache,
    DiTango,
    EasyCache,
    FBCache,
    Forecaster,
    Free,
    Hermite,
    LeMiCa,
    MagCache,
    Policy,
    Reuse,
    SpeCaGuard,
    TeaCache,
    hicache_compile,
)
from hicache_compile.benchmarks.record import environment
from hicache_compile.demo.sampling import load_model, sample
from hicache_compile.evaluation.runs import quietly
from hicache_compile.frontend.denoiser import CompiledDenoiser
from hicache_compile.inspection.figures import save_figure
from hicache_compile.policy.guards.adacache import FAST_30
from hicache_compile.policy.schedules.scm_masks import SPEEDS
from hicache_compile.tune import fit

STEPS = 50
DIGITS = 10
FITTED_ON = 5
BUDGETS = (2, 3, 5)  # reduction factors of computed steps
HERMITE = Hermite(2, 0.5)
Line = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Method:
    """A family of policies: ``policy(knob, forecaster)`` for each of ``knobs``."""

    name: str
    policy: Callable[[Any, Forecaster], Policy]
    knobs: Sequence[Any]
    forecasters: tuple[Forecaster, ...] = (Reuse(), HERMITE)


def methods(coefficients: Sequence[float], table: Sequence[float]) -> list[Method]:
    """All methods. ``coefficients`` and ``table`` are fitted to the model."""
    changes = (0.03, 0.05, 0.07, 0.1, 0.14, 0.2, 0.3, 0.45)
    sums = (0.03, 0.06, 0.1, 0.15, 0.22, 0.32, 0.5, 0.8)
    rates = (0.005, 0.01, 0.02, 0.03, 0.05, 0.1)
    factors = (0.03, 0.06, 0.12, 0.25, 0.5, 1.0, 4.0)
    reuse = (Reuse(),)
    return [
        Method("interval", lambda n, f: _with(FORA(n, warmup=3, scope="stack"), f), (2, 3, 4, 5, 6, 7, 8, 10)),
        Method("SCM mask", lambda s, f: SCM(s, STEPS, scope="stack", forecaster=f), SPEEDS),
        Method("LeMiCa list", lambda b, f: LeMiCa(b, forecaster=f), (26, 20, 15, 10)),
        Method("MagCache", lambda t, f: MagCache(t, 12, 0.06, table, forecaster=f), (0.02, 0.05, 0.1, 0.2, 0.4, 0.8)),
        Method("TeaCache", lambda t, f: TeaCache(t, coefficients=coefficients, forecaster=f), sums),
        Method("TeaCache, FLUX's fit", lambda t, f: TeaCache(t, forecaster=f), (*sums[3:], 1.2)),
        Method("FBCache", lambda t, f: FBCache(t, warmup=2, forecaster=f), changes),
        Method("DBCache F2 B1", lambda t, f: DBCache(2, 1, t, 2, forecaster=f), changes),
        Method("FBCache + TeaCache", lambda t, f: _both(t, coefficients, f), sums),
        Method("EasyCache", lambda t, f: EasyCache(t, 3, forecaster=f), rates),
        Method("DiCache", lambda t, f: DiCache(t, forecaster=f), sums),
        Method("DiCache, aligned", lambda t, f: DiCache(t), sums, reuse),
        Method("AdaCache", _adacache, factors),
        Method("SpeCa", _speca, changes),
        Method("PAB", lambda n, f: PAB(n, window=None, forecaster=f), (2, 3, 4, 5, 6, 8)),
        Method("DiTango", lambda r, f: DiTango(r), (0.1, 0.25, 0.5, 0.75, 1.0), reuse),
    ]


def _with(policy: Policy, forecaster: Forecaster) -> Policy:
    return Policy(policy.schedule, forecaster, policy.scope)


def _both(threshold: float, coefficients: Sequence[float], forecaster: Forecaster) -> Policy:
    inner, outer = FBCache(threshold / 2, warmup=2), TeaCache(threshold, coefficients=tuple(coefficients))
    return Policy(inner.schedule, forecaster, "stack", (*outer.guards, *inner.guards), first=0)


def _adacache(factor: float, forecaster: Forecaster) -> Policy:
    return AdaCache([(factor * most, interval) for most, interval in FAST_30[:-1]], forecaster=forecaster)


def _speca(threshold: float, forecaster: Forecaster) -> Policy:
    guard = SpeCaGuard(threshold, 1.0, threshold, 0, warmup=3, max_skips=8)
    return Policy(Free(3), forecaster, "stack", (guard,))


def measure(digits: int = DIGITS) -> Iterator[Callable[[], Line]]:
    """One line per method, knob and forecaster."""
    denoiser = hicache_compile(load_model(), FORA(scope="stack"), backend="eager")
    fitting = [functools.partial(sample, denoiser, torch.tensor([n]), STEPS, 1000 + n) for n in range(FITTED_ON)]
    with quietly():
        tea = fit(denoiser, fitting, "teacache", STEPS // 3).policy.guards[0].coefficients  # type: ignore[attr-defined]
        table = fit(denoiser, fitting, "magcache", STEPS // 3).policy.schedule.table  # type: ignore[attr-defined]
    with denoiser.disabled():
        uncached = [_sample(denoiser, number) for number in range(digits)]
    for method in methods(tea, table):
        for forecaster in method.forecasters:
            for knob in method.knobs:
                yield functools.partial(_line, denoiser, method, forecaster, knob, uncached)


def _sample(denoiser: CompiledDenoiser, number: int) -> torch.Tensor:
    return sample(denoiser, torch.tensor([number % 10]), STEPS, seed=number).images


def _line(
    denoiser: CompiledDenoiser, method: Method, forecaster: Forecaster, knob: Any, uncached: Sequence[torch.Tensor]
) -> Line:
    denoiser.policy = method.policy(knob, forecaster)
    images, computed, speedups = [], [], []
    for number in range(len(uncached)):
        with quietly():
            images.append(_sample(denoiser, number))
        report = denoiser.report()
        computed.append(report.computed)
        speedups.append(report.flops_speedup)
    difference = (torch.cat(images) - torch.cat(list(uncached))).norm()
    return {
        "measured": "guards",
        "method": method.name,
        "forecaster": "Hermite" if forecaster == HERMITE else "reuse",
        "knob": knob,
        "steps": STEPS,
        "computed": sum(computed) / len(computed),
        "equivalents": sum(STEPS / speedup for speedup in speedups) / len(speedups),
        "flops_speedup": len(speedups) / sum(1 / speedup for speedup in speedups),
        "relative_error": float(difference / torch.cat(list(uncached)).norm()),
        "digits": len(uncached),
        "command": "hicache bench guards",
        **environment(),
    }


def curves(lines: Sequence[Line], cost: str) -> Iterator[tuple[str, str, list[Line]]]:
    """Each method and forecaster with its lines, sorted by ``cost``."""
    for key in dict.fromkeys((line["method"], line["forecaster"]) for line in lines):
        mine = [line for line in lines if (line["method"], line["forecaster"]) == key]
        yield *key, sorted(mine, key=lambda line: line[cost])


def at(curve: Sequence[Line], cost: str, budget: float) -> float | None:
    """The error of ``curve`` at ``budget``, interpolated in the logarithm; ``None`` outside the measured range."""
    for less, more in itertools.pairwise(curve):
        if less[cost] <= budget <= more[cost]:
            span = more[cost] - less[cost]
            share = (budget - less[cost]) / span if span else 0.0
            ends = [math.log(max(line["relative_error"], 1e-9)) for line in (less, more)]
            return math.exp(ends[0] * (1 - share) + ends[1] * share)
    return None


def table(lines: Sequence[Line], cost: str = "computed") -> str:
    """The errors at each budget of ``cost`` as Markdown, the smallest of each column in bold."""
    rows = [(m, f, [at(curve, cost, STEPS / times) for times in BUDGETS]) for m, f, curve in curves(lines, cost)]
    reached = [[e[place] for *_, e in rows if e[place] is not None] for place in range(len(BUDGETS))]
    least = [min(errors, default=None) for errors in reached]  # type: ignore[type-var]  # None was filtered out
    heads = " | ".join(f"{times}x ({STEPS / times:.3g})" for times in BUDGETS)
    text = [f"| method | skipped steps | {heads} |", "|---|---|" + "---|" * len(BUDGETS)]
    for method, forecaster, errors in rows:
        cells = [
            "" if e is None else f"**{e:.3f}**" if e == best else f"{e:.3f}"
            for e, best in zip(errors, least, strict=True)
        ]
        text.append(f"| {method} | {forecaster} | {' | '.join(cells)} |")
    return "\n".join(text)


def draw(lines: Sequence[Line], folder: Path) -> list[Path]:
    """``guards.png``: error against computed steps, one panel per forecaster of the skipped steps."""
    if not lines:
        return []
    import matplotlib.pyplot as plt

    folder.mkdir(parents=True, exist_ok=True)
    figure, panels = plt.subplots(1, 2, figsize=(13, 6.2), sharex=True, sharey=True, layout="constrained")
    names = list(dict.fromkeys(line["method"] for line in lines))
    for axes, forecaster in zip(panels, ("reuse", "Hermite"), strict=True):
        for method, made_by, curve in curves(lines, "computed"):
            if made_by == forecaster:
                seen = [line for line in curve if line["relative_error"]]  # zero has no logarithm
                place = names.index(method)
                axes.plot(
                    [line["computed"] for line in seen],
                    [line["relative_error"] for line in seen],
                    marker="osD^vPX*"[place % 8],
                    ms=4.5,
                    lw=1.3,
                    color=plt.get_cmap("tab20")(place % 20),
                    label=method,
                )
        for times in BUDGETS:
            axes.axvline(STEPS / times, color="#cccccc", lw=0.8, zorder=0)
            axes.text(
                STEPS / times,
                0.985,
                f" {times}x",
                transform=axes.get_xaxis_transform(),
                va="top",
                color="#777777",
                size=8,
            )
        axes.set_yscale("log")
        axes.set_title(f"skipped steps: {forecaster}", loc="left", fontsize=10)
        axes.set_xlabel(f"steps of {STEPS} computed in full (mean over the digits)")
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylim(2e-3, 0.2)
    panels[0].set_ylabel("error of the images against uncached (relative, 2-norm)")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False, fontsize=8.5)
    path = folder / "guards.png"
    save_figure(figure, path, dpi=130)
    plt.close(figure)
    return [path]
