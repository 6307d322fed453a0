"""Attention between the tokens of two models' responses, both ways: each side's states carried to the other's rows.

Source: DSKD (arXiv 2406.17328), cross-model attention. For the rows of one example, with x_i the token a row has read
last and y_i the one it predicts, e their input embeddings and N( ) a division by the standard deviation:

    queries   Q = [e_S(x), e_S(y)] P_query                            [M, 2 D_t]   of the student
    keys      K = N[e_T(x), e_T(y)]                                   [Q', 2 D_t]  of the teacher
    values    V_T = (N h_T + N e_T(y)) P_to_student    V_S = h_S P_to_teacher
    A = Q K^T / sqrt(2 D_t)          to_student = softmax over the teacher's rows of A, times V_T
                                     to_teacher = softmax over the student's rows of A^T, times V_S

Nothing of a row is known to the others but through A, and no example sees another's rows.

Shapes: B examples, R label rows of the student, Q of the teacher, M and Q' the most an example has, D_s / D_t sizes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sra_data.errors import ConfigError
from sra_train.contract import Batch, InputEmbeddings, LabelRows, ResponseRows
from sra_train.methods.terms.cross_entropy import rows_of
from sra_train.methods.terms.dual_space import over_deviation
from sra_train.methods.terms.layers import orthogonal_projector

NOT_THERE = -1e30  # a score beside which any other is everything; finite, so that a row without a key gives no NaN


@dataclass(frozen=True)
class Carried:
    """States at the other side's rows, zeros and False where the example has no row to attend to."""

    to_student: Tensor  # [R, D_s], the teacher's
    to_teacher: Tensor  # [Q, D_t], the student's
    student_has: Tensor  # [R] bool
    teacher_has: Tensor  # [Q] bool


class CrossModelAttention(nn.Module):
    """Three projectors, orthogonal at first, without bias; and the teacher's input embeddings as a buffer."""

    teacher_ids: Tensor  # [n] increasing
    teacher_embeddings: Tensor  # [n, D_t] as the teacher's first block sees them

    def __init__(self, embeddings: InputEmbeddings, *, student_width: int, teacher_width: int, seed: int) -> None:
        """Make the projectors.

        Raises:
            ConfigError: If the teacher's embeddings are not as wide as its last states.
        """
        super().__init__()
        if embeddings.weight.shape[1] != teacher_width:
            raise ConfigError(
                f"method=dskd: the teacher's input embeddings are {embeddings.weight.shape[1]} wide, its last states"
                f" {teacher_width}; choose another teacher or method=dskdv2"
            )
        self.query = orthogonal_projector(2 * student_width, 2 * teacher_width, seed=seed)
        self.to_student = orthogonal_projector(teacher_width, student_width, seed=seed + 1)
        self.to_teacher = orthogonal_projector(student_width, teacher_width, seed=seed + 2)
        self.register_buffer("teacher_ids", embeddings.ids, persistent=False)
        self.register_buffer("teacher_embeddings", embeddings.weight * embeddings.scale, persistent=False)

    def forward(
        self,
        *,
        student_hidden: Tensor,
        student_embeddings: Tensor,
        embedding_scale: float,
        teacher_hidden: Tensor,
        teacher_ids: Tensor,
        batch: Batch,
        rows: ResponseRows,
    ) -> Carried:
        """Carry the states across.

        Args:
            student_hidden: [B, N, D_s], with gradient.
            student_embeddings: [V, D_s] the table, without.
            embedding_scale: What a row of it is multiplied by.
            teacher_hidden: [B, P, D_t].
            teacher_ids: [B, P] the teacher's token at each position.
            batch: Whose label rows are the student's.
            rows: Of both sides.
        """
        own, other, count = batch.label_rows, rows.teacher, len(batch.weight)
        dtype = torch.promote_types(student_hidden.dtype, torch.float32)
        query = self._query(batch, student_embeddings, dtype) * embedding_scale
        states = rows_of(teacher_hidden, other.positions).to(dtype)
        keys, values = self._keys_and_values(teacher_ids, states, other, count)
        of_teacher = values @ self.to_student.to(dtype)  # [Q, D_s]
        of_student = rows_of(student_hidden, own.positions).to(dtype) @ self.to_teacher.to(dtype)  # [R, D_t]

        def student_table(values: Tensor) -> Tensor:
            return table(values, rows.student_slots, count, rows.student_width)

        def teacher_table(values: Tensor) -> Tensor:
            return table(values, rows.teacher_slots, count, rows.teacher_width)

        scores = student_table(query) @ teacher_table(keys).mT / math.sqrt(keys.shape[1])  # [B, M, Q']
        is_student = student_table(torch.ones_like(query[:, :1]))  # [B, M, 1]
        is_teacher = teacher_table(torch.ones_like(keys[:, :1]))  # [B, Q', 1]
        to_student = attended(scores, is_teacher, teacher_table(of_teacher))  # [B, M, D_s]
        to_teacher = attended(scores.mT, is_student, student_table(of_student))  # [B, Q', D_t]
        return Carried(
            to_student=to_student.flatten(0, 1).index_select(0, rows.student_slots),
            to_teacher=to_teacher.flatten(0, 1).index_select(0, rows.teacher_slots),
            student_has=is_teacher.any(1)[own.example, 0],
            teacher_has=is_student.any(1)[other.example, 0],
        )

    def _query(self, batch: Batch, embeddings: Tensor, dtype: torch.dtype) -> Tensor:
        """Q of the student's rows [R, 2 D_t]."""
        own = batch.label_rows
        read = batch.input_ids.reshape(-1).index_select(0, own.positions)
        pairs = torch.cat([embeddings.index_select(0, ids) for ids in (read, own.targets)], 1)
        return pairs.to(dtype) @ self.query.to(dtype)

    def _keys_and_values(
        self, teacher_ids: Tensor, states: Tensor, rows: LabelRows, count: int
    ) -> tuple[Tensor, Tensor]:
        """K [Q, 2 D_t] and N h_T + N e_T(y) [Q, D_t] of the teacher's rows, whose states are [Q, D_t]."""
        read, predicted = (
            self.teacher_embeddings[torch.searchsorted(self.teacher_ids, ids)].to(states.dtype)
            for ids in (teacher_ids.reshape(-1).index_select(0, rows.positions), rows.targets)
        )
        normed = [
            over_deviation(one, rows.example, count) for one in (torch.cat([read, predicted], 1), states, predicted)
        ]
        return normed[0], normed[1] + normed[2]


def table(values: Tensor, slots: Tensor, count: int, width: int) -> Tensor:
    """Rows [R, W] in a table [count, width, W] by example, zeros where there is none."""
    flat = values.new_zeros(count * width, values.shape[1])
    return flat.index_copy(0, slots, values).view(count, width, -1)


def attended(scores: Tensor, is_there: Tensor, values: Tensor) -> Tensor:
    """softmax over the rows that are there, times their values.

    Args:
        scores: [B, M, K].
        is_there: [B, K, 1], 1 for a row and 0 for padding of the table.
        values: [B, K, W], zeros where there is none.

    Returns:
        [B, M, W]; zeros where no row is there.
    """
    return torch.softmax(scores.masked_fill(is_there.mT == 0, NOT_THERE), 2) @ values
