"""Denoisers by name, folder or configuration, built without weights, with example inputs of any size."""

from hicache_compile.architectures.inputs import Request, example_inputs
from hicache_compile.architectures.known import KNOWN
from hicache_compile.architectures.resolve import Architecture, resolve

__all__ = ["KNOWN", "Architecture", "Request", "example_inputs", "resolve"]
