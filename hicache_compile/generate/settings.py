"""How items are made: plain data, so that another process can open the same pipeline."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hicache_compile.backends import BACKENDS
from hicache_compile.errors import one_of
from hicache_compile.generate.pipelines import DTYPES
from hicache_compile.generate.spread import Spread
from hicache_compile.policy.json_codec import as_policy
from hicache_compile.policy.layout import ANCHORS
from hicache_compile.policy.sparsity.chipmunk import as_sparsity
from hicache_compile.policy.weights_of_folder import weights_of_folder
from hicache_compile.runtime.storage.budget import parse_bytes


@dataclass(slots=True, kw_only=True)
class Settings:
    """The model folder, the policy and what is handed to the pipeline's call.

    ``device``: by default a GPU of the worker if it has any. ``dtype``: by default float32 on the CPU, else bfloat16.

    Raises:
        HiCacheError: a field is not what is allowed.
    """

    model: Path
    policy: Any
    steps: int = 50
    backend: str = "inductor"
    device: str = ""
    dtype: str = ""
    memory_budget: str | None = None
    offload: bool = False
    anchors: str | None = None
    sparsity: Any = None
    spread: Spread = field(default_factory=Spread)
    arguments: dict[str, Any] = field(default_factory=dict)
    weights: str = field(init=False, default="")  # of the model folder, see `weights_of_folder`

    def __post_init__(self) -> None:
        one_of("generate", "backend", self.backend, BACKENDS)
        if self.dtype:
            one_of("generate", "dtype", self.dtype, DTYPES)
        parse_bytes(self.memory_budget)
        if self.anchors is not None:
            one_of("generate", "anchors", self.anchors, ANCHORS)
        self.policy, self.sparsity = as_policy(self.policy), as_sparsity(self.sparsity)
        self.steps = self.steps if self.policy.sigmas is None else len(self.policy.sigmas)
        self.weights = weights_of_folder(self.model)
        self.policy.decisions(self.steps)  # a mask of another length says so before anything is loaded
