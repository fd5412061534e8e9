"""Functions that rewritten graphs call. They give the same results in eager mode, in a graph and compiled."""
