"""MultiLevelOT: distributions compared by rank over a whole sequence, row by row and as transport between sequences.

    L   = alpha CE + (1 - alpha) sum_j lambda_j (L1 + lambda_ce SoftCE + lambda_sinkhorn Sinkhorn) of teacher j
    x_i = the student's softmax(z / s) at row i, s the deviation of its logits z, at the 50 ids of the highest rank;
    y_i likewise the teacher's

    L1       = mean_i sum_k | x_ik - y_ik |
    SoftCE   = mean_i - sum_k softmax(y_i)_k log softmax(x_i)_k
    Sinkhorn = sum_ij P_ij C_ij with P of mass 1,   C_ij = sum_k | softmax(x_i / 2)_k - softmax(y_j / 2)_k |

After "Multi-Level Optimal Transport for Universal Cross-Tokenizer Knowledge Distillation on Language Models", arXiv
2412.14528, and what its authors' code does. Rows are those of `uld`: the i-th token of a response with the teacher's
i-th, the end included.

Choices where paper and code leave one open, or differ:
* **What is compared**: the code takes the softmax over the vocabulary of the scaled logits before anything else, and
  within SoftCE and Sinkhorn a softmax over the 50 again; so here. `compared=logits` takes z / s themselves, which the
  paper can be read as: L1 is then some hundred times as large and pulls a student away from the text.
* **Rank** is over the sequence (`ranking=sequence`), as the paper says: the ids of an example are ordered once, by the
  sum over its rows of the scaled logits, so that rank k is the same id at all its rows, each side for itself. One order
  for a whole batch would let an example's loss depend on its company. `ranking=token` orders every row anew, which is
  what the code's first sort comes to.
* **SoftCE** goes from the teacher to the student, as in the paper; the code's call has the two changed over.
* **The deviation** is over the vocabulary, without a mean taken off (a constant in all logits changes no softmax) and
  with a gradient of its own. It divides by V, not V - 1.
* **Sizes**: L1 and SoftCE are means over rows and the plan has a mass of 1, so that the length of a response weighs in
  none; `kd_reduction=sum` multiplies all three by the rows. Sinkhorn counts 0.1, as SoftCE (the code: 1e-4 of a plan
  whose mass is the number of rows). Shares are 0.5 and 0.5; the code adds its terms to the whole cross entropy.
* **Sinkhorn's epsilon** of 0.1 makes a soft plan between such softmaxes; `sinkhorn_of=compared` takes x and y
  themselves, whose distances, if they are logits, are some hundred epsilons: a plan of almost one to one.
* **Where fewer ids exist** than `top_k` on either side, there are as many ranks as the smaller vocabulary has.

Shapes: B examples, S rows of the batch, n rows of the longest example, k ranks.
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal

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
from sra_train.methods.terms.aligned import (
    Reduction,
    divisor,
    item_counts,
    item_weights,
    per_label,
    teacher_states,
)
from sra_train.methods.terms.cross_entropy import rows_of, sum_per_example
from sra_train.methods.terms.head_loss import product_dtype
from sra_train.methods.terms.head_rows import top_k_ids
from sra_train.methods.terms.head_terms import head_terms
from sra_train.methods.terms.scaled_logits import scaled_log_probabilities, scaled_logits, sequence_top_k
from sra_train.methods.terms.sinkhorn import sinkhorn_distance
from sra_train.methods.terms.teacher_head import TeacherHead
from sra_train.methods.terms.teachers import Taught

SINKHORN_TEMPERATURE = 2.0
TERMS = ("l1", "soft_ce", "sinkhorn")


class MultiLevelOTOptions(BaseModel):
    """Softmaxes of scaled logits by rank: L1, soft cross entropy, and Sinkhorn's distance between sequences."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    alpha: float = Field(0.5, description="share of cross entropy")
    compared: Literal["probabilities", "logits"] = Field(
        "probabilities", description="of scaled logits: their softmax over the vocabulary, or they themselves"
    )
    top_k: int = Field(50, description="ranks that are compared")
    ranking: Literal["sequence", "token"] = Field("sequence", description="one order of ids an example, or one a row")
    lambda_ce: float = Field(0.1, description="weight of the soft cross entropy beside L1")
    lambda_sinkhorn: float = Field(0.1, description="weight of Sinkhorn's distance beside L1")
    sinkhorn_of: Literal["softmax", "compared"] = Field(
        "softmax", description="its cost lies between softmaxes of what is compared, or that itself"
    )
    epsilon: float = Field(0.1, description="softness of the plan, in units of the cost")
    sinkhorn_iterations: int = Field(20, description="steps, each of rows and columns")
    kd_reduction: Reduction = Field(
        "mean", description="mean or sum: over an example's rows; token: over the labels of the step, as cross entropy"
    )

    @model_validator(mode="after")
    def check(self) -> MultiLevelOTOptions:
        """Refuse values that mean nothing."""
        if not 0 <= self.alpha < 1:
            raise ConfigError(f"alpha={self.alpha}: must lie in [0, 1); with 1 nothing is distilled: method=sft")
        for name in ("top_k", "sinkhorn_iterations"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}: must be at least 1")
        for name in ("lambda_ce", "lambda_sinkhorn"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"{name}={getattr(self, name)}: must be a finite number that is not negative")
        if not 0 < self.epsilon < math.inf:
            raise ConfigError(f"epsilon={self.epsilon}: must be a positive finite number")
        return self


