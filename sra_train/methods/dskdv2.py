"""DSKD v2: each model's states projected into the other's space, at rows where both predict the same next token.

Source: "A Dual-Space Framework for General Knowledge Distillation of Large Language Models" (arXiv 2504.11426).

    L = alpha CE + (1 - alpha) sum_j lambda_j (CE_mapped + KD_student + KD_teacher) of teacher j

    CE_mapped    -log p, by the student's frozen head over the teacher's projected state, of the token that the teacher
                 itself finds likeliest: it keeps the projector true to the teacher
    KD_student   divergence of the student's distribution from that of the projected state, which gets no gradient
    KD_teacher   the same in the teacher's space: the student's projected state under the teacher's head

Exact token alignment: a row stands where the texts read so far are equal and the next token is one and the same text
on both sides, the ends included. Those are the `strict` rows of the contract. (The published code compares pieces with
their spaces taken off; here a space is a character like any other.) A row whose likeliest token of the teacher the
student lacks teaches nothing, in either space, as published.

The projectors begin where logits of the shared vocabulary stay what they are, as nearly as a matrix can:

    W_to_student = (pinv(S) T)^T  [D_t, D_s]      W_to_teacher = (pinv(T) S)^T  [D_s, D_t]

S [V, D_s] and T [V, D_t] are the rows both heads share, times their scaling; biases are left out. Both are trained.

Shapes: B examples, S rows of the batch, V shared ids, D_s / D_t hidden sizes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from sra_data.errors import ConfigError
from sra_data.models.output_head import OutputHead
from sra_train.contract import (
    AlignedRows,
    Batch,
    CacheNeeds,
    KnowledgeNeeds,
    MethodSetting,
    ModelShape,
    RowKind,
    StepTotals,
    StudentOutput,
    TeacherBatch,
    TeacherSetting,
)
from sra_train.methods.base import TaughtMethod, register
from sra_train.methods.terms.aligned import teacher_states
from sra_train.methods.terms.cross_entropy import rows_of, sum_per_example
from sra_train.methods.terms.distributions import SharedVocabularyTerm
from sra_train.methods.terms.divergence import Divergence
from sra_train.methods.terms.dual_space import (
    MappedTeacherTerm,
    TaughtWhere,
    cross_entropy_of_mapped,
    masked,
)
from sra_train.methods.terms.head_loss import RowGroup, head_losses, product_dtype
from sra_train.methods.terms.head_terms import HeadTerms, TaughtRows, head_terms
from sra_train.methods.terms.teacher_head import TeacherHead, chunked
from sra_train.methods.terms.teachers import Taught
from sra_train.methods.terms.vocabulary import VocabularyMap

TERMS = frozenset({"ce_mapped", "kd_student", "kd_teacher"})


class DSKDv2Options(BaseModel):
    """Dual-space distillation at exactly aligned tokens; published with forward KL and temperature 2."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    alpha: float = Field(0.5, description="share of cross entropy")
    temperature: float = Field(2.0, description="of both distributions, in either space")
    kd_divergence: Divergence = Field("forward", description="in both spaces")
    taught_where: TaughtWhere = Field(
        "right",
        description="rows of the student's space: where the projected state's likeliest id is the teacher's, or all",
    )

    @model_validator(mode="after")
    def check(self) -> DSKDv2Options:
        """Refuse values that mean nothing."""
        if not 0 <= self.alpha < 1:
            raise ConfigError(f"alpha={self.alpha}: must lie in [0, 1); with 1 nothing is distilled: method=sft")
        if not 0 < self.temperature < math.inf:
            raise ConfigError(f"temperature={self.temperature}: must be a positive finite number")
        return self


