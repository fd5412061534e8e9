"""Policies as plain data: which steps to compute, how to forecast the others, and where. Imports no torch."""

from hicache_compile.policy.policy import NOWHERE, SCOPES, Policy

__all__ = ["NOWHERE", "SCOPES", "Policy"]
