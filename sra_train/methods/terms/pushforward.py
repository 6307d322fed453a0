"""The teacher's distribution moved onto the student's ids along a map, and labels at a temperature, for MinED.

    P(s)  =  sum of the teacher's p over all its ids that the map sends to s,  among ids that have an image

Shapes: R rows, r rows of a block, S and T the vocabularies of student and teacher.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sra_train.methods.terms.cross_entropy import CrossEntropyTerm
from sra_train.methods.terms.distributions import TeacherHeadTerm
from sra_train.methods.terms.head_loss import ChunkedHead


class PushforwardTerm(TeacherHeadTerm):
    """KL(P || Q) over the student's whole vocabulary; an id that nothing is mapped to has P = 0.

    Ids without an image are left out of the teacher's softmax: what remains is one distribution again.
    """

    def __init__(
        self,
        teacher_states: Tensor,
        teacher_head: ChunkedHead,
        coefficients: Tensor,
        *,
        images: Tensor,
        student_vocabulary: int,
        temperature: float,
    ) -> None:
        """`images` [T] are ids of the student, -1 for none."""
        super().__init__(teacher_states, teacher_head, coefficients, temperature=temperature, kind="forward")
        self.images, self.student_vocabulary = images, student_vocabulary
        self.pushed = teacher_states.new_empty(0)

    def begin(self, start: int, stop: int) -> None:
        super().begin(start, stop)
        logits = self.teacher_logits.masked_fill(self.images < 0, -torch.inf)
        probs = torch.softmax(logits.div_(self.temperature), 1)
        self.pushed = probs.new_zeros(len(probs), self.student_vocabulary)
        self.pushed.index_add_(1, self.images.clamp_min(0), probs)  # those without an image have probability 0

    def evaluate(self, logits: Tensor, start: int, stop: int) -> tuple[Tensor, Tensor]:
        taught = self.pushed[start - self.chunk_start : stop - self.chunk_start].to(logits.dtype)
        log_probs = torch.log_softmax(logits / self.temperature, 1)
        values = torch.xlogy(taught, taught).sum(1) - torch.linalg.vecdot(taught, log_probs)
        return values, log_probs.exp_().sub_(taught).mul_(1 / self.temperature)


class OneHotTerm(CrossEntropyTerm):
    """-log Q(target) at a temperature: the divergence from a one-hot distribution."""

    def __init__(self, targets: Tensor, coefficients: Tensor, *, temperature: float) -> None:
        super().__init__(targets, coefficients)
        self.temperature = temperature

    def evaluate(self, logits: Tensor, start: int, stop: int) -> tuple[Tensor, Tensor]:
        values, gradient = super().evaluate(logits / self.temperature, start, stop)
        return values, gradient.mul_(1 / self.temperature)
