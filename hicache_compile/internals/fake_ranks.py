"""Process groups of which one rank exists. By itself, because it imports what takes a second."""

from hicache_compile.internals.feature import Feature

with Feature("process groups of which one rank exists", "hicache bench ranks cannot run") as FAKE_RANKS:
    from torch.testing._internal.distributed import fake_pg

    FakeStore = fake_pg.FakeStore