class TeacherSpaceTerm(SharedVocabularyTerm):
    """In the teacher's space: the student's projected state drawn to the teacher's own.

    `likeliest` [S] is, after the pass, the student's id of the token the teacher finds likeliest at each row; -1 where
    the student lacks it, and then the row does not count.
    """

    def __init__(
        self,
        states: Tensor,
        frozen: OutputHead,
        coefficients: Tensor,
        *,
        teacher_to_student: Tensor,
        temperature: float,
        kind: Divergence,
    ) -> None:
        """`teacher_to_student` [T] has an entry for every row of the teacher's head."""
        super().__init__(states, chunked(frozen), coefficients, columns=None, temperature=temperature, kind=kind)
        self.teacher_to_student = teacher_to_student
        self.likeliest = torch.full_like(coefficients, -1, dtype=torch.int64)

    def begin(self, start: int, stop: int) -> None:
        super().begin(start, stop)
        self.likeliest[start:stop] = self.teacher_to_student[self.teacher_logits.argmax(1)]

    def evaluate(self, logits: Tensor, start: int, stop: int) -> tuple[Tensor, Tensor]:
        return masked(super().evaluate(logits, start, stop), self.likeliest[start:stop] >= 0)


@dataclass(frozen=True)
class Step:
    """One micro-batch as one teacher sees it."""

    batch: Batch
    rows: AlignedRows
    frozen: OutputHead  # the student's head without gradient, in the dtype of the products
    student_states: Tensor  # [S, D_s], with gradient
    teacher_states: Tensor  # [S, D_t]
    coefficients: Tensor  # [S]

    def per_example(self, values: Tensor) -> Tensor:
        """Values of rows [S] summed by example [B]."""
        return sum_per_example(values, self.rows.example, len(self.batch.weight))


class DSKDv2Teacher(nn.Module):
    """The terms of one teacher; its parameters are the two projectors."""

    teacher_to_student: Tensor

    def __init__(
        self, options: DSKDv2Options, student: ModelShape, setting: TeacherSetting, *, student_head: OutputHead
    ) -> None:
        """Refuses knowledge of the teacher that is not there (ConfigError)."""
        super().__init__()
        self.options, self.name, self.weight = options, setting.name, setting.weight
        self.last_layers = student.num_layers, setting.shape.num_layers
        self.head = TeacherHead(setting.knowledge, method="dskdv2")
        shared = VocabularyMap(setting.knowledge, student_vocabulary=student.vocabulary_size, with_end_of_sequence=True)
        mapping = shared.teacher_map(len(self.head.weight))
        self.register_buffer("teacher_to_student", mapping, persistent=False)
        own, other = (
            one.weight.detach()[ids].double() * one.scale
            for one, ids in ((student_head, shared.student_ids), (self.head, shared.teacher_ids))
        )
        self.to_student = nn.Parameter(keeping_logits(source=other, target=own))
        self.to_teacher = nn.Parameter(keeping_logits(source=own, target=other))

    @property
    def needs(self) -> CacheNeeds:
        """What is read of the teacher's pages."""
        return CacheNeeds(
            hidden=(self.last_layers[1],), aligned="strict", tokens=RowKind("method=dskdv2", "choose method=sra")
        )

    def forward(
        self, output: StudentOutput, batch: Batch, pages: TeacherBatch, totals: StepTotals, *, with_labels: bool
    ) -> Taught:
        """What this teacher adds; `with_labels`: the cross entropy comes along, in the same pass over the head."""
        step = self._step(output, batch, pages, totals)
        ce_factor = self.options.alpha / max(totals.labels, 1) if with_labels else None
        in_teacher, kd_teacher, likeliest = self._kd_teacher(step)
        mapped = (step.teacher_states @ self.to_student.to(step.teacher_states.dtype)).to(step.frozen.weight.dtype)
        ce_total, ce_mapped = cross_entropy_of_mapped(mapped, step.frozen, likeliest, step.coefficients)
        found, num_right = self._in_student(step, output, mapped, likeliest, ce_factor)
        assert found.taught is not None
        return Taught(
            total=in_teacher + ce_total + found.total,
            ce_sum=found.ce_sum,
            values={
                "ce_mapped": step.per_example(ce_mapped),
                "kd_student": step.per_example(found.taught),
                "kd_teacher": kd_teacher,
            },
            counts={
                "boundaries": torch.ones_like(step.rows.example).sum(),
                "rows_right": num_right,
                "rows_without_teacher": ((batch.weight > 0) & ~pages.has_teacher).sum(),
            },
        )

    def _step(self, output: StudentOutput, batch: Batch, pages: TeacherBatch, totals: StepTotals) -> Step:
        rows, hidden = pages.aligned, output.hidden[self.last_layers[0]]
        assert rows is not None, "the reader fills what `needs` asks for"
        dtype = product_dtype(hidden)
        share = (1 - self.options.alpha) * self.weight / max(totals.labels, 1)
        return Step(
            batch=batch,
            rows=rows,
            frozen=output.head.detach().to(dtype),
            student_states=rows_of(hidden, rows.student_positions),
            teacher_states=teacher_states(pages, self.last_layers[1], rows, dtype),
            coefficients=batch.weight[rows.example] * share,
        )

    def _kd_teacher(self, step: Step) -> tuple[Tensor, Tensor, Tensor]:
        """Total, values of each example [B], and the student's id of what the teacher finds likeliest [S]."""
        dtype = step.frozen.weight.dtype
        head = self.head.of(dtype)
        term = TeacherSpaceTerm(
            step.teacher_states,
            head,
            step.coefficients,
            teacher_to_student=self.teacher_to_student,
            temperature=self.options.temperature,
            kind=self.options.kd_divergence,
        )
        mapped = step.student_states @ self.to_teacher.to(step.student_states.dtype)  # [S, D_t]
        total, [[values]] = head_losses(head, [RowGroup(mapped, [term])], dtype=dtype)
        return total, step.per_example(values), term.likeliest

    def _in_student(
        self, step: Step, output: StudentOutput, mapped: Tensor, likeliest: Tensor, ce_factor: float | None
    ) -> tuple[HeadTerms, Tensor]:
        """The student's head: what it is taught, the labels if they are asked for, and how many rows are right."""
        term = MappedTeacherTerm(
            mapped,
            step.frozen,
            step.coefficients,
            targets=likeliest,
            where=self.options.taught_where,
            temperature=self.options.temperature,
            kind=self.options.kd_divergence,
        )
        taught = TaughtRows(term=term, rows=step.rows, other_labels=step.rows.other_labels, pooled=None, ids=None)
        hidden = output.hidden[self.last_layers[0]]
        found = head_terms(output.head, hidden, step.batch, ce_factor=ce_factor, taught=taught)
        return found, term.is_right.sum()


