"""The shared vocabulary as the KD terms use it: pairs of ids, and an order of the teacher's head that puts V first.

Everything is worked out when the method is built, on the CPU, and kept in buffers: no forward looks for an id.

Shapes: V shared ids, S and T the vocabularies of student and teacher.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sra_data.errors import ConfigError
from sra_train.contract import TeacherKnowledge
from sra_train.methods.terms.distributions import TeacherOutcomes


class VocabularyMap(nn.Module):
    """Pairs of ids. All buffers."""

    student_ids: Tensor  # [V]
    teacher_ids: Tensor  # [V]
    teacher_to_student: Tensor  # [T'] the student's id of the same bytes, -1 without one

    def __init__(self, knowledge: TeacherKnowledge, *, student_vocabulary: int, with_end_of_sequence: bool) -> None:
        """Read the pairs.

        Args:
            knowledge: Of the teacher.
            student_vocabulary: S, rows of the student's head.
            with_end_of_sequence: Whether the two end-of-sequence ids are one more pair, by role.

        Raises:
            ConfigError: If nothing is shared, or an id is beyond the student's head.
        """
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
        _refuse_beyond(student_ids, student_vocabulary)
        self.register_buffer("student_ids", student_ids, persistent=False)
        self.register_buffer("teacher_ids", teacher_ids, persistent=False)
        self.register_buffer("teacher_to_student", mapping, persistent=False)

    @property
    def num_shared(self) -> int:
        """V."""
        return len(self.student_ids)

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
        pairs = torch.tensor([pair for one in rounds for pair in one], dtype=torch.int64).reshape(-1, 2)
        return order, TeacherOutcomes(self.num_shared, pairs[:, 0], pairs[:, 1], [len(one) for one in rounds])


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
    _refuse_beyond(ids, vocabulary_size)
    others = torch.ones(vocabulary_size, dtype=torch.bool, device=ids.device)
    others[ids] = False
    return torch.cat([ids, others.nonzero()[:, 0]])


def _refuse_beyond(ids: Tensor, vocabulary_size: int) -> None:
    if int(ids.max()) >= vocabulary_size:
        raise ConfigError(
            f"shared vocabulary: id {int(ids.max())} is beyond the output head's {vocabulary_size} rows; "
            "the model does not belong to the tokenizer the shards were aligned with"
        )
