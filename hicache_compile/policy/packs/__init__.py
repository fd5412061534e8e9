"""Policy packs: what was measured of several policies on one model, to choose from by a promise."""

from hicache_compile.policy.packs.contract import Contract, ContractReport
from hicache_compile.policy.packs.pack import IN_FULL, Entry, Pack, as_pack, is_pack
from hicache_compile.policy.packs.signature import Signature

__all__ = ["IN_FULL", "Contract", "ContractReport", "Entry", "Pack", "Signature", "as_pack", "is_pack"]
