"""MinED: tokens lined up and vocabularies mapped by minimum edit distance, as FuseLLM does (arXiv 2401.10491).

    L = alpha CE + (1 - alpha) sum_j lambda_j D_j
    D = ( sum over 1:1 rows of KL(P_mapped || P^S)  +  sum over the other labels of -log P^S(label) ) / labels

Both are at temperature T. A row is 1:1 where, on a path of least total edit distance through the tokens of the two
responses, one token of each side stands for one of the other's, and the map of ids sends them to each other: every
teacher id to the student's id with the nearest piece, the ends to each other. There the teacher's next-token
distribution moves along the map; everywhere else the label itself is the target. Rows and map are made by
`sra_data/spans/edit_distance.py`.

Shapes: B examples, S 1:1 rows, R other labels, D_s / D_t hidden sizes.
"""

from __future__ import annotations

import math

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from sra_data.errors import ConfigError
from sra_train.contract import (
    Batch,
    CacheNeeds,
    KnowledgeNeeds,
    MethodSetting,
    ModelShape,
    RowKind,
    StepTotals,
    StudentOutput,
    TeacherBatch,
    TeacherKnowledge,
    TeacherSetting,
)
from sra_train.methods.base import TaughtMethod, register
from sra_train.methods.terms.aligned import teacher_states
from sra_train.methods.terms.cross_entropy import LabelledRows, rows_of, sum_per_example
from sra_train.methods.terms.head_loss import HeadTerm, RowGroup, head_losses, product_dtype
from sra_train.methods.terms.pushforward import OneHotTerm, PushforwardTerm
from sra_train.methods.terms.teacher_head import TeacherHead, chunked
from sra_train.methods.terms.teachers import Taught


class MinEDOptions(BaseModel):
    """Distributions moved along a map of nearest pieces, at tokens lined up by edit distance."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    alpha: float = Field(0.5, description="share of cross entropy")
    temperature: float = Field(2.0, description="of both distributions, and of the student's beside a label")

    @model_validator(mode="after")
    def check(self) -> MinEDOptions:
        """Refuse values that mean nothing."""
        if not 0 <= self.alpha < 1:
            raise ConfigError(f"alpha={self.alpha}: must lie in [0, 1); with 1 nothing is distilled: method=sft")
        if not 0 < self.temperature < math.inf:
            raise ConfigError(f"temperature={self.temperature}: must be a positive finite number")
        return self


def images_of(knowledge: TeacherKnowledge, *, student_vocabulary: int, teacher_vocabulary: int) -> Tensor:
    """[T] the student's id of every row of the teacher's head, -1 for none; the ends are each other's by role.

    Raises:
        ConfigError: If the shards hold no such map.
    """
    if knowledge.nearest is None:
        raise ConfigError(
            "method=mined: the shards hold no map by edit distance; run `sra-data align --edit-distance` on them"
        )
    images = torch.full((teacher_vocabulary,), -1)
    known = knowledge.nearest[:teacher_vocabulary]
    images[: len(known)] = torch.where(known < student_vocabulary, known, -1)
    if knowledge.end_of_sequence is not None:
        student_end, teacher_end = knowledge.end_of_sequence
        images[teacher_end] = student_end
    return images


class MinEDTeacher(nn.Module):
    """The term of one teacher; nothing in it is trained."""

    images: Tensor

    def __init__(self, options: MinEDOptions, student: ModelShape, setting: TeacherSetting) -> None:
        """Refuses knowledge of the teacher that is not there (ConfigError)."""
        super().__init__()
        self.options, self.name, self.weight = options, setting.name, setting.weight
        self.last_layers = student.num_layers, setting.shape.num_layers
        self.student_vocabulary = student.vocabulary_size
        self.head = TeacherHead(setting.knowledge, method="mined")
        images = images_of(
            setting.knowledge, student_vocabulary=student.vocabulary_size, teacher_vocabulary=len(self.head.weight)
        )
        self.register_buffer("images", images, persistent=False)

    @property
    def needs(self) -> CacheNeeds:
        """What is read of the teacher's pages."""
        return CacheNeeds(
            hidden=(self.last_layers[1],), aligned="edited", tokens=RowKind("method=mined", "choose method=sra")
        )

    def forward(
        self, output: StudentOutput, batch: Batch, pages: TeacherBatch, totals: StepTotals, *, with_labels: bool
    ) -> Taught:
        """What this teacher adds; `with_labels`: the cross entropy comes along, in the same pass over the head."""
        rows, hidden = pages.aligned, output.hidden[self.last_layers[0]]
        assert rows is not None, "the reader fills what `needs` asks for"
        share = (1 - self.options.alpha) * self.weight / max(totals.labels, 1)
        others, known = rows.other_labels, pages.has_teacher[rows.other_labels.example]
        pushed = self._pushed(pages, batch.weight[rows.example] * share, product_dtype(hidden))
        one_hot = OneHotTerm(
            others.targets,
            torch.where(known, batch.weight[others.example] * share, 0.0),
            temperature=self.options.temperature,
        )
        terms: list[list[HeadTerm]] = [[pushed], [one_hot]]
        labelled = [LabelledRows(one, batch) for one in (rows, others)] if with_labels else []
        for own, of_rows in zip(terms, labelled, strict=False):
            own.append(of_rows.term(self.options.alpha / max(totals.labels, 1)))
        positions = rows.student_positions, others.positions
        groups = [RowGroup(rows_of(hidden, at), own) for at, own in zip(positions, terms, strict=True)]
        total, values = head_losses(output.head, groups, dtype=product_dtype(hidden))
        count = len(batch.weight)
        kd = sum_per_example(values[0][0], rows.example, count)
        kd = kd + sum_per_example(torch.where(known, values[1][0], 0.0), others.example, count)
        sums = [of_rows.sums(found[1]) for of_rows, found in zip(labelled, values, strict=False)]
        return Taught(
            total=total,
            ce_sum=sum(sums[1:], start=sums[0]) if sums else None,
            values={"kd": kd},
            counts={
                "boundaries": torch.ones_like(rows.example).sum(),
                "labels_one_hot": known.sum(),
                "rows_without_teacher": ((batch.weight > 0) & ~pages.has_teacher).sum(),
            },
        )

    def _pushed(self, pages: TeacherBatch, coefficients: Tensor, dtype: torch.dtype) -> PushforwardTerm:
        """The teacher's distributions at the 1:1 rows."""
        rows = pages.aligned
        assert rows is not None
        return PushforwardTerm(
            teacher_states(pages, self.last_layers[1], rows, dtype),
            chunked(self.head.of(dtype)),
            coefficients,
            images=self.images,
            student_vocabulary=self.student_vocabulary,
            temperature=self.options.temperature,
        )


@register("mined")
class MinED(TaughtMethod):
    """Distributions at tokens lined up by edit distance, with one teacher or several."""

    options_type = MinEDOptions

    def __init__(self, options: MinEDOptions, setting: MethodSetting) -> None:
        """Refuses what `MinEDTeacher` refuses, and to be without a teacher (ConfigError)."""
        super().__init__(options, setting, lambda teacher: MinEDTeacher(options, setting.student, teacher))
        self.per_label = frozenset({"kd"})

    @classmethod
    def knowledge_needs(cls, options: MinEDOptions) -> KnowledgeNeeds:
        return KnowledgeNeeds(head=True, nearest=True)

    @classmethod
    def term_names(cls, options: MinEDOptions) -> tuple[str, ...]:
        return ("kd",)
