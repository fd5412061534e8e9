"""Benchmarks: declared scenarios, this library and its peers in alternation, one JSON line each. See
``lockstep.race``."""
