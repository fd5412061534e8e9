"""Every denoiser of diffusers, built small."""

from tests.zoo import latents, others, tokens, unets, video
from tests.zoo.case import Case

CASES: list[Case] = [*tokens.CASES, *latents.CASES, *video.CASES, *others.CASES, *unets.CASES]

__all__ = ["CASES", "Case"]
