"""Several teachers at once: their terms weighted into one, and each one's own beside it.

Shapes: B examples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from sra_train.contract import Batch, LossTerms, StepTotals
from sra_train.methods.terms.cross_entropy import count_labels


@dataclass(frozen=True)
class Taught:
    """What one teacher adds to a micro-batch."""

    total: Tensor  # scalar with gradient, cross entropy included where it was asked for
    ce_sum: Tensor | None  # [B] nats
    values: dict[str, Tensor]  # the terms that are on, of each example [B], without their coefficients
    counts: dict[str, Tensor]


def together(
    found: Sequence[Taught],
    shares: Mapping[str, float],
    batch: Batch,
    totals: StepTotals,
    *,
    per_label: frozenset[str] = frozenset(),
) -> LossTerms:
    """The step's loss from what every teacher added; the first one brought the cross entropy along.

    Args:
        found: Of each teacher, in order.
        shares: teacher -> lambda_j, in the same order.
        batch: What they spoke about.
        totals: Of the global step.
        per_label: Terms that are divided by the labels of the step; the others are by its examples.
    """
    ce_sum = found[0].ce_sum
    assert ce_sum is not None
    per_example = weighted_sum(shares, [one.values for one in found])

    def divisor(name: str) -> float:
        return max(totals.labels if name.partition("[")[0] in per_label else totals.examples, 1)

    terms = {name: (batch.weight * values).sum() / divisor(name) for name, values in per_example.items()}
    return LossTerms(
        total=sum((one.total for one in found[1:]), start=found[0].total),
        terms={"ce": (batch.weight * ce_sum).sum() / max(totals.labels, 1), **terms},
        per_example={"ce_sum": ce_sum, "labels": count_labels(batch).to(ce_sum.dtype), **per_example},
        counts=by_teacher(shares, [one.counts for one in found]),
    )


OF_ALL = frozenset({"spans", "boundaries", "rows", "chunks"})  # counts worth their sum, not one of each teacher


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
