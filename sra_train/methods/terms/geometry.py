"""L_geo: the student's spans stand to each other as the teacher's do (docs/method.md, section 5).

The student's centres are not projected: only angles between them count, so rotating or stretching all of them changes
nothing. A [K, K] table per example is needed, with K up to 1,024: the tables live for a few examples at a time, and the
gradient is formed along with the value, so that none is kept for the backward.

Shapes: B examples, K spans, D hidden size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sra_train.methods.terms.cosine import unit_vectors

SMALLEST_PAIR_WEIGHT = 1e-12
TABLE_ELEMENTS = 4 * 2**20  # entries of the [examples, K, K] tables that live at once: 16 MB each in float32


def geometry_loss(student: Tensor, teacher: Tensor, salience: Tensor) -> Tensor:
    """sum over i != j of w_ij (cos(C^S_i, C^S_j) - cos(C^T_i, C^T_j))^2 of each example.

    w_ij = w_i w_j off the diagonal, renormalised to 1. Where they sum to less than 1e-12 (one span, or one span with
    all the mass) the loss is 0.

    Args:
        student: [B, K, D_s], unprojected.
        teacher: [B, K, D_t], no gradient.
        salience: [B, K], 0 where padded.

    Returns:
        [B], with a gradient for `student` only.
    """
    return _Geometry.apply(unit_vectors(student), unit_vectors(teacher.detach()), salience.detach())


class _Geometry(torch.autograd.Function):
    """On unit vectors. d/dS_i of sum_ij w_ij (S_i.S_j - t_ij)^2 is 4 sum_j w_ij (S_i.S_j - t_ij) S_j (w symmetric)."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, salience: Tensor) -> Tensor:
        batch, spans, _ = student.shape
        values = student.new_zeros(batch)
        gradient = torch.zeros_like(student)
        examples = max(1, TABLE_ELEMENTS // max(1, spans * spans))
        with torch.autocast(student.device.type, enabled=False):
            for start in range(0, batch, examples):
                rows = slice(start, start + examples)
                values[rows], gradient[rows] = _value_and_gradient(student[rows], teacher[rows], salience[rows])
        ctx.save_for_backward(gradient)
        return values

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * outer[0][:, None, None], None, None


def _value_and_gradient(student: Tensor, teacher: Tensor, salience: Tensor) -> tuple[Tensor, Tensor]:
    """Values [b] and their gradient [b, K, D_s] with respect to the student's unit vectors."""
    salience = salience.to(student.dtype)
    pair_weights = salience[:, :, None] * salience[:, None, :]  # [b, K, K]
    # The diagonal is set to zero and the rest summed: 1 - sum of squares would cancel to noise for one heavy span.
    pair_weights.diagonal(dim1=1, dim2=2).zero_()
    total = pair_weights.sum((1, 2), keepdim=True)
    counts = total >= SMALLEST_PAIR_WEIGHT
    pair_weights = torch.where(counts, pair_weights / torch.where(counts, total, 1.0), 0.0)
    difference = torch.bmm(student, student.mT)
    difference.baddbmm_(teacher, teacher.mT, alpha=-1)
    weighted = pair_weights.mul_(difference)
    values = (weighted * difference).sum((1, 2))
    return values, 4 * torch.bmm(weighted, student)
