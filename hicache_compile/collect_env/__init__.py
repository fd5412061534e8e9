"""One archive that describes a case: what is installed, the model's configuration, the inputs' shapes, what happened.

It holds no weights and no values of inputs, and ``rerun`` makes the case happen again from it.
"""

from hicache_compile.collect_env.archive import Case, read
from hicache_compile.collect_env.collecting import collect
from hicache_compile.collect_env.rerunning import Outcome, rerun

__all__ = ["Case", "Outcome", "collect", "read", "rerun"]
