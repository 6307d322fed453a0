"""L_KD's rows: which outcomes teacher and student are compared over (docs/method.md, section 5).

* `SharedVocabularyTerm`: both softmaxes over the shared vocabulary V only (kd_vocabulary=renormalised).
* `SharedOrRestTerm`: both over the model's whole vocabulary; V and one outcome for all the rest.
* `TopKTerm`: the teacher's cached top k with a counterpart, and one outcome for all the rest.

The student's logits come in its own order of ids, and the first two pick V's columns out of them. The rest of a
distribution is a log-sum-exp over what is left, never 1 minus a sum: the difference of two numbers near 1 would be
noise.

Shapes: R rows, r rows of a block, V shared ids, S and T the vocabularies of student and teacher, k top-k entries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sra_train.methods.terms.divergence import ABSENT, Divergence, divergence_and_gradient, divergence_of_logits
from sra_train.methods.terms.head_loss import ChunkedHead, HeadTerm


class TeacherHeadTerm(HeadTerm):
    """What the terms with the teacher's head share: its logits, one chunk at a time."""

    def __init__(
        self,
        teacher_states: Tensor,
        teacher_head: ChunkedHead,
        coefficients: Tensor,
        *,
        temperature: float,
        kind: Divergence,
    ) -> None:
        """`teacher_states` [R, D_t] are the states whose distribution is taught."""
        self.teacher_states = teacher_states
        self.teacher_head = teacher_head
        self.coefficients = coefficients
        self.temperature = temperature
        self.kind: Divergence = kind
        self.chunk_start = 0
        self.teacher_logits = teacher_states.new_empty(0)

    def begin(self, start: int, stop: int) -> None:
        self.chunk_start = start
        self.teacher_logits = self.teacher_head.logits(self.teacher_states[start:stop])

    def scaled_teacher_logits(self, start: int, stop: int, dtype: torch.dtype) -> Tensor:
        """Over the rows of the teacher's head, at the temperature; fresh memory."""
        logits = self.teacher_logits[start - self.chunk_start : stop - self.chunk_start]
        return (logits / self.temperature).to(dtype)


class SharedVocabularyTerm(TeacherHeadTerm):
    """Divergence between softmaxes over V; the teacher's head holds the rows of V only, in V's order.

    `columns` [V] are the student's ids in the same order; None where its head holds the rows of V only, too.
    """

    def __init__(
        self,
        teacher_states: Tensor,
        teacher_head: ChunkedHead,
        coefficients: Tensor,
        *,
        columns: Tensor | None,
        temperature: float,
        kind: Divergence,
    ) -> None:
        super().__init__(teacher_states, teacher_head, coefficients, temperature=temperature, kind=kind)
        self.columns = columns

    def evaluate(self, logits: Tensor, start: int, stop: int) -> tuple[Tensor, Tensor]:
        shared = logits.clone() if self.columns is None else logits.index_select(1, self.columns)
        values, gradient = divergence_of_logits(
            student_logits=shared.div_(self.temperature),
            teacher_logits=self.scaled_teacher_logits(start, stop, logits.dtype),
            kind=self.kind,
        )
        return values, gradient.mul_(1 / self.temperature)


@dataclass(frozen=True)
class TeacherOutcomes:
    """How the teacher's ids fall into V and the rest.

    The teacher's head is ordered: first V, then D other ids that spell a string of V too ("doubles"), then the rest.
    Doubles are added up in rounds, in none of which a column of V comes twice: `round_sizes` cuts the pairs (column of
    the double, column in V it belongs to).
    """

    num_shared: int
    doubles: Tensor  # [D] int64
    into: Tensor  # [D] int64
    round_sizes: Sequence[int]

    @property
    def num_doubles(self) -> int:
        """D."""
        return len(self.doubles)


class SharedOrRestTerm(TeacherHeadTerm):
    """Divergence over V and {rest}; both heads whole, the teacher's with V first.

    `shared` [V] are the student's ids in V's order.
    """

    def __init__(
        self,
        teacher_states: Tensor,
        teacher_head: ChunkedHead,
        coefficients: Tensor,
        *,
        shared: Tensor,
        outcomes: TeacherOutcomes,
        temperature: float,
        kind: Divergence,
    ) -> None:
        super().__init__(teacher_states, teacher_head, coefficients, temperature=temperature, kind=kind)
        self.shared = shared
        self.outcomes = outcomes

    def evaluate(self, logits: Tensor, start: int, stop: int) -> tuple[Tensor, Tensor]:
        log_probs = torch.log_softmax(logits / self.temperature, 1)  # [r, S]
        shared = log_probs.index_select(1, self.shared)
        rest = _log_sum(log_probs.index_fill_(1, self.shared, -torch.inf))
        values, slopes = divergence_and_gradient(
            student_log_probs=torch.cat([shared, rest], 1),
            teacher_log_probs=self._teacher_outcomes(start, stop, logits.dtype),
            kind=self.kind,
        )
        slopes.mul_(1 / self.temperature)
        gradient = log_probs.sub_(rest).exp_().mul_(slopes[:, -1:])  # the rest's slope, by share of the rest
        return values, gradient.index_add_(1, self.shared, slopes[:, :-1])

    def _teacher_outcomes(self, start: int, stop: int, dtype: torch.dtype) -> Tensor:
        """Log-probabilities of V and the rest [r, V + 1]."""
        log_probs = torch.log_softmax(self.scaled_teacher_logits(start, stop, dtype), 1)
        outcomes = self.outcomes
        shared, doubles, sizes = outcomes.num_shared, outcomes.num_doubles, list(outcomes.round_sizes)
        for double, column in zip(outcomes.doubles.split(sizes), outcomes.into.split(sizes), strict=True):
            log_probs[:, column] = torch.logaddexp(log_probs[:, column], log_probs[:, double])
        return torch.cat([log_probs[:, :shared], _log_sum(log_probs[:, shared + doubles :])], 1)


