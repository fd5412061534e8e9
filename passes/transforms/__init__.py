"""The passes that rewrite a graph."""
