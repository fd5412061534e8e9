"""What a pipeline returned, as the bytes of a file: a picture, or a clip as an animated PNG or WebP."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Image

MEDIA_TYPES = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}
FRAMES_A_SECOND = 16
_QUICK = 4  # of zlib's levels: a tenth larger than the usual, in a third of the time


def file_of(output: Any, kind: str, quality: int) -> bytes:
    """The first picture or clip of ``output``.

    Args:
        output: what has ``images`` or ``frames``.
        kind: one of ``MEDIA_TYPES``.
        quality: of JPEG and WebP, from 0 to 100.
    """
    first, *others = _frames(output)
    options: dict[str, Any] = {"compress_level": _QUICK} if kind == "png" else {"quality": quality}
    if others:
        options |= {"save_all": True, "append_images": others, "duration": 1000 / FRAMES_A_SECOND, "loop": 0}
    if kind == "jpeg":
        first = first.convert("RGB")
    written = BytesIO()
    first.save(written, kind, **options)
    return written.getvalue()


def _frames(output: Any) -> Sequence[Image]:
    from diffusers.image_processor import VaeImageProcessor
    from PIL.Image import Image

    frames = getattr(output, "frames", None)
    made = output.images[:1] if frames is None else frames[0]
    if isinstance(made[0], Image):
        return list(made)
    pictures: Sequence[Image] = VaeImageProcessor.numpy_to_pil(made)
    return pictures
