"""The shared vocabulary as the KD terms use it: an order of each head's rows that puts V first.

Shapes: V shared ids, S and T the vocabularies of student and teacher.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sra_data.errors import ConfigError
from sra_train.contract import TeacherKnowledge
from sra_train.methods.terms.distributions import TeacherOutcomes


class VocabularyMap(nn.Module):
    """Pairs of ids, with end-of-sequence as one more pair by role where `with_end_of_sequence`. All buffers."""

    student_ids: Tensor  # [V]
    teacher_ids: Tensor  # [V]
    teacher_to_student: Tensor  # [T'] the student's id of the same bytes, -1 without one

    def __init__(self, knowledge: TeacherKnowledge, *, with_end_of_sequence: bool) -> None:
        super().__init__()
        student_ids = knowledge.shared_student_ids.long()
        teacher_ids = knowledge.shared_teacher_ids.long()
        mapping = _teacher_to_student(knowledge, student_ids, teacher_ids)
        if with_end_of_sequence and knowledge.end_of_sequence is not None:
            student_end, teacher_end = knowledge.end_of_sequence
            # By role: whatever the strings said of either id gives way.
            apart = (student_ids != student_end) & (teacher_ids != teacher_end)
            student_ids = torch.cat([student_ids[apart], torch.tensor([student_end])])
            teacher_ids = torch.cat([teacher_ids[apart], torch.tensor([teacher_end])])
            if len(mapping) <= teacher_end:
                mapping = torch.cat([mapping, torch.full((teacher_end + 1 - len(mapping),), -1)])
            in_shared = torch.isin(mapping, student_ids[:-1])
            mapping = torch.where(in_shared, mapping, -1)
            mapping[teacher_end] = student_end
        if not len(student_ids):
            raise ConfigError("kd=true: student and teacher share no vocabulary entry; set kd=false")
        self.register_buffer("student_ids", student_ids, persistent=False)
        self.register_buffer("teacher_ids", teacher_ids, persistent=False)
        self.register_buffer("teacher_to_student", mapping, persistent=False)
        self._orders: dict[tuple[int, torch.device], tuple[Tensor, Tensor]] = {}

    @property
    def num_shared(self) -> int:
        """V."""
        return len(self.student_ids)

    def student_order(self, vocabulary_size: int) -> tuple[Tensor, Tensor]:
        """The student's ids with V first [S], and the column of each id in that order [S]."""
        key = (vocabulary_size, self.student_ids.device)
        if key not in self._orders:
            order = _shared_first(self.student_ids, vocabulary_size)
            columns = torch.empty_like(order)
            columns[order] = torch.arange(vocabulary_size, device=order.device)
            self._orders = {key: (order, columns)}
        return self._orders[key]

    def teacher_map(self, vocabulary_size: int) -> Tensor:
        """`teacher_to_student` over the head's rows [T]: padding rows beyond the tokenizer's ids map to nothing."""
        known = self.teacher_to_student[:vocabulary_size]
        missing = vocabulary_size - len(known)
        return torch.cat([known, known.new_full((missing,), -1)])

    def teacher_outcomes(self, vocabulary_size: int) -> tuple[Tensor, TeacherOutcomes]:
        """The teacher's ids ordered as V, doubles of V's strings, the rest [T], and what that order means."""
        mapping = self.teacher_map(vocabulary_size)
        column = torch.full((int(self.student_ids.max()) + 1,), -1)
        column[self.student_ids] = torch.arange(self.num_shared)
        is_double = mapping >= 0
        is_double[self.teacher_ids] = False
        doubles = is_double.nonzero()[:, 0]
        order = _shared_first(torch.cat([self.teacher_ids, doubles]), vocabulary_size)
        rounds: list[list[tuple[int, int]]] = []
        seen: dict[int, int] = {}
        for place, double in enumerate(doubles.tolist()):
            into = int(column[mapping[double]])
            turn = seen.get(into, 0)
            seen[into] = turn + 1
            if turn == len(rounds):
                rounds.append([])
            rounds[turn].append((self.num_shared + place, into))
        tensors = [(torch.tensor([a for a, _ in pairs]), torch.tensor([b for _, b in pairs])) for pairs in rounds]
        return order, TeacherOutcomes(self.num_shared, len(doubles), tensors)


def _teacher_to_student(knowledge: TeacherKnowledge, student_ids: Tensor, teacher_ids: Tensor) -> Tensor:
    """The map of all teacher ids; from the pairs alone where none is given."""
    if knowledge.teacher_to_student is not None:
        mapping = knowledge.teacher_to_student.long().clone()
        strangers = mapping[(mapping >= 0) & ~torch.isin(mapping, student_ids)]
        assert not len(strangers), f"teacher_to_student names student ids outside V: {strangers[:5].tolist()}"
        return mapping
    mapping = torch.full((int(teacher_ids.max()) + 1 if len(teacher_ids) else 0,), -1)
    mapping[teacher_ids] = student_ids
    return mapping


def _shared_first(ids: Tensor, vocabulary_size: int) -> Tensor:
    """`ids`, then all others in increasing order [vocabulary_size]."""
    if int(ids.max()) >= vocabulary_size:
        raise ConfigError(
            f"shared vocabulary: id {int(ids.max())} is beyond the output head's {vocabulary_size} rows; "
            "the model does not belong to the tokenizer the shards were aligned with"
        )
    others = torch.ones(vocabulary_size, dtype=torch.bool, device=ids.device)
    others[ids] = False
    return torch.cat([ids, others.nonzero()[:, 0]])
