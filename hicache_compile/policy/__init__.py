"""What is wanted, as plain data: when to compute, what to do instead, and where. Imports no torch."""

from hicache_compile.policy.policy import NOWHERE, SCOPES, Policy

__all__ = ["NOWHERE", "SCOPES", "Policy"]
