"""scikit-learn's handwritten digits as a small text-to-image problem for a FLUX transformer.

An image is 16x16, packed as in FLUX latents: 2x2 patches, 64 tokens of 4 values in [-1, 1]. A "prompt" is a class label
encoded as four text tokens and one pooled vector.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch.nn import functional

SIZE = 16
PATCH = 2
GRID = SIZE // PATCH
TOKENS = GRID * GRID
CHANNELS = PATCH * PATCH
CLASSES = 10
TEXT_TOKENS = 4
TEXT_DIM = CLASSES + TEXT_TOKENS
NO_CLASS = -1


def pack(images: torch.Tensor) -> torch.Tensor:
    """Images ``[B, 16, 16]`` to tokens ``[B, 64, 4]``."""
    patches = images.unflatten(2, (GRID, PATCH)).unflatten(1, (GRID, PATCH))
    return patches.transpose(2, 3).reshape(-1, TOKENS, CHANNELS)


def unpack(tokens: torch.Tensor) -> torch.Tensor:
    """Tokens ``[B, 64, 4]`` to images ``[B, 16, 16]``."""
    patches = tokens.reshape(-1, GRID, GRID, PATCH, PATCH).transpose(2, 3)
    return patches.reshape(-1, SIZE, SIZE)


def prompt(labels: torch.Tensor) -> dict[str, torch.Tensor]:
    """The conditioning inputs of the transformer for integer ``labels`` ``[B]``.

    ``NO_CLASS`` is the empty prompt, for classifier-free guidance. Text token ``j`` is the one-hot class concatenated
    with the one-hot position ``j``; the pooled projection is the one-hot class.
    """
    known = (labels != NO_CLASS).unsqueeze(1)
    one_hot = functional.one_hot(labels.clamp(min=0), CLASSES).float() * known
    position = torch.eye(TEXT_TOKENS).expand(len(labels), -1, -1)
    text = torch.cat([one_hot.unsqueeze(1).expand(-1, TEXT_TOKENS, -1), position], dim=2)
    rows = torch.arange(GRID, dtype=torch.float32)
    grid = torch.stack(torch.meshgrid(rows, rows, indexing="ij"), dim=-1).reshape(TOKENS, 2)
    return {
        "encoder_hidden_states": text,
        "pooled_projections": one_hot,
        "txt_ids": torch.zeros(TEXT_TOKENS, 3),
        "img_ids": functional.pad(grid, (1, 0)),
    }


@lru_cache(maxsize=1)
def dataset() -> tuple[torch.Tensor, torch.Tensor]:
    """The 1,797 digits as images ``[N, 16, 16]`` in [-1, 1] (bilinear from 8x8), and labels ``[N]``."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    small = torch.from_numpy(digits.images).float() / 8 - 1
    images = functional.interpolate(small.unsqueeze(1), size=SIZE, mode="bilinear", align_corners=False)
    return images.squeeze(1), torch.from_numpy(digits.target).long()


@lru_cache(maxsize=1)
def _classifier():  # type: ignore[no-untyped-def]  # scikit-learn ships no types
    from sklearn.svm import SVC

    images, labels = dataset()
    return SVC(gamma="scale", C=10.0).fit(images.flatten(1).numpy(), labels.numpy())


def classify(images: torch.Tensor) -> torch.Tensor:
    """Labels ``[B]`` of ``images`` ``[B, 16, 16]``, by a support vector machine trained on the digits."""
    return torch.from_numpy(_classifier().predict(_pixels(images))).long()


def decisions(images: torch.Tensor) -> torch.Tensor:
    """The classifier's decision values ``[B, 10]`` for ``images`` ``[B, 16, 16]``."""
    return torch.from_numpy(_classifier().decision_function(_pixels(images)))


def _pixels(images: torch.Tensor) -> Any:
    return images.detach().float().clamp(-1, 1).flatten(1).cpu().numpy()
