"""Policies as plain data: which steps to compute, how to forecast the others, and where. Imports no torch."""

from hicache_compile.policy.layout import NOWHERE, SCOPES, Layout
from hicache_compile.policy.policy import Policy

__all__ = ["NOWHERE", "SCOPES", "Layout", "Policy"]
