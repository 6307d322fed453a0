"""Divergences between two distributions over the same outcomes, with the gradient to the student's logits.

P is the teacher, Q the student (docs/method.md, section 5):

    forward   KL(P || Q) = sum p (log p - log q)
    reverse   KL(Q || P)
    js        (KL(P || M) + KL(Q || M)) / 2 with M = (P + Q) / 2

Both come as log-probabilities. An outcome that one side cannot have is written `ABSENT` instead of -inf: its
probability is exactly 0 and 0 x ABSENT is 0, where 0 x -inf would be NaN.

Shapes: r rows, O outcomes.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

Divergence = Literal["forward", "reverse", "js"]
ABSENT = -1e30


def divergence_of_logits(*, student_logits: Tensor, teacher_logits: Tensor, kind: Divergence) -> tuple[Tensor, Tensor]:
    """`divergence_and_gradient` of the softmaxes of two blocks of finite logits; both are overwritten.

    The exponential is most of the work on a CPU, and `forward` needs it once a side: sum p (log p - log q) is
    sum p (y - x) - (lse(y) - lse(x)) for the teacher's logits y and the student's x.
    """
    if kind != "forward":
        return divergence_and_gradient(
            student_log_probs=torch.log_softmax(student_logits, 1),
            teacher_log_probs=torch.log_softmax(teacher_logits, 1),
            kind=kind,
        )
    student_probs, student_log_sum = softmax_and_log_sum(student_logits)
    teacher_probs, teacher_log_sum = softmax_and_log_sum(teacher_logits)
    difference = teacher_logits.sub_(student_logits)
    values = torch.linalg.vecdot(teacher_probs, difference) - (teacher_log_sum - student_log_sum)
    return values, student_probs.sub_(teacher_probs)


def softmax_and_log_sum(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The softmax over columns [r, C], and the log-sum-exp [r]: the largest logit minus the log of its probability."""
    probs = torch.softmax(logits, 1)
    return probs, logits.amax(1) - probs.amax(1).log()


def divergence_and_gradient(
    *, student_log_probs: Tensor, teacher_log_probs: Tensor, kind: Divergence
) -> tuple[Tensor, Tensor]:
    """The divergence of each row and its gradient with respect to the student's logits of the outcomes.

    Args:
        student_log_probs: [r, O], a log-softmax; overwritten.
        teacher_log_probs: [r, O]; overwritten.
        kind: Which divergence. In `reverse`, an outcome the teacher cannot have contributes 0, not infinity.

    Returns:
        Values [r] and gradient [r, O]: d value / d u where log Q = log_softmax(u).
    """
    if kind == "forward":
        # d/du of sum p (log p - log q) is q - p, as P sums to 1.
        difference = teacher_log_probs - student_log_probs
        teacher_probs = teacher_log_probs.exp_()
        values = difference.mul_(teacher_probs).sum(1)
        return values, student_log_probs.exp_().sub_(teacher_probs)
    student_probs = student_log_probs.exp()
    if kind == "reverse":
        possible = teacher_log_probs > ABSENT / 2
        log_ratio = torch.where(possible, student_log_probs - teacher_log_probs, 0.0)
        values = (student_probs * log_ratio).sum(1)
        slope = torch.where(possible, log_ratio + 1, 0.0)
    else:
        log_middle = torch.logaddexp(teacher_log_probs, student_log_probs) - math.log(2)
        log_ratio = student_log_probs - log_middle
        teacher_part = teacher_log_probs.exp() * (teacher_log_probs - log_middle)
        values = 0.5 * (teacher_part + student_probs * log_ratio).sum(1)
        slope = 0.5 * log_ratio  # the other parts of d/dq cancel: M holds half of each
    # Through the softmax: d/du_i = q_i (slope_i - sum_j q_j slope_j).
    mean_slope = (student_probs * slope).sum(1, keepdim=True)
    return values, student_probs * (slope - mean_slope)
