"""Pictures by themselves: what a classifier reads, how far their distribution is from real ones, what a prompt says."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hicache_compile.errors import HiCacheError
from hicache_compile.evaluation.subjects import DEMO, Subject

Images = torch.Tensor  # [B, C, H, W] in [-1, 1]
Score = Callable[[Images, Sequence[str]], dict[str, list[Any]]]


def digit_quality(images: Images, prompts: Sequence[str]) -> dict[str, list[Any]]:
    """Of digits: ``read``, 1 where a classifier reads what was asked for; and ``features``, its ten decision values."""
    from hicache_compile.demo import digits

    values = digits.decisions(images.squeeze(1))
    read = values.argmax(1).tolist()
    return {
        "read": [float(one == int(prompt)) for one, prompt in zip(read, prompts, strict=True)],
        "features": values.tolist(),
    }


def frechet(features: np.ndarray, real: np.ndarray) -> float:
    """The Frechet distance of two normal distributions with the means and covariances of ``[N, D]`` features:
    ``|m - m'|^2 + tr(S + S' - 2 (S S')^(1/2))`` (Heusel et al., 1706.08500)."""
    mean, other = features.mean(0), real.mean(0)
    one, two = np.cov(features, rowvar=False), np.cov(real, rowvar=False)
    # The eigenvalues of a product of two covariances are real and not negative, but for rounding.
    roots = np.sqrt(np.clip(np.linalg.eigvals(one @ two).real, 0, None))
    return float(np.square(mean - other).sum() + np.trace(one) + np.trace(two) - 2 * roots.sum())


def clip_score(folder: Path) -> Score:
    """``clip``: 100 times the cosine between picture and prompt (Hessel et al., 2104.08718), by a CLIP in ``folder``.

    Raises:
        HiCacheError: there is none in it.
    """
    from transformers import CLIPModel, CLIPProcessor

    try:
        model = CLIPModel.from_pretrained(folder, local_files_only=True).eval()
        processor = CLIPProcessor.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise HiCacheError(
            f"eval.clip = {str(folder)!r}: must be a folder of a CLIP with its processor ({error})"
        ) from None

    @torch.no_grad()
    def score(images: Images, prompts: Sequence[str]) -> dict[str, list[Any]]:
        pictures = [((image + 1) * 127.5).clamp(0, 255).byte().expand(3, -1, -1) for image in images.cpu()]
        given = processor(text=list(prompts), images=pictures, return_tensors="pt", padding=True, truncation=True)
        made = model(**given)
        cosine = torch.nn.functional.cosine_similarity(made.image_embeds, made.text_embeds)
        return {"clip": (100 * cosine).clamp(min=0).tolist()}

    return score


def image_reward(file: Path) -> Score:
    """``image_reward``: that of Xu et al. (2304.05977), by their package and a checkpoint in ``file``.

    Raises:
        HiCacheError: the package is not installed, or ``file`` is no checkpoint.
    """
    try:
        import ImageReward
    except ImportError:
        raise HiCacheError(
            f"eval.image_reward = {str(file)!r}: needs the package image-reward, not installed"
        ) from None
    if not os.path.isfile(file):
        raise HiCacheError(f"eval.image_reward = {str(file)!r}: must be a checkpoint of ImageReward")
    model = ImageReward.load(str(file), med_config=str(file.with_name("med_config.json")))

    def score(images: Images, prompts: Sequence[str]) -> dict[str, list[Any]]:
        from PIL import Image

        pictures = [
            Image.fromarray(((i + 1) * 127.5).clamp(0, 255).byte().permute(1, 2, 0).numpy()) for i in images.cpu()
        ]
        return {"image_reward": [float(model.score(p, i)) for p, i in zip(prompts, pictures, strict=True)]}

    return score


def scores_of(subject: Subject, clip: Path | None = None, reward: Path | None = None) -> list[Score]:
    """What can be said of the pictures of ``subject`` by themselves.

    Raises:
        HiCacheError: there is no CLIP in the folder ``clip``, or no ImageReward in the file ``reward``.
    """
    scores: list[Score] = [digit_quality] if subject.name == DEMO else []
    scores += [clip_score(clip)] if clip is not None else []
    scores += [image_reward(reward)] if reward is not None else []
    return scores


def real_features(subject: Subject) -> np.ndarray | None:
    """The features of real pictures, for the demo: of the digits it was trained on that are among its prompts."""
    if subject.name != DEMO:
        return None
    from hicache_compile.demo import digits

    images, labels = digits.dataset()
    asked = torch.tensor(sorted({int(prompt) for prompt in subject.prompts}))
    found: np.ndarray = digits.decisions(images[torch.isin(labels, asked)]).numpy()
    return found
