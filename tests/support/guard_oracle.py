"""Each guard as its authors describe it, in a few eager lines over FLUX taken apart. Nothing of ours is imported."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


class OpenFlux:
    """A diffusers FLUX as embed -> blocks -> head."""

    def __init__(self, model: Any, inputs: dict[str, Tensor]) -> None:
        self.model = model
        self.inputs = inputs
        self.blocks: list[nn.Module] = [*model.transformer_blocks, *model.single_transformer_blocks]

    def embed(self, x: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        """The image and text streams; the embedding and the positions stay here."""
        model, given = self.model, self.inputs
        self.temb = model.time_text_embed(time * 1000, given["pooled_projections"])
        ids = torch.cat([given["txt_ids"], given["img_ids"]])
        self.rope = model.pos_embed(ids)
        return model.x_embedder(x), model.context_embedder(given["encoder_hidden_states"])

    def modulated(self, image: Tensor) -> Tensor:
        return self.model.transformer_blocks[0].norm1(image, emb=self.temb)[0]

    def run(self, image: Tensor, text: Tensor, first: int = 0, last: int | None = None) -> tuple[Tensor, Tensor]:
        for block in self.blocks[first:last]:
            text, image = block(
                hidden_states=image, encoder_hidden_states=text, temb=self.temb, image_rotary_emb=self.rope
            )
        return image, text

    def head(self, image: Tensor) -> Tensor:
        result: Tensor = self.model.proj_out(self.model.norm_out(image, self.temb))
        return result


Step = Callable[[int, Tensor, Tensor], tuple[str, Tensor]]  # step, x, time -> letter, velocity


def sample(step: Step, x: Tensor, steps: int) -> tuple[str, Tensor]:
    """The trajectory of ``tests.models.trace`` with ``step``: its letters and its states."""
    letters, states = "", []
    for index in range(steps):
        with torch.no_grad():
            letter, velocity = step(index, x, torch.full((len(x),), 1 - index / steps))
        letters += letter
        x = x - velocity / steps
        states.append(x)
    return letters, torch.stack(states)


def change(now: Tensor, before: Tensor) -> float:
    return float((now - before).abs().mean() / before.abs().mean())


def teacache(flux: OpenFlux, steps: int, threshold: float, coefficients: tuple[float, ...], time_signal: bool) -> Step:
    state: dict[str, Any] = {"sum": 0.0}

    def step(index: int, x: Tensor, time: Tensor) -> tuple[str, Tensor]:
        image, text = flux.embed(x, time)
        signal = flux.temb if time_signal else flux.modulated(image)
        skip = False
        if 0 < index < steps - 1:
            d = change(signal, state["signal"])
            state["sum"] += sum(c * d**power for power, c in enumerate(reversed(coefficients)))
            skip = state["sum"] < threshold
        state["signal"] = signal
        if skip:
            return ".", flux.head(image + state["residual"])
        state["sum"] = 0.0
        after, _ = flux.run(image, text)
        state["residual"] = after - image
        return "F", flux.head(after)

    return step


def first_block(flux: OpenFlux, threshold: float, blocks: int, downsample: int, warmup: int) -> Step:
    state: dict[str, Any] = {}

    def step(index: int, x: Tensor, time: Tensor) -> tuple[str, Tensor]:
        image, text = flux.embed(x, time)
        probed, probed_text = flux.run(image, text, 0, blocks)
        residual = (probed - image)[..., ::downsample]
        if index >= max(1, warmup) and change(residual, state["first"]) < threshold:
            return ".", flux.head(probed + state["rest"])
        after, _ = flux.run(probed, probed_text, blocks)
        state.update(first=residual, rest=after - probed)
        return "F", flux.head(after)

    return step


def easycache(flux: OpenFlux, steps: int, threshold: float, warmup: int) -> Step:
    state: dict[str, Any] = {"sum": 0.0}

    def step(index: int, x: Tensor, time: Tensor) -> tuple[str, Tensor]:
        image, text = flux.embed(x, time)
        skip = False
        if warmup <= index < steps - 1:
            state["sum"] += state["k"] * float((x - state["before"]).abs().mean() / state["y"].abs().mean())
            skip = state["sum"] < threshold
        state["before"] = x
        if skip:
            return ".", flux.head(image + state["residual"])
        state["sum"] = 0.0
        after, _ = flux.run(image, text)
        y = flux.head(after)
        if index:
            state["k"] = float((y - state["y"]).abs().mean() / (x - state["x"]).abs().mean())
        state.update(residual=after - image, x=x, y=y)
        return "F", y

    return step


def sencache(
    flux: OpenFlux, steps: int, threshold: float, of_input: tuple[float, ...], of_time: tuple[float, ...], most: int
) -> Step:
    """Sensitivities are those of the last computed step, linear between the values that are given."""
    state: dict[str, Any] = {"skipped": 0}

    def at(values: tuple[float, ...], index: int) -> float:
        return float(np.interp(index / (steps - 1), np.linspace(0, 1, len(values)), values))

    def step(index: int, x: Tensor, time: Tensor) -> tuple[str, Tensor]:
        image, text = flux.embed(x, time)
        if 0 < index < steps - 1 and state["skipped"] < most:
            error = at(of_input, state["at"]) * change(x, state["x"])
            error += at(of_time, state["at"]) * float(state["time"][0] - time[0])
            if error < threshold:
                state["skipped"] += 1
                return ".", flux.head(image + state["residual"])
        after, _ = flux.run(image, text)
        state.update(residual=after - image, x=x, time=time, at=index, skipped=0)
        return "F", flux.head(after)

    return step


def dicache(flux: OpenFlux, steps: int, threshold: float, blocks: int, excess: bool) -> Step:
    state: dict[str, Any] = {"sum": 0.0, "full": []}

    def step(index: int, x: Tensor, time: Tensor) -> tuple[str, Tensor]:
        image, text = flux.embed(x, time)
        probed, probed_text = flux.run(image, text, 0, blocks)
        skip = False
        if 0 < index < steps - 1:
            error = change(probed, state["probed"])
            state["sum"] += abs(error - change(image, state["image"])) if excess else error
            skip = state["sum"] < threshold
        state.update(probed=probed, image=image)
        if skip:
            (r1, p1), (r2, p2) = state["full"][-1], state["full"][-2] if len(state["full"]) > 1 else state["full"][-1]
            gamma = float(((probed - image) - p2).abs().mean() / (p1 - p2).abs().mean())
            gamma = 1.0 if math.isnan(gamma) or len(state["full"]) < 2 else min(max(gamma, 1.0), 1.5)
            return ".", flux.head(image + r2 + gamma * (r1 - r2))
        state["sum"] = 0.0
        after, _ = flux.run(probed, probed_text, blocks)
        state["full"].append((after - image, probed - image))
        return "F", flux.head(after)

    return step


def both(flux: OpenFlux, steps: int, fb: float, tea: float, coefficients: tuple[float, ...]) -> Step:
    """TeaCache outside, first block inside; only full steps are remembered."""
    state: dict[str, Any] = {"sum": 0.0}

    def step(index: int, x: Tensor, time: Tensor) -> tuple[str, Tensor]:
        image, text = flux.embed(x, time)
        signal = flux.modulated(image)
        free = 0 < index < steps - 1
        if free:
            d = change(signal, state["signal"])
            state["sum"] += sum(c * d**power for power, c in enumerate(reversed(coefficients)))
        state["signal"] = signal
        if free and state["sum"] < tea:
            return ".", flux.head(image + state["block"] + state["rest"])
        probed, probed_text = flux.run(image, text, 0, 1)
        if free and change(probed - image, state["block"]) < fb:
            return "s", flux.head(probed + state["rest"])
        state["sum"] = 0.0
        after, _ = flux.run(probed, probed_text, 1)
        state.update(block=probed - image, rest=after - probed)
        return "F", flux.head(after)

    return step


def adacache(flux: OpenFlux, steps: int, codebook: tuple[tuple[float, int], ...], warmup: int, cooldown: int) -> Step:
    state: dict[str, Any] = {"next": 0}

    def step(index: int, x: Tensor, time: Tensor) -> tuple[str, Tensor]:
        image, text = flux.embed(x, time)
        if warmup <= index < steps - cooldown and index < state["next"]:
            return ".", flux.head(image + state["residual"])
        after, _ = flux.run(image, text)
        whole = after - image
        interval = 1
        if "whole" in state:
            c = change(whole, state["whole"]) / (index - state["last"])
            interval = next((n for most, n in codebook if c <= most), 1)
        state.update(residual=after - image, whole=whole, last=index, next=index + interval)
        return "F", flux.head(after)

    return step


def speca(flux: OpenFlux, steps: int, base: float, decay: float, warmup: int, least: int, most: int) -> Step:
    """Drafts by the last residuals' linear extrapolation (Taylor of order 1)."""
    state: dict[str, Any] = {"full": [], "row": 0, "rejected": False}
    last = len(flux.blocks) - 1

    def drafted(index: int, place: int) -> Tensor:
        (at, *newer), rest = state["full"][-1], state["full"][:-1]
        if not rest:
            return newer[place]
        before, *older = rest[-1]
        slope = (newer[place] - older[place]) / (at - before)
        result: Tensor = newer[place] + slope * (index - at)
        return result

    def step(index: int, x: Tensor, time: Tensor) -> tuple[str, Tensor]:
        image, text = flux.embed(x, time)
        stream = torch.cat([text, image], dim=1)
        length = text.shape[1]
        if index >= warmup and state["row"] < most and not state["rejected"]:
            whole = stream + drafted(index, 0)
            after, after_text = flux.run(whole[:, length:], whole[:, :length], last)
            error = change(torch.cat([after_text, after], dim=1) - whole, drafted(index, 1))
            state["row"] += 1
            state["rejected"] = state["row"] >= least and error > max(0.1, base * decay ** (index / steps))
            return ".", flux.head(after)
        inner, inner_text = flux.run(image, text, 0, last)
        whole = torch.cat([inner_text, inner], dim=1)
        after, after_text = flux.run(inner, inner_text, last)
        state["full"].append((index, whole - stream, torch.cat([after_text, after], dim=1) - whole))
        state.update(row=0, rejected=False)
        return "F", flux.head(after)

    return step