def keeping_logits(*, source: Tensor, target: Tensor) -> Tensor:
    """The matrix W that keeps logits best when states of the source's space are read by the target's head.

    h W target^T is nearest to h source^T for every state h, in least squares over the shared ids. The pseudo-inverse
    goes through the [D, D] product of the target with itself, in float64: vocabularies are long and heads narrow.

    Args:
        source: [V, D_source] rows of the head that the states belong to, float64.
        target: [V, D_target] rows of the same ids of the other head, float64.

    Returns:
        [D_source, D_target] float32.
    """
    inverse = torch.linalg.pinv(target.T @ target, hermitian=True)  # [D_target, D_target]
    return (inverse @ (target.T @ source)).T.float().contiguous()


@register("dskdv2")
class DSKDv2(TaughtMethod):
    """Dual-space distillation at exactly aligned tokens, with one teacher or several."""

    options_type = DSKDv2Options

    def __init__(self, options: DSKDv2Options, setting: MethodSetting) -> None:
        """Refuses what `DSKDv2Teacher` refuses, and to be without a teacher (ConfigError)."""
        head = setting.student_head
        assert head is not None, "the projectors begin from both heads"
        super().__init__(
            options, setting, lambda teacher: DSKDv2Teacher(options, setting.student, teacher, student_head=head)
        )
        self.per_label = TERMS

    @classmethod
    def knowledge_needs(cls, options: DSKDv2Options) -> KnowledgeNeeds:
        return KnowledgeNeeds(head=True)

    @classmethod
    def term_names(cls, options: DSKDv2Options) -> tuple[str, ...]:
        return ("ce_mapped", "kd_student", "kd_teacher")
