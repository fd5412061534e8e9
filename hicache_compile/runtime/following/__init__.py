"""Following a run: which run a call of the denoiser belongs to, which step of it, which guidance branch."""
