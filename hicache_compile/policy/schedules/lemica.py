"""LeMiCa (2511.00090): the computed steps are a published list for the model and the budget."""

from __future__ import annotations

from hicache_compile.errors import HiCacheError, named, whole_number
from hicache_compile.policy.plain_data import plain_data
from hicache_compile.policy.published import PublishedModel
from hicache_compile.policy.schedules.base import StepMask
from hicache_compile.policy.schedules.lemica_lists import LISTS

DEFAULT = "flux"


@plain_data
class LeMiCaSchedule:
    """The list of the model that is compiled; until that is known, and where none is published for it, FLUX's.

    Args:
        budget: computed steps; ``None``: the middle one of the model's lists.
        cooldown: steps at the end that are computed whatever the list.
    """

    budget: int | None = None
    cooldown: int = 0

    def __post_init__(self) -> None:
        known = sorted({budget for _, lists in LISTS.values() for budget in lists})
        if self.budget is not None and (isinstance(self.budget, bool) or self.budget not in known):
            budgets = ", ".join(map(str, known))
            raise HiCacheError(f"LeMiCaSchedule.budget = {self.budget!r}: must be one of {budgets}, by model")
        whole_number("LeMiCaSchedule", "cooldown", self.cooldown, 0)

    @property
    def first_anchor(self) -> int:
        return 0

    def computes(self, step: int, num_steps: int | None) -> bool:
        return StepMask(lemica_mask(DEFAULT, self.budget, self.cooldown)).computes(step, num_steps)

    def for_model(self, model: PublishedModel) -> StepMask:
        """The list published for ``model``."""
        instead = "FLUX's list is used; search your own with `hicache tune`, or name a model"
        name = model.name_in(LISTS, "LeMiCa", instead)
        return StepMask(lemica_mask(name or DEFAULT, self.budget, self.cooldown))


def lemica_mask(model: str, budget: int | None, cooldown: int = 0) -> str:
    """The mask of ``model`` with ``budget`` computed steps, and the last ``cooldown``, as ``1`` and ``0``.

    Raises:
        HiCacheError: no list is published for ``model`` and ``budget``.
    """
    model = named("LeMiCa", "model", model, LISTS)
    if budget is not None:
        whole_number("LeMiCa", "budget", budget, 1)
    whole_number("LeMiCa", "cooldown", cooldown, 0)
    num_steps, lists = LISTS[model]
    if budget is None:
        budget = sorted(lists)[len(lists) // 2]
    if budget not in lists:
        known = ", ".join(map(str, lists))
        raise HiCacheError(f"LeMiCa.budget = {budget!r}: must be one of {known} for {model}")
    computed = set(range(max(1, num_steps - cooldown), num_steps))
    for part in lists[budget].split(","):
        first, _, last = part.partition("-")
        computed.update(range(int(first), int(last or first) + 1))
    return "".join("1" if step in computed else "0" for step in range(num_steps))
