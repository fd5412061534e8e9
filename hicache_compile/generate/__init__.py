"""``hicache generate``: a folder of prompts in, a folder of pictures or videos out, resumable."""
