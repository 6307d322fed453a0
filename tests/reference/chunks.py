"""The loss on chunk probabilities (docs/method.md, section 10, `alm`), one number at a time, in float64."""

from __future__ import annotations

import torch
from torch import Tensor


def chunk_cross_entropy(teacher: list[Tensor], student: list[Tensor], temperature: float) -> Tensor:
    """Binary cross entropy of p^(1/T) and q^(1/T); both come as the log-probabilities of a chunk's tokens."""
    a = torch.exp(sum(one.double() for one in teacher) / temperature)
    b = torch.exp(sum(student) / temperature)
    return -(a * torch.log(b) + (1 - a) * torch.log(1 - b))
