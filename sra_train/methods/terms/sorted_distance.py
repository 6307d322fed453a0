"""L1 distance between two next-token distributions, each sorted by itself (ULD, arXiv 2402.12030, section 3).

    value = sum_i | p_(i) - q_(i) |       p_(1) >= p_(2) >= ... of the teacher, q of the student, the shorter one padded
                                          with zeros

It is the Wasserstein distance under a cost that is the same between any two different ids: names of ids play no part.
A block of rows is sorted, compared and turned into its gradient at once; the sorted order is forgotten with it.

Through the sort a rank's slope goes back to the id that stood there, through the softmax to all logits. At equal
probabilities (p_(i) = q_(i), or two ids of one probability) any order gives the same value; the slope of |0| is 0.

Shapes: r rows of a block, R rows, S and T the vocabularies of student and teacher, D_t the teacher's hidden size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sra_train.methods.terms.head_loss import ChunkedHead, HeadTerm


class SortedDistanceTerm(HeadTerm):
    """Sum over ranks of |p - q|, one value per row."""

    def __init__(
        self, teacher_states: Tensor, teacher_head: ChunkedHead, coefficients: Tensor, *, temperature: float
    ) -> None:
        """`teacher_states` [R, D_t] are the states whose distributions are taught; the head is whole."""
        self.teacher_states = teacher_states
        self.teacher_head = teacher_head
        self.coefficients = coefficients
        self.temperature = temperature
        self.chunk_start = 0
        self.teacher_logits = teacher_states.new_empty(0)

    def begin(self, start: int, stop: int) -> None:
        self.chunk_start = start
        self.teacher_logits = self.teacher_head.logits(self.teacher_states[start:stop])

    def evaluate(self, logits: Tensor, start: int, stop: int) -> tuple[Tensor, Tensor]:
        taught = self.teacher_logits[start - self.chunk_start : stop - self.chunk_start].to(logits.dtype)
        teacher = torch.softmax(taught / self.temperature, 1).sort(1, descending=True).values  # [r, T]
        probs = torch.softmax(logits / self.temperature, 1)  # [r, S]
        student, order = probs.sort(1, descending=True)
        both = min(student.shape[1], teacher.shape[1])
        student[:, :both] -= teacher[:, :both]  # the student's ranks beyond the teacher's face zeros
        values = student.abs().sum(1) + teacher[:, both:].sum(1)
        slopes = torch.empty_like(probs).scatter_(1, order, student.sign_())
        # Through the softmax: d/dz_i = q_i (slope_i - sum_j q_j slope_j) / T.
        mean_slope = torch.linalg.vecdot(probs, slopes)[:, None]
        return values, slopes.sub_(mean_slope).mul_(probs).mul_(1 / self.temperature)
