"""What a denoiser run on a part of its tokens knows of them: can it correct a forecast?

Guided runs of the emoji model, 28 steps of which every 7th is computed. At the steps between, the errors at a random
part of the tokens: of a forecast, of the denoiser run on these tokens alone, and of two ways to join them, which
take out what such a run lacks, as it sees no other tokens.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hicache_compile import Hermite, weights
from hicache_compile.demo.emoji import GUIDANCE, SIZE, TOKENS
from hicache_compile.demo.emoji.drawing import load_pipeline

CAPTIONS = ("broccoli, flat style", "chestnut, noto style", "cocktail glass, flat style", "cricket, noto style")
SHARES = (0.25, 0.5)
STEPS, INTERVAL, FIRST = 28, 7, 2  # computed steps go on from FIRST
Call = tuple[dict[str, Any], Tensor]  # the arguments of a call and what it returned


class Calls:
    """Every call of a denoiser, which can be made again for some tokens."""

    def __init__(self, denoiser: Any) -> None:
        self._forward = denoiser.forward
        self.made: list[Call] = []
        denoiser.forward = self._noted

    def _noted(self, **call: Any) -> Any:
        output = self._forward(**call)
        self.made.append((call, output[0]))
        return output

    def alone(self, call: Call, chosen: Tensor) -> Tensor:
        """What the denoiser makes of the tokens ``chosen`` of ``call`` where there are no others."""
        arguments, _ = call
        part = {"hidden_states": arguments["hidden_states"][:, chosen], "img_ids": arguments["img_ids"][chosen]}
        made: Tensor = self._forward(**{**arguments, **part})[0]
        return made


@torch.no_grad()
def errors_at(share: float) -> dict[str, Any]:
    """The mean errors at ``share`` of the tokens, relative in the 2-norm, by how they were made."""
    pipeline: Any = load_pipeline()
    pipeline.set_progress_bar_config(disable=True)
    calls = Calls(pipeline.transformer)
    errors: dict[str, list[float]] = defaultdict(list)
    for number, caption in enumerate(CAPTIONS):
        calls.made.clear()
        pipeline(
            caption,
            num_inference_steps=STEPS,
            height=SIZE,
            width=SIZE,
            max_sequence_length=TOKENS,
            true_cfg_scale=GUIDANCE,
            negative_prompt="",
            output_type="latent",
            generator=torch.Generator().manual_seed(number),
        )
        run = calls.made[::2]  # the branch of the caption
        for step in range(FIRST + INTERVAL, STEPS):
            if (step - FIRST) % INTERVAL:
                for name, error in _errors(calls, run, step, share).items():
                    errors[name].append(error)
    return {"what": f"{share:.0%} of the tokens"} | {name: statistics.mean(found) for name, found in errors.items()}


def _errors(calls: Calls, run: Sequence[Call], step: int, share: float) -> dict[str, float]:
    tokens = run[step][1].shape[1]
    chosen = torch.randperm(tokens, generator=torch.Generator().manual_seed(step))[: round(share * tokens)]
    computed = list(range(FIRST, step, INTERVAL))[::-1][:3]
    row = weights(Hermite(2, 0.5), computed, step)
    whole = {at: run[at][1][:, chosen] for at in (*computed, step)}
    alone = {at: calls.alone(run[at], chosen) for at in (*computed, step)}
    forecast = sum((w * whole[at] for w, at in zip(row, computed, strict=True)), torch.zeros(()))
    missing = sum((w * (whole[at] - alone[at]) for w, at in zip(row, computed, strict=True)), torch.zeros(()))
    newest = computed[0]
    made = {
        "forecast": forecast,
        "these tokens alone": alone[step],
        "the newest and the change of these tokens alone": whole[newest] + alone[step] - alone[newest],
        "these tokens alone and a forecast of what they miss": alone[step] + missing,
    }
    return {name: float((one - whole[step]).norm() / whole[step].norm()) for name, one in made.items()}
