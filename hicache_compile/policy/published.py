"""Published values of a method for a model: found by the denoiser's class and configuration."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from typing import Any

Rows = tuple[tuple[tuple[str, ...], Mapping[str, Any]], ...]

# Class -> the names of its published models, and what tells them apart in its configuration; the first that fits.
# Resolutions and fine-tunes (480p or 720p, FLUX.1-Kontext) have the same configuration: name these yourself.
MODELS: dict[str, Rows] = {
    "FluxTransformer2DModel": ((("flux",), {}),),
    "QwenImageTransformer2DModel": ((("qwen-image",), {}),),
    "ZImageTransformer2DModel": ((("z-image",), {}),),
    "HunyuanVideoTransformer3DModel": ((("hunyuan-video",), {}),),
    "HunyuanVideo15Transformer3DModel": (
        (("hunyuan-video-1.5-i2v-480p",), {"task_type": "i2v", "target_size": 640}),
        (("hunyuan-video-1.5-i2v-720p",), {"task_type": "i2v", "target_size": 960}),
        (("hunyuan-video-1.5-t2v-480p",), {"task_type": "t2v", "target_size": 640}),
        (("hunyuan-video-1.5-t2v-720p",), {"task_type": "t2v", "target_size": 960}),
    ),
    "WanTransformer3DModel": (
        (("wan2.1-i2v-480p", "wan2.1-i2v"), {"in_channels": 36}),
        (("wan2.2-ti2v-5b",), {"in_channels": 48}),
        (("wan2.1-t2v-1.3b",), {"num_attention_heads": 12}),
        (("wan2.1-t2v-14b",), {"num_attention_heads": 40}),
    ),
    "MochiTransformer3DModel": ((("mochi",), {}),),
    "LTXVideoTransformer3DModel": ((("ltx-video",), {}),),
    "CogVideoXTransformer3DModel": (
        (("cogvideox1.5-5b-i2v",), {"patch_size_t": 2, "in_channels": 32}),
        (("cogvideox1.5-5b",), {"patch_size_t": 2}),
        (("cogvideox-5b-i2v",), {"in_channels": 32}),
        (("cogvideox-5b",), {"num_layers": 42}),
        (("cogvideox-2b",), {"num_layers": 30}),
    ),
    "ConsisIDTransformer3DModel": ((("consisid",), {}),),
    "CosmosTransformer3DModel": ((("cosmos",), {}),),
    "LuminaNextDiT2DModel": ((("lumina-next",), {}),),
    "Lumina2Transformer2DModel": ((("lumina2",), {}),),
    "HiDreamImageTransformer2DModel": ((("hidream-full",), {}),),
    "LatteTransformer3DModel": ((("latte",), {}),),
}


@dataclass(frozen=True, slots=True)
class PublishedModel:
    """A denoiser as the tables of published values know it.

    Args:
        cls: the name of its class.
        names: what it is called in tables, the most precise first; none for a class of your own.
        missing: a sentence for each method that has no values for it, filled by ``name_in``.
    """

    cls: str
    names: tuple[str, ...]
    missing: list[str] = field(default_factory=list, compare=False)

    @classmethod
    def of(cls, module: Any) -> PublishedModel:
        """The denoiser ``module``, under wrappers of ``torch.compile`` and of parallel training."""
        while len(inner := getattr(module, "_modules", {})) == 1 and inner.keys() <= {"_orig_mod", "module"}:
            (module,) = inner.values()
        config = getattr(module, "config", None)
        known = config if isinstance(config, Mapping) else vars(config) if hasattr(config, "__dict__") else {}
        name = type(module).__name__
        for names, wanted in MODELS.get(name, ()):
            if all(known.get(key) == value for key, value in wanted.items()):
                return cls(name, names)
        return cls(name, ())

    def name_in(self, table: Container[str], method: str, instead: str) -> str | None:
        """Its name in ``table``; where it has none, ``None``, and a warning says what ``method`` does instead."""
        found = next((name for name in self.names if name in table), None)
        if found is None:
            self.missing.append(f"{method}: no values are published for {self.cls}: {instead}")
        return found


def for_model(part: Any, model: PublishedModel) -> Any:
    """A schedule or guard for ``model``: what its method ``for_model`` returns, or itself where it has none."""
    fitted = getattr(part, "for_model", None)
    return part if fitted is None else fitted(model)