@dataclass(frozen=True)
class TopKOutcomes:
    """The teacher's distribution over M and {rest}, one row per taught position.

    Entries without an outcome (an id with no counterpart, or one added to another of its string) have the student id
    S, one past the last, and the log-probability ABSENT.
    """

    student_ids: Tensor  # [R, k] int64
    log_probs: Tensor  # [R, k + 1], the rest last; ABSENT where it has no mass


def top_k_outcomes(
    *,
    top_k_ids: Tensor,
    top_k_values: Tensor,
    log_tail: Tensor,
    teacher_to_student: Tensor,
    student_vocabulary: int,
    temperature: float,
) -> TopKOutcomes:
    """The distribution softmax([v / T, log_tail_T]) of a cache, gathered by the student's ids.

    Ids of one string are added up; ids without a counterpart are added to the rest. Nothing is renormalised over the
    top k.

    Args:
        top_k_ids: [R, k] teacher ids, different from each other within a row.
        top_k_values: [R, k] log-probabilities at temperature 1.
        log_tail: [R] logsumexp of v / T over the ids left out, -inf where none is left.
        teacher_to_student: [T'] the student's id of the same bytes, -1 without one.
        student_vocabulary: S.
        temperature: T.
    """
    dtype = torch.promote_types(top_k_values.dtype, torch.float32)
    tail = log_tail.to(dtype)[:, None]
    log_probs = torch.log_softmax(torch.cat([top_k_values.to(dtype) / temperature, tail], 1), 1)  # [R, k + 1]
    # Rows of the teacher's head beyond its tokenizer's ids are in no map.
    known = top_k_ids < len(teacher_to_student)
    mapped = teacher_to_student[top_k_ids.clamp_max(len(teacher_to_student) - 1)]  # [R, k]
    mapped = torch.where(known & (mapped >= 0), mapped, student_vocabulary)
    # Sorted by student id, ids of one string stand together; the first of them stands for all.
    student_ids, order = mapped.sort(1)
    probs = log_probs[:, :-1].gather(1, order).exp()
    is_first = torch.ones_like(student_ids, dtype=torch.bool)
    is_first[:, 1:] = student_ids[:, 1:] != student_ids[:, :-1]
    slot = is_first.cumsum(1) - 1
    summed = torch.zeros_like(probs).scatter_add_(1, slot, probs)
    ids = torch.full_like(student_ids, student_vocabulary).scatter_(1, slot, student_ids)
    unmatched = ids == student_vocabulary  # also slots nothing fell into; those hold 0
    rest = log_probs[:, -1:].exp() + summed.masked_fill(~unmatched, 0).sum(1, keepdim=True)
    outcomes = torch.cat([summed.masked_fill(unmatched, 0), rest], 1)
    return TopKOutcomes(student_ids=ids, log_probs=torch.where(outcomes > 0, outcomes.log(), ABSENT))


class TopKTerm(HeadTerm):
    """Divergence over M and {rest}; the student's softmax runs over its whole vocabulary."""

    def __init__(self, outcomes: TopKOutcomes, coefficients: Tensor, *, temperature: float, kind: Divergence) -> None:
        self.outcomes = outcomes
        self.coefficients = coefficients
        self.temperature = temperature
        self.kind: Divergence = kind

    def evaluate(self, logits: Tensor, start: int, stop: int) -> tuple[Tensor, Tensor]:
        ids = self.outcomes.student_ids[start:stop]  # [r, k]
        # One column more, for the ids that are no outcome: it is never part of the rest.
        scaled = logits.new_empty(len(logits), logits.shape[1] + 1)
        torch.mul(logits, 1 / self.temperature, out=scaled[:, :-1])
        scaled[:, -1] = ABSENT
        chosen = scaled.gather(1, ids)
        rest = _log_sum(scaled.scatter_(1, ids, -torch.inf))  # [r, 1]
        values, slopes = divergence_and_gradient(
            student_log_probs=torch.log_softmax(torch.cat([chosen, rest], 1), 1),
            teacher_log_probs=self.outcomes.log_probs[start:stop].to(logits.dtype, copy=True),
            kind=self.kind,
        )
        slopes.mul_(1 / self.temperature)
        gradient = scaled.sub_(rest).exp_().mul_(slopes[:, -1:])
        gradient.scatter_add_(1, ids, slopes[:, :-1])
        return values, gradient[:, :-1]


def _log_sum(log_values: Tensor) -> Tensor:
    """log-sum-exp over columns, kept as one; ABSENT where there is nothing to add. [r, 1]."""
    if not log_values.shape[1]:
        return log_values.new_full((len(log_values), 1), ABSENT)
    return torch.logsumexp(log_values, 1, keepdim=True).clamp_min(ABSENT)