class MultiLevelOTTeacher(nn.Module):
    """The terms of one teacher; nothing in it is trained."""

    def __init__(self, options: MultiLevelOTOptions, student: ModelShape, setting: TeacherSetting) -> None:
        """Refuses a teacher whose head is not known (ConfigError)."""
        super().__init__()
        self.options, self.name, self.weight = options, setting.name, setting.weight
        self.last_layers = student.num_layers, setting.shape.num_layers
        self.head = TeacherHead(setting.knowledge, method="multilevel-ot")

    @property
    def needs(self) -> CacheNeeds:
        """What is read of the teacher's pages."""
        return CacheNeeds(
            hidden=(self.last_layers[1],),
            aligned="response",
            tokens=RowKind("method=multilevel-ot", "choose method=sra"),
        )

    def forward(
        self, output: StudentOutput, batch: Batch, pages: TeacherBatch, totals: StepTotals, *, with_labels: bool
    ) -> Taught:
        """What this teacher adds; `with_labels`: the cross entropy of the labels comes along."""
        options, rows = self.options, pages.aligned
        assert rows is not None, "the reader fills what `needs` asks for"
        hidden = output.hidden[self.last_layers[0]]
        values = self._values(output.head, hidden, batch, pages, rows)
        weighted = values["l1"] + options.lambda_ce * values["soft_ce"] + options.lambda_sinkhorn * values["sinkhorn"]
        share = (1 - options.alpha) * self.weight / divisor(options.kd_reduction, totals)
        total, ce_sum = share * (batch.weight * weighted).sum(), None
        if with_labels:
            factor = options.alpha / max(totals.labels, 1)
            labels = head_terms(output.head, hidden, batch, ce_factor=factor, taught=None)
            total, ce_sum = total + labels.total, labels.ce_sum
        return Taught(
            total=total,
            ce_sum=ce_sum,
            values={name: value.detach() for name, value in values.items()},
            counts=item_counts(rows.example, batch, pages, name="rows", single="row"),
        )

    def _values(
        self, head: OutputHead, hidden: Tensor, batch: Batch, pages: TeacherBatch, rows: AlignedRows
    ) -> dict[str, Tensor]:
        """The three terms of each example [B], with gradient."""
        dtype, count = product_dtype(hidden), len(batch.weight)
        own = self.head.of(dtype)
        k = min(self.options.top_k, head.vocabulary_size, own.vocabulary_size)
        student = self._by_rank(head, rows_of(hidden, rows.student_positions), rows, count, k)
        with torch.no_grad():
            states = teacher_states(pages, self.last_layers[1], rows, dtype)
            teacher = self._by_rank(own, states, rows, count, k).to(student.dtype)
        weights = item_weights(rows.example, batch, self.options.kd_reduction).to(student.dtype)
        l1 = (student - teacher).abs().sum(1)
        soft_ce = -(torch.softmax(teacher, 1) * torch.log_softmax(student, 1)).sum(1)
        return {
            "l1": sum_per_example(weights * l1, rows.example, count),
            "soft_ce": sum_per_example(weights * soft_ce, rows.example, count),
            "sinkhorn": self._sinkhorn(student, teacher, rows, count),
        }

    def _by_rank(self, head: OutputHead, states: Tensor, rows: AlignedRows, count: int, k: int) -> Tensor:
        """What is compared of a side, at the k ids of the highest rank [S, k]."""
        if self.options.ranking == "token":
            ids = top_k_ids(head, states, k)
        else:
            ids = sequence_top_k(head, states, rows.example, count=count, k=k).index_select(0, rows.example)
        if self.options.compared == "logits":
            return scaled_logits(head, states, ids)
        return scaled_log_probabilities(head, states, ids).exp()

    def _sinkhorn(self, student: Tensor, teacher: Tensor, rows: AlignedRows, count: int) -> Tensor:
        """Sinkhorn's distance of each example [B], of a plan of mass 1, or of as much mass as there are rows."""
        options = self.options
        if options.sinkhorn_of == "softmax":
            student, teacher = (torch.softmax(one / SINKHORN_TEMPERATURE, 1) for one in (student, teacher))
        ones = torch.ones_like(rows.example)
        lengths = sum_per_example(ones, rows.example, count)
        at = rows.example * rows.most + rows.place

        def padded(values: Tensor) -> Tensor:
            """[B, n, k] of [S, k]."""
            wide = values.new_zeros((count * rows.most, values.shape[1]))
            return wide.index_copy(0, at, values).view(count, rows.most, values.shape[1])

        found = sinkhorn_distance(
            padded(student), padded(teacher), lengths, epsilon=options.epsilon, iterations=options.sinkhorn_iterations
        )
        return found if options.kd_reduction == "mean" else found * lengths


@register("multilevel-ot")
class MultiLevelOT(TaughtMethod):
    """Logits by rank with one teacher or several."""

    options_type: ClassVar[type[BaseModel]] = MultiLevelOTOptions

    def __init__(self, options: MultiLevelOTOptions, setting: MethodSetting) -> None:
        """Refuses what `MultiLevelOTTeacher` refuses, and to be without a teacher (ConfigError)."""
        super().__init__(options, setting, lambda teacher: MultiLevelOTTeacher(options, setting.student, teacher))
        self.per_label = per_label(options.kd_reduction, *TERMS)

    @classmethod
    def knowledge_needs(cls, options: MultiLevelOTOptions) -> KnowledgeNeeds:
        return KnowledgeNeeds(head=True)

    @classmethod
    def term_names(cls, options: MultiLevelOTOptions) -> tuple[str, ...]:
        return ("l1", "soft_ce", "sinkhorn")
