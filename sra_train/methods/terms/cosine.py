"""L_cos: each span's projected student state points where the teacher's does (docs/method.md, section 5).

Shapes: B examples, K spans, D hidden size.
"""

from __future__ import annotations

from torch import Tensor

SMALLEST_SQUARED_NORM = 1e-24


def unit_vectors(states: Tensor) -> Tensor:
    """States over their length; zeros stay zeros (with gradient zero), so that padded spans do no harm. [..., D]."""
    squared = states.square().sum(-1, keepdim=True)
    return states * squared.clamp_min(SMALLEST_SQUARED_NORM).rsqrt()


def cosine_loss(projected_student: Tensor, teacher: Tensor, salience: Tensor) -> Tensor:
    """sum_k w_k (1 - cos(C^S_k W, C^T_k)) of each example.

    Args:
        projected_student: [B, K, D_t], the student's centres of mass times W.
        teacher: [B, K, D_t], no gradient.
        salience: [B, K], 0 where padded.

    Returns:
        [B].
    """
    cosines = (unit_vectors(projected_student) * unit_vectors(teacher)).sum(-1)  # [B, K]
    return (salience * (1 - cosines)).sum(1)
