"""What is wanted, as plain data: when to compute, what to do instead, and where. Imports no torch."""

from hicache_compile.policy.layout import NOWHERE, SCOPES, Layout
from hicache_compile.policy.policy import Policy

__all__ = ["NOWHERE", "SCOPES", "Layout", "Policy"]
