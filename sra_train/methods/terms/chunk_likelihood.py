"""Binary cross entropy between two probabilities of the same piece of text (ALM, arXiv 2503.20083, section 3).

    value = - a log b - (1 - a) log(1 - b),      a = p^(1/T) of the teacher, b = q^(1/T) of the student

p and q are probabilities of a whole chunk and come as logarithms; T = 100 brings them near 1, where the logarithm of
what is left over needs care: 1 - exp(x) of a float32 x = -1e-9 is 0, its logarithm -inf.

Shapes: C chunks.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def log1mexp(x: Tensor) -> Tensor:
    """log(1 - exp(x)) of x < 0, exact to rounding on both sides of -log 2; with gradient.

    Near 0 the difference is what expm1 is for, far from it what log1p is for. Either branch is handed harmless values
    where the other one counts: an infinity times a gradient of 0 would be NaN.
    """
    is_near = x > -math.log(2)
    near = torch.where(is_near, x, -1.0)
    far = torch.where(is_near, -1.0, x)
    return torch.where(is_near, torch.log(-torch.expm1(near)), torch.log1p(-torch.exp(far)))


def chunk_cross_entropy(*, teacher_log_probs: Tensor, student_log_probs: Tensor, temperature: float) -> Tensor:
    """The binary cross entropy of each chunk in nats; the gradient reaches the student's alone.

    A chunk that the student is certain of (log q rounds to 0) counts as the rounding below it and gets no gradient:
    the true slope is finite, but lies in digits that are gone.

    Args:
        teacher_log_probs: [C] log p.
        student_log_probs: [C] log q.
        temperature: T.

    Returns:
        [C].
    """
    certain = -torch.finfo(student_log_probs.dtype).eps
    student = student_log_probs.clamp_max(certain) / temperature
    teacher = teacher_log_probs.detach().clamp_max(0) / temperature
    return -(teacher.exp() * student - torch.expm1(teacher) * log1mexp(student))
