"""A small model that draws emoji from their names."""

SIZE = 64  # pixels
TOKENS = 16  # of a caption, with the marks of its beginning and end
GUIDANCE = 3.0
STEPS = 28
