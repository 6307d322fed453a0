"""Losses that compare logits by rank (docs/method.md, section 10, `uld` and `multilevel-ot`), one number at a time.

Independent of the package, like `losses.py`: float64 scalars, differentiable by torch, slow on purpose.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tests.reference.losses import log_softmax


def number(one: Tensor) -> float:
    return float(one.detach())


def zero() -> Tensor:
    return torch.zeros((), dtype=torch.float64)


def probabilities(logits: list[Tensor], temperature: float) -> list[Tensor]:
    return [one.exp() for one in log_softmax([logit / temperature for logit in logits])]


def sorted_distance(student: list[Tensor], teacher: list[Tensor], temperature: float) -> Tensor:
    """L1 between the two distributions' probabilities in falling order, the shorter one padded with zeros."""
    sides = [sorted(probabilities(one, temperature), key=number, reverse=True) for one in (student, teacher)]
    longest = max(map(len, sides))
    first, second = (side + [zero()] * (longest - len(side)) for side in sides)
    total = zero()
    for q, p in zip(first, second, strict=True):
        total = total + (q - p).abs()
    return total


def scaled(logits: list[Tensor]) -> list[Tensor]:
    """Logits over their own standard deviation, about their mean, which is not taken off."""
    mean = sum(logits) / len(logits)
    deviation = (sum((one - mean) ** 2 for one in logits) / len(logits)) ** 0.5
    return [one / deviation for one in logits]


def sequence_ranks(rows: list[list[Tensor]], k: int, *, compared: str) -> list[list[Tensor]]:
    """Each row's scaled logits, or their softmax, at the k ids that have the largest sums of them over all rows."""
    found = [scaled(row) for row in rows]
    sums = [sum(number(row[place]) for row in found) for place in range(len(found[0]))]
    ids = sorted(range(len(sums)), key=lambda place: -sums[place])[:k]
    if compared == "probabilities":
        found = [probabilities(row, 1.0) for row in found]
    return [[row[place] for place in ids] for row in found]


def token_ranks(rows: list[list[Tensor]], k: int, *, compared: str) -> list[list[Tensor]]:
    """Each row's k largest scaled logits, or the k largest of their softmax."""
    found = [scaled(row) for row in rows]
    if compared == "probabilities":
        found = [probabilities(row, 1.0) for row in found]
    return [sorted(row, key=number, reverse=True)[:k] for row in found]


def l1(first: list[Tensor], second: list[Tensor]) -> Tensor:
    total = zero()
    for one, other in zip(first, second, strict=True):
        total = total + (one - other).abs()
    return total


def soft_cross_entropy(student: list[Tensor], teacher: list[Tensor]) -> Tensor:
    total = zero()
    for p, log_q in zip(probabilities(teacher, 1.0), log_softmax(student), strict=True):
        total = total - p * log_q
    return total


def transport(costs: list[list[Tensor]], epsilon: float, iterations: int) -> Tensor:
    """sum P C after scaling rows, then columns, of exp(-C / epsilon) so many times; in plain numbers."""
    size = len(costs)
    kernel = [[(-cost / epsilon).exp() for cost in row] for row in costs]
    u, v = [zero() + 1] * size, [zero() + 1] * size
    for _ in range(iterations):
        u = [1 / size / sum(kernel[i][j] * v[j] for j in range(size)) for i in range(size)]
        v = [1 / size / sum(kernel[i][j] * u[i] for i in range(size)) for j in range(size)]
    total = zero()
    for i in range(size):
        for j in range(size):
            total = total + u[i] * kernel[i][j] * v[j] * costs[i][j]
    return total
