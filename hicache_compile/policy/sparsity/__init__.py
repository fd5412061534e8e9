"""Sparsity of computed steps: the settings of Chipmunk."""
