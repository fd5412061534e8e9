"""``python -m hicache_compile ...`` is ``hicache ...``."""

from hicache_compile.cli import app

app(prog_name="hicache")
