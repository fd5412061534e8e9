"""Column-sparse deltas for attention and MLPs (Chipmunk, arXiv 2506.03275): operators and kernels."""
