"""The command line, one file a command."""

from hicache_compile.cli.app import app

__all__ = ["app"]
