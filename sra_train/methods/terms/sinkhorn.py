"""Transport between two sequences of vectors, example by example, by a fixed number of Sinkhorn's steps.

    value = sum_ij P_ij C_ij,    C_ij = sum_k | x_ik - y_jk |,    P = diag(u) exp(-C / epsilon) diag(v)

u and v are scaled in turn, first so that every row of P sums to 1 / n, then every column; n is the number of rows of an
example, the same on both sides, so P moves a mass of 1. Everything is in logarithms: exp(-C / epsilon) of a distance of
25 at epsilon 0.1 is 0 in any format. After the last step columns sum exactly, rows as well as the steps got them.

The gradient goes through the steps. Each step keeps its two short inputs and is computed again in the backward: a
hundred [B, n, n] tensors would be more memory than the student's states.

Shapes: B examples, n rows of the longest, k values of a row.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

NOWHERE = -1e30  # the logarithm of no mass; -inf would make NaN of differences


def sinkhorn_distance(student: Tensor, teacher: Tensor, lengths: Tensor, *, epsilon: float, iterations: int) -> Tensor:
    """The cost of moving each example's rows onto the teacher's.

    Args:
        student: [B, n, k], with gradient; rows at and beyond an example's length do not matter.
        teacher: [B, n, k], likewise without.
        lengths: [B] rows of each example.
        epsilon: How soft the plan is, in units of the cost.
        iterations: Steps; each scales rows, then columns.

    Returns:
        [B]; 0 for an example without rows.
    """
    real = torch.arange(student.shape[1], device=student.device) < lengths[:, None]  # [B, n]
    pairs = real[:, :, None] & real[:, None, :]
    # Whatever stands in padded rows must not reach a gradient, not even times 0.
    student, teacher = (one.masked_fill(~real[..., None], 0) for one in (student, teacher))
    cost = torch.cdist(student, teacher, p=1.0)
    log_kernel = torch.where(pairs, -cost / epsilon, NOWHERE)
    log_mass = -lengths.clamp_min(1).to(cost.dtype).log()[:, None]
    rows = columns = cost.new_zeros(cost.shape[:2])
    for _ in range(iterations):
        rows = _again(log_kernel, columns[:, None, :], log_mass, real, 2)
        columns = _again(log_kernel, rows[:, :, None], log_mass, real, 1)
    plan = (log_kernel + rows[:, :, None] + columns[:, None, :]).exp()
    return (plan * cost).sum((1, 2))


def _again(log_kernel: Tensor, other: Tensor, log_mass: Tensor, real: Tensor, over: int) -> Tensor:
    """`_scaled`, computed a second time in the backward; it draws no random number."""
    found: Tensor = checkpoint(
        _scaled, log_kernel, other, log_mass, real, over, use_reentrant=False, preserve_rng_state=False
    )
    return found


def _scaled(log_kernel: Tensor, other: Tensor, log_mass: Tensor, real: Tensor, over: int) -> Tensor:
    """The logarithms of u (over=2) or v (over=1) that give every row or column of the plan its mass [B, n]."""
    return torch.where(real, log_mass - torch.logsumexp(log_kernel + other, over), 0.0)
