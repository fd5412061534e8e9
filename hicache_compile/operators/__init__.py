"""Functions that rewritten graphs call: they mean the same by hand, in a graph and compiled."""
