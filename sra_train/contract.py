"""What flows between the rooms: batches and needs between data, student and methods, and what a method is built from.

`data` and `methods` both stand on this file and do not know each other: a method says what it needs, the reader fills
a `Batch` with it, the student adds what it said, and the method answers with `LossTerms`.

Shapes: B examples, N student tokens, P teacher positions, K spans, D_s / D_t hidden sizes, k top-k entries; all padded
on the right. A row of weight 0 is padding of the batch itself (the tail of an epoch): it contributes to no term.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from sra_data.models.output_head import OutputHead

IGNORED_LABEL = -100


@dataclass
class Batch:
    """One batch as tensors, everything a method may read.

    `labels[b, n]` is the id AT token n (predicted from token n - 1), -100 where nothing is learnt. Span ids are -1
    outside spans. `teacher_*` rows are the cached positions of the teacher, concatenated over the responses.
    """

    example_ids: list[str]
    weight: Tensor  # [B] float32; 0 for rows that only fill the batch
    input_ids: Tensor  # [B, N] int64
    attention_mask: Tensor  # [B, N]
    labels: Tensor  # [B, N] int64, -100 elsewhere
    lengths: Tensor  # [B] int64, student tokens
    num_spans: Tensor  # [B] int64
    span_mask: Tensor  # [B, K] bool
    student_span_ids: Tensor  # [B, N] int64, -1 none
    student_span_last: Tensor  # [B, K] int64, token index of the span's last token; 0 where padded
    teacher_span_ids: Tensor  # [B, P] int64, -1 none
    teacher_span_last: Tensor  # [B, K] int64, row index of the span's last position; 0 where padded
    teacher_position_mask: Tensor  # [B, P] bool
    teacher_token_index: Tensor  # [B, P] int64, index of the row's token in the teacher's ids
    teacher_next_ids: Tensor  # [B, P] int64, the id that follows; -1 where none
    teacher_hidden: dict[int, Tensor] = field(default_factory=dict)  # layer -> [B, P, D_t]
    teacher_attention: dict[int, Tensor] = field(default_factory=dict)  # layer -> [B, P] float32
    top_k_ids: Tensor | None = None  # [B, P, k] int64, teacher ids
    top_k_values: Tensor | None = None  # [B, P, k], log-probabilities at temperature 1
    log_tails: dict[float, Tensor] | None = None  # temperature -> [B, P] float32
    teacher_next_log_prob: Tensor | None = None  # [B, P] float32

    def map_tensors(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """The same batch with `change` applied to every tensor, those inside dictionaries included."""
        changed: dict[str, object] = {}
        for one in fields(self):
            value = getattr(self, one.name)
            if isinstance(value, Tensor):
                changed[one.name] = change(value)
            elif isinstance(value, dict):
                changed[one.name] = {key: change(tensor) for key, tensor in value.items()}
        return replace(self, **changed)  # type: ignore[arg-type]

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Batch:
        """The batch on `device`."""
        return self.map_tensors(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """The batch in page-locked memory, so that the copy to a GPU can run beside its work."""
        return self.map_tensors(lambda tensor: tensor.pin_memory())


@dataclass(frozen=True)
class StepTotals:
    """Sizes of the GLOBAL step, over all ranks and all micro-batches.

    Every term is a sum divided by one of these, so that the gradients of micro-batches and ranks simply ADD UP to the
    large batch's. (DDP averages over ranks: multiply the loss by the number of ranks there.)
    """

    labels: float  # labelled tokens
    examples: float  # examples of weight > 0, those without a span included


@dataclass
class StudentOutput:
    """What the student's body says about a batch; logits are never formed for the whole batch."""

    hidden: dict[int, Tensor]  # layer -> [B, N, D_s]; the last layer after the final norm
    attention: dict[int, Tensor]  # layer -> [B, N] float32, the last query's row, no gradient
    head: OutputHead  # the student's output head, its parameters live


@dataclass(frozen=True)
class CacheNeeds:
    """The columns of the teacher's pages that a method reads; the reader loads these and nothing else."""

    layers: tuple[int, ...] = ()  # teacher layers whose hidden states or attention are read
    hidden: bool = False
    attention: bool = False
    top_k: bool = False
    log_tail_temperatures: tuple[float, ...] = ()  # temperatures whose log tail goes with the top k
    teacher_ids: bool = False
    embeddings: bool = False
    head: bool = False
    token_rows: str = ""  # the option that reads rows of single tokens, which pages cached by spans do not hold
    span_rows: str = ""  # the option that reads distributions at centres of mass, which only those hold

    @property
    def nothing(self) -> bool:
        """Whether the teacher's pages need not be opened at all."""
        return not (self.hidden or self.attention or self.top_k or self.teacher_ids or self.embeddings or self.head)


@dataclass(frozen=True)
class StudentNeeds:
    """What the student's forward has to hand over."""

    layers: tuple[int, ...]  # hidden states of these layers
    attention_layers: tuple[int, ...] = ()  # last-query attention of these layers


@dataclass
class LossTerms:
    """The loss of one micro-batch and what it is made of.

    `per_example` holds sums of one example that depend on nothing but that example: ``ce_sum`` (nats), ``labels``,
    and for SRA ``cos``, ``geo``, ``kd`` (unweighted). `counts` are events worth showing, such as spans whose attention
    mass vanished.
    """

    total: Tensor  # scalar with gradient
    terms: dict[str, Tensor]  # detached scalars, each normalised as in `total` but before its coefficient
    per_example: dict[str, Tensor]  # [B] float32, detached
    counts: dict[str, Tensor] = field(default_factory=dict)  # detached scalars


@dataclass(frozen=True)
class ModelShape:
    """Sizes of one model; layer `num_layers` is the last one, after the final norm."""

    num_layers: int
    hidden_size: int


@dataclass(frozen=True)
class TeacherKnowledge:
    """What a method knows of the teacher beside the batch: constant during training.

    `shared_student_ids` and `shared_teacher_ids` [V] are pairs of ids with equal bytes (docs/method.md, section 6).
    `head` is the teacher's with ALL its rows; the method cuts out what it reads and keeps that as frozen buffers.
    `teacher_to_student` [teacher vocabulary] maps every teacher id to the student's id that
    stands for its bytes, -1 without one; several teacher ids may share one. `end_of_sequence` is the pair
    (student id, teacher id), a pair by role at kd_position=boundary.
    """

    shared_student_ids: Tensor
    shared_teacher_ids: Tensor
    head: OutputHead | None = None
    teacher_to_student: Tensor | None = None
    end_of_sequence: tuple[int, int] | None = None


@dataclass(frozen=True)
class MethodSetting:
    """Everything a method is built from: its options, the shapes of both models and the teacher's knowledge."""

    student: ModelShape
    teacher: ModelShape | None = None
    knowledge: TeacherKnowledge | None = None
    seed: int = 0  # of the projectors' initial values
