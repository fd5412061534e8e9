"""What was asked for besides the denoiser, as the threads of one compiled denoiser share it."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

from hicache_compile.policy.policy import Policy
from hicache_compile.policy.sparsity.chipmunk import Chipmunk
from hicache_compile.runtime.replay.replay import registrations


@dataclass(slots=True)
class Settings:
    """What the threads of one compiled denoiser share: the policy of the next trajectory, and room for anchors."""

    policy: Policy
    memory_budget: int | None = None  # bytes of anchors on the device, over all contexts
    offload: bool = False
    backend: str = "inductor"
    sparsity: Chipmunk | None = None
    decide_together: bool = False  # the ranks of torch.distributed run one sampling
    weights_epoch: int = 0  # counts changes of weights that their versions do not show
    touched: int = 0  # counts what may have changed the denoiser in another way

    def changes(self) -> Hashable:
        """Different when the denoiser may have changed."""
        return self.weights_epoch, self.touched, registrations()
