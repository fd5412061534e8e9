"""``python -m hicache_compile ...`` is ``hicache ...``."""

from hicache_compile.cli.app import app

app(prog_name="hicache")
