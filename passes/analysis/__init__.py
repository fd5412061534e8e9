"""Analyses of the captured graph. None of them modifies it."""
