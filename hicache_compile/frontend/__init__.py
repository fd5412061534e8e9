"""The ways in: ``hicache_compile``, ``torch.compile(backend="hicache")``, pipelines."""
