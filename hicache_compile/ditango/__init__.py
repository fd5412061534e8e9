"""DiTango (HPDC'26): attention over partitions of the keys, of which the far ones are reused from step to step.

geometry   which partition is local to which, and how the others fall into groups
schedule   the policy's side: how much is reused, how the keys are split
course     the planner: anchors, and which group of which layer is computed next
"""

from hicache_compile.ditango.course import DiTangoCourse
from hicache_compile.ditango.geometry import Split
from hicache_compile.ditango.schedule import DiTangoSchedule

__all__ = ["DiTangoCourse", "DiTangoSchedule", "Split"]
