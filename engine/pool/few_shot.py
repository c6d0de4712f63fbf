"""A few of many target members, as the papers use: drawn by seed and content, evenly over the subtasks.

LESS takes 1 to 5 examples a subtask (MMLU 285 in all, BBH 81, TyDiQA 9), ROSE 1 to 5 pairs (SHP 90, Stack Exchange 20,
HH-RLHF 2). Each member costs more than a row of the pool, so a whole file of preferences may cost more than the selection.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np

from raysift.draws import seed_for, uniform_of

SHOTS = 5
"""Members that a subtask keeps in any case, the most that both papers take: none of their targets is cut."""


def draw_few(keys: Sequence[int], subtasks: Sequence[Hashable], limit: int, seed: int) -> list[int]:
    """Places of the members drawn, rising: of each subtask an even share of `limit`, but SHOTS if that is more.

    `keys` are hashes of content, so the draw depends neither on the order of members nor on their files.
    """
    known = Counter(subtasks)
    share = max(min(SHOTS, limit), limit // max(1, len(known)))
    draws = uniform_of(np.array(keys, np.int64), seed_for(seed, "targets"))
    taken: Counter[Hashable] = Counter()
    drawn = []
    for place in sorted(range(len(keys)), key=lambda place: (draws[place], keys[place], place)):
        if taken[subtasks[place]] < share:
            taken[subtasks[place]] += 1
            drawn.append(place)
    return sorted(drawn)
