"""DSKD: each model's states carried into the other's space by cross-model attention, and read by that space's head.

Source: "Dual-Space Knowledge Distillation for Large Language Models" (arXiv 2406.17328).

    L = alpha CE + (1 - alpha) sum_j lambda_j (CE_mapped + KD_student + KD_teacher) of teacher j

    CE_mapped    -log p of the student's labels, from the teacher's states mapped to the student's space: it teaches
                 the projectors, for the student's head is frozen there
    KD_student   divergence of the student's distribution from that of the mapped states, which get no gradient
    KD_teacher   KL(teacher || student), the student's states mapped to the teacher's space, under the teacher's head

All three are sums over rows that predict a label (the student's, the student's, the teacher's), divided by the
student's labels of the global step, as cross entropy is. `terms/cross_attention.py` holds the attention,
`terms/dual_space.py` the terms.

Shapes: B examples, R label rows of the student, Q of the teacher, D_s / D_t hidden sizes.
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
    Batch,
    CacheNeeds,
    KnowledgeNeeds,
    MethodSetting,
    ModelShape,
    RowKind,
    StepTotals,
    StudentNeeds,
    StudentOutput,
    TeacherBatch,
    TeacherSetting,
)
from sra_train.methods.base import TaughtMethod, register
from sra_train.methods.terms.aligned import teacher_hidden
from sra_train.methods.terms.cross_attention import Carried, CrossModelAttention
from sra_train.methods.terms.cross_entropy import CrossEntropyTerm, rows_of, sum_per_example
from sra_train.methods.terms.distributions import SharedVocabularyTerm
from sra_train.methods.terms.divergence import Divergence
from sra_train.methods.terms.dual_space import (
    MappedTeacherTerm,
    TaughtWhere,
    cross_entropy_of_mapped,
)
from sra_train.methods.terms.head_loss import HeadTerm, RowGroup, head_losses, product_dtype
from sra_train.methods.terms.teacher_head import TeacherHead, chunked
from sra_train.methods.terms.teachers import Taught

TERMS = frozenset({"ce_mapped", "kd_student", "kd_teacher"})


class DSKDOptions(BaseModel):
    """Dual-space distillation with cross-model attention; published with training.projector_learning_rate=1e-3."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    alpha: float = Field(0.5, description="share of cross entropy")
    temperature: float = Field(2.0, description="of both distributions, in either space")
    kd_divergence: Divergence = Field("forward", description="in the student's space; in the teacher's it is forward")
    taught_where: TaughtWhere = Field(
        "right", description="rows of the student's space: where the mapped state's likeliest id is the label, or all"
    )

    @model_validator(mode="after")
    def check(self) -> DSKDOptions:
        """Refuse values that mean nothing."""
        if not 0 <= self.alpha < 1:
            raise ConfigError(f"alpha={self.alpha}: must lie in [0, 1); with 1 nothing is distilled: method=sft")
        if not 0 < self.temperature < math.inf:
            raise ConfigError(f"temperature={self.temperature}: must be a positive finite number")
        return self


@dataclass(frozen=True)
class Step:
    """One micro-batch as one teacher sees it."""

    batch: Batch
    pages: TeacherBatch
    head: OutputHead  # the student's, frozen, in the dtype of the products
    carried: Carried
    share: float  # of a row in the total

    def student_rows(self) -> Tensor:
        """Coefficients of the student's rows [R]; 0 where the teacher lacks the example."""
        weight = self.batch.weight[self.batch.label_rows.example]
        return torch.where(self.carried.student_has, weight * self.share, 0.0)

    def per_example(self, values: Tensor, *, of_teacher: bool = False) -> Tensor:
        """Values of rows [R] or [Q] summed by example [B]."""
        has = self.carried.teacher_has if of_teacher else self.carried.student_has
        assert self.pages.responses is not None
        rows = self.pages.responses.teacher if of_teacher else self.batch.label_rows
        return sum_per_example(torch.where(has, values, 0.0), rows.example, len(self.batch.weight))


