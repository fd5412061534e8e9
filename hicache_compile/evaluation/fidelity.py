"""Pictures against those of the same noise in full: relative error, PSNR, SSIM, LPIPS."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch

from hicache_compile.demo.sampling import RANGE, psnr

Images = torch.Tensor  # [B, C, H, W] in [-1, 1]


def fidelity(found: Images, wanted: Images) -> dict[str, list[float]]:
    """Of each picture: ``squared_error`` and ``squared_size`` (sums over it; the relative error of any number of
    pictures is the root of the ratio of their sums), ``psnr`` in dB and ``ssim`` (torchmetrics; window 11 or what
    fits), ``lpips`` where its weights are there (see ``lpips_of``).

    PSNR of a picture that is bit for bit the same is given as 100 dB, for infinity has no mean.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    found, wanted = found.float().cpu(), wanted.float().cpu()
    off = found - wanted
    window = min(11, (min(found.shape[-2:]) - 1) // 2 * 2 + 1)
    ssim = structural_similarity_index_measure(
        found, wanted, data_range=RANGE, gaussian_kernel=False, kernel_size=window, reduction="none"
    )
    assert isinstance(ssim, torch.Tensor)
    measured = {
        "squared_error": off.square().sum((1, 2, 3)).tolist(),
        "squared_size": wanted.square().sum((1, 2, 3)).tolist(),
        "psnr": psnr(found, wanted).clamp(max=100.0).tolist(),
        "ssim": ssim.reshape(-1).tolist(),
    }
    measure = lpips_of()
    if measure is not None and found.shape[1] == 3:
        measured["lpips"] = measure(found, wanted)
    return measured


@lru_cache(maxsize=1)
def lpips_of() -> Callable[[Images, Images], list[float]] | None:
    """LPIPS (Zhang et al., 1801.03924) on AlexNet, where torchvision and the weights are installed; nothing is fetched.

    The weights of AlexNet are looked for where ``torch.hub`` keeps them.
    """
    from pathlib import Path

    kept = list(Path(torch.hub.get_dir(), "checkpoints").glob("alexnet-*.pth"))
    try:
        from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

        if not kept:
            return None
        metric = LearnedPerceptualImagePatchSimilarity("alex")
    except (ImportError, ModuleNotFoundError, OSError):
        return None

    def measure(found: Images, wanted: Images) -> list[float]:
        return [float(metric(a[None].clamp(-1, 1), b[None].clamp(-1, 1))) for a, b in zip(found, wanted, strict=True)]

    return measure
