"""Next-token distributions compared over EVENTS about the text that follows (docs/method.md, section 6).

At a boundary teacher and student have read the same bytes, but their next tokens are different pieces of what comes
next. Compared can only be what means the same on both sides: an event. Each id of either side belongs to one event, the
last of which is the residual; a side's probability of an event is the sum over its ids.

    first piece, byte prefix   a teacher's id belongs to the event of the student's id its bytes begin with, a student's
                               id that is such an image is its own event, everything else is residual
    next byte                  ids belong to the event of their first byte: exact for both models, and coarse

Shapes: R rows, r rows of a block, S and T the vocabularies of student and teacher, E events.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sra_train.methods.terms.distributions import TeacherHeadTerm
from sra_train.methods.terms.divergence import ABSENT, Divergence, divergence_and_gradient
from sra_train.methods.terms.head_loss import ChunkedHead


@dataclass(frozen=True)
class Events:
    """Which event each id is.

    Attributes:
        student: [S] int64 in [0, E); teacher: [T] likewise.
        count: E; the last event is the residual.
    """

    student: Tensor
    teacher: Tensor
    count: int

    @classmethod
    def of_images(cls, images: Tensor, *, student_vocabulary: int, teacher_vocabulary: int) -> Events:
        """Events of a map from teacher's ids to student's.

        Args:
            images: [T'] the student's id of each teacher id, -1 for none; ids beyond it have none.
            student_vocabulary: S, rows of the student's head.
            teacher_vocabulary: T, rows of the teacher's head.
        """
        mapped = torch.full((teacher_vocabulary,), -1, dtype=torch.int64)
        known = images[:teacher_vocabulary].long()
        mapped[: len(known)] = torch.where(known < student_vocabulary, known, -1)
        is_image = torch.zeros(student_vocabulary, dtype=torch.bool)
        is_image[mapped[mapped >= 0]] = True
        count = int(is_image.sum()) + 1
        student = torch.full((student_vocabulary,), count - 1, dtype=torch.int64)
        student[is_image] = torch.arange(count - 1)
        teacher = torch.where(mapped >= 0, student[mapped.clamp_min(0)], count - 1)
        return cls(student, teacher, count)

    @classmethod
    def of_first_bytes(cls, student: Tensor, teacher: Tensor, *, vocabularies: tuple[int, int]) -> Events:
        """Events of the next byte: 256 of them, and a residual for ids that stand for no bytes.

        Args:
            student: [S'] the first byte of each student id, -1 for none; teacher likewise.
            vocabularies: S and T, rows of the heads; ids beyond the tokenizers' stand for no bytes.
        """
        found = []
        for first, rows in zip((student, teacher), vocabularies, strict=True):
            events = torch.full((rows,), 256, dtype=torch.int64)
            known = first[:rows].long()
            events[: len(known)] = torch.where(known >= 0, known, 256)
            found.append(events)
        return cls(found[0], found[1], 257)

    def with_pair(self, student_id: int, teacher_id: int) -> Events:
        """The same with one more event, that of two ids which mean the same by role (end of sequence)."""
        student, teacher = self.student.clone(), self.teacher.clone()
        residual = self.count - 1
        student[student == residual], teacher[teacher == residual] = self.count, self.count
        student[student_id] = teacher[teacher_id] = residual
        return Events(student, teacher, self.count + 1)

    @property
    def student_has_residual(self) -> bool:
        """Whether the student has an id that is nobody's image: without one it cannot say "something else"."""
        return bool((self.student == self.count - 1).any())

    def to(self, device: torch.device) -> Events:
        """On a device."""
        return Events(self.student.to(device), self.teacher.to(device), self.count)


class EventTerm(TeacherHeadTerm):
    """Divergence between two next-token distributions over events; both heads whole, in their own order.

    With `student_top_k` only the events that the STUDENT finds likeliest stand alone, and all others are one outcome:
    a divergence on the student's support, which no cache of the teacher's top k can give.
    """

    def __init__(
        self,
        teacher_states: Tensor,
        teacher_head: ChunkedHead,
        coefficients: Tensor,
        *,
        events: Events,
        temperature: float,
        kind: Divergence,
        student_top_k: int = 0,
    ) -> None:
        """`student_top_k`: how many events stand alone; 0 for all."""
        super().__init__(teacher_states, teacher_head, coefficients, temperature=temperature, kind=kind)
        self.events = events
        self.student_top_k = student_top_k if student_top_k < events.count - 1 else 0
        self.teacher_events = teacher_states.new_empty(0)

    def begin(self, start: int, stop: int) -> None:
        super().begin(start, stop)
        log_probs = torch.log_softmax(self.teacher_logits / self.temperature, 1)
        self.teacher_events = event_log_probs(log_probs, self.events.teacher, self.events.count)

    def evaluate(self, logits: Tensor, start: int, stop: int) -> tuple[Tensor, Tensor]:
        log_probs = torch.log_softmax(logits / self.temperature, 1)  # [r, S]
        of_events = event_log_probs(log_probs, self.events.student, self.events.count)  # [r, E]
        teacher = self.teacher_events[start - self.chunk_start : stop - self.chunk_start].to(logits.dtype)
        compared = self._compared_whole if not self.student_top_k else self._compared_on_support
        values, slopes = compared(of_events, teacher)
        # Through an event's sum: each id takes its share of the event's slope.
        ids = self.events.student.expand(len(logits), -1)
        gradient = log_probs.sub_(of_events.gather(1, ids)).exp_()
        return values, gradient.mul_(slopes.gather(1, ids)).mul_(1 / self.temperature)

    def _compared_whole(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """Values [r] and the slope of each event [r, E]."""
        return divergence_and_gradient(
            student_log_probs=student.clone(), teacher_log_probs=teacher.clone(), kind=self.kind
        )

    def _compared_on_support(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """The same over the student's likeliest events (never the residual) and one outcome for all the rest."""
        chosen = student[:, :-1].topk(self.student_top_k, dim=1).indices  # [r, k]
        (student_log_probs, rest), (teacher_log_probs, _) = (_with_rest(one, chosen) for one in (student, teacher))
        values, slopes = divergence_and_gradient(
            student_log_probs=student_log_probs, teacher_log_probs=teacher_log_probs, kind=self.kind
        )
        # Each event of the rest takes its share of the rest's slope.
        spread = (student - rest).exp_().mul_(slopes[:, -1:])
        return values, spread.scatter_(1, chosen, slopes[:, :-1])


def _with_rest(log_probs: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the chosen events and of all others as one [r, k + 1]; and of the others alone [r, 1]."""
    rest = torch.logsumexp(log_probs.scatter(1, chosen, -torch.inf), 1, keepdim=True).clamp_min(ABSENT)
    return torch.cat([log_probs.gather(1, chosen), rest], 1), rest


def event_log_probs(log_probs: Tensor, events: Tensor, count: int) -> Tensor:
    """Log-probabilities of events [r, E] from those of ids [r, V]; ABSENT for an event that no id can be."""
    sums = log_probs.new_zeros((len(log_probs), count))
    sums.scatter_add_(1, events.expand(len(log_probs), -1), log_probs.exp())
    return torch.where(sums > 0, sums.log(), ABSENT)