class DSKDTeacher(nn.Module):
    """The terms of one teacher; its parameters are the three projectors of the attention."""

    def __init__(self, options: DSKDOptions, student: ModelShape, setting: TeacherSetting, *, seed: int) -> None:
        """Refuses knowledge of the teacher that is not there (ConfigError)."""
        super().__init__()
        self.options, self.name, self.weight = options, setting.name, setting.weight
        self.last_layers = student.num_layers, setting.shape.num_layers
        head, embeddings = setting.knowledge.head, setting.knowledge.embeddings
        if head is None or embeddings is None:
            raise ConfigError(
                "method=dskd: the shards hold no head or no input embeddings of the teacher; run"
                " `sra-data cache-teacher` again"
            )
        self.head = TeacherHead(setting.knowledge, method="dskd")
        self.attention = CrossModelAttention(
            embeddings, student_width=student.hidden_size, teacher_width=setting.shape.hidden_size, seed=seed
        )

    @property
    def needs(self) -> CacheNeeds:
        """What is read of the teacher's pages."""
        return CacheNeeds(
            hidden=(self.last_layers[1],),
            ids=True,
            responses=True,
            tokens=RowKind("method=dskd", "choose method=sra"),
        )

    def forward(
        self, output: StudentOutput, batch: Batch, pages: TeacherBatch, totals: StepTotals, *, with_labels: bool
    ) -> Taught:
        """What this teacher adds; `with_labels`: the cross entropy comes along, in the same pass over the head."""
        hidden = output.hidden[self.last_layers[0]]
        states = teacher_hidden(pages, self.last_layers[1])
        assert pages.responses is not None, "the reader fills what `needs` asks for"
        assert pages.ids is not None
        assert output.embeddings is not None, "the student hands over what `student_needs` asks for"
        carried = self.attention(
            student_hidden=hidden,
            student_embeddings=output.embeddings,
            embedding_scale=output.embedding_scale,
            teacher_hidden=states,
            teacher_ids=pages.ids,
            batch=batch,
            rows=pages.responses,
        )
        share = (1 - self.options.alpha) * self.weight / max(totals.labels, 1)
        step = Step(batch, pages, output.head.detach().to(product_dtype(hidden)), carried, share)
        ce_factor = self.options.alpha / max(totals.labels, 1) if with_labels else None
        mapped, values = self._ce_mapped(step)
        in_teacher, kd_teacher = self._kd_teacher(step, states)
        in_student, kd_student, ce_sum, num_right = self._kd_student(step, output, ce_factor)
        return Taught(
            total=mapped + in_teacher + in_student,
            ce_sum=ce_sum,
            values={"ce_mapped": values, "kd_student": kd_student, "kd_teacher": kd_teacher},
            counts={
                "rows_right": num_right,
                "rows_without_teacher": ((batch.weight > 0) & ~pages.has_teacher).sum(),
            },
        )

    def _ce_mapped(self, step: Step) -> tuple[Tensor, Tensor]:
        """Total, and values of each example [B]."""
        dtype, targets = step.head.weight.dtype, step.batch.label_rows.targets
        total, values = cross_entropy_of_mapped(
            step.carried.to_student.to(dtype), step.head, targets, step.student_rows()
        )
        return total, step.per_example(values)

    def _kd_student(
        self, step: Step, output: StudentOutput, ce_factor: float | None
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
        """Total, values of each example [B], the cross entropy of each [B] if it is asked for, and rows that count."""
        rows, hidden = step.batch.label_rows, output.hidden[self.last_layers[0]]
        dtype, has = step.head.weight.dtype, step.carried.student_has
        kd = MappedTeacherTerm(
            step.carried.to_student.to(dtype),
            step.head,
            step.student_rows(),
            targets=torch.where(has, rows.targets, -1),
            where=self.options.taught_where,
            temperature=self.options.temperature,
            kind=self.options.kd_divergence,
        )
        terms: list[HeadTerm] = [kd]
        if ce_factor is not None:
            terms.append(CrossEntropyTerm(rows.targets, step.batch.weight[rows.example] * ce_factor))
        group = RowGroup(rows_of(hidden, rows.positions), terms)
        total, [values] = head_losses(output.head, [group], dtype=dtype)
        ce_sum = None if ce_factor is None else sum_per_example(values[1], rows.example, len(step.batch.weight))
        return total, step.per_example(values[0]), ce_sum, kd.is_right.sum()

    def _kd_teacher(self, step: Step, states: Tensor) -> tuple[Tensor, Tensor]:
        """Total, and values of each example [B]; `states` [B, P, D_t] are the teacher's."""
        assert step.pages.responses is not None
        rows, head = step.pages.responses.teacher, self.head.of(step.head.weight.dtype)
        weight = step.batch.weight[rows.example] * step.share
        term = SharedVocabularyTerm(
            rows_of(states, rows.positions).to(head.weight.dtype),
            chunked(head),
            torch.where(step.carried.teacher_has, weight, 0.0),
            columns=None,
            temperature=self.options.temperature,
            kind="forward",
        )
        mapped = step.carried.to_teacher.to(head.weight.dtype)
        total, [[values]] = head_losses(head, [RowGroup(mapped, [term])], dtype=head.weight.dtype)
        return total, step.per_example(values, of_teacher=True)


@register("dskd")
class DSKD(TaughtMethod):
    """Dual-space distillation with one teacher or several."""

    options_type = DSKDOptions

    def __init__(self, options: DSKDOptions, setting: MethodSetting) -> None:
        """Refuses what `DSKDTeacher` refuses, and to be without a teacher (ConfigError)."""
        super().__init__(
            options, setting, lambda teacher: DSKDTeacher(options, setting.student, teacher, seed=setting.seed)
        )
        self.per_label = TERMS

    @classmethod
    def knowledge_needs(cls, options: DSKDOptions) -> KnowledgeNeeds:
        return KnowledgeNeeds(head=True, embeddings=True)

    @classmethod
    def term_names(cls, options: DSKDOptions) -> tuple[str, ...]:
        return ("ce_mapped", "kd_student", "kd_teacher")

    @property
    def student_needs(self) -> StudentNeeds:
        return StudentNeeds(layers=(self.last_layer,), embeddings=True)
