"""Several teachers at once: their terms weighted into one, and each one's own beside it.

Shapes: B examples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

OF_ALL = frozenset({"spans"})  # counts that are worth their sum, not one of each teacher


def weighted_sum(shares: Mapping[str, float], values: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """sum_j lambda_j x value of teacher j, by the name of the value, and where there are several ``name[teacher]`` too.

    Args:
        shares: teacher -> lambda_j, in order.
        values: of each teacher, the same names in all.
    """
    found: dict[str, Tensor] = {}
    for name, first in values[0].items():
        total = first * next(iter(shares.values()))
        for share, others in list(zip(shares.values(), values, strict=True))[1:]:
            total = total + share * others[name]
        found[name] = total
    if len(shares) > 1:
        for teacher, own in zip(shares, values, strict=True):
            found |= {f"{name}[{teacher}]": value for name, value in own.items()}
    return found


def by_teacher(shares: Mapping[str, float], counts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The counts of every teacher as ``name[teacher]`` where there are several; ``spans`` of all together."""
    if len(shares) == 1:
        return dict(counts[0])
    found: dict[str, Tensor] = {}
    for teacher, own in zip(shares, counts, strict=True):
        for name, value in own.items():
            if name in OF_ALL:
                found[name] = found[name] + value if name in found else value
            else:
                found[f"{name}[{teacher}]"] = value
    return found
