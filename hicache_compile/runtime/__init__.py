"""One sampling run: what happens at each call of a compiled denoiser."""
