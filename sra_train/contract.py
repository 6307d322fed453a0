"""What flows between the rooms: batches and needs between data, student and methods, and what a method is built from.

`data` and `methods` both stand on this file and do not know each other: a method says what it needs of every teacher,
the reader fills a `Batch` with it, the student adds what it said, and the method answers with `LossTerms`.

A batch has what belongs to the student's side alone, and one `TeacherBatch` for every teacher of the run, in order.
Which positions are read (labels, spans) stands in it as rows of indices, made where the lengths are known: a forward
that looked for them would make the host wait for the device.

Shapes: B examples, N student tokens, P teacher positions, K spans, R labels, S spans and C chunks of the whole batch,
D_s / D_t hidden sizes, k top-k entries; all padded on the right. A row of weight 0 is padding of the batch itself (the
tail of an epoch): it has no label and no span, so it contributes to no term.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

if TYPE_CHECKING:
    from sra_data.models.output_head import OutputHead

IGNORED_LABEL = -100
# How rows of student and teacher are laid beside each other (docs/method.md, section 10): at every shared boundary; at
# those alone after which the next token is one on both sides; the first of a response with the first, and so on; where
# one token of each side stands for one of the other's on a path of least edit distance.
Aligned = Literal["boundary", "strict", "response", "edited"]
SpanChoice = Literal["all", "single"]  # single: spans of one token on both sides alone


@dataclass(frozen=True)
class LabelRows:
    """Positions of a batch that predict a token which counts, example by example, in order."""

    positions: Tensor  # [R] int64, into the flattened [B x N]
    example: Tensor  # [R] int64
    targets: Tensor  # [R] int64, the id at the next position


@dataclass(frozen=True)
class SpanRows:
    """The spans of a batch that student and teacher share.

    First those of one student token, whose pooled state is that token's own; then the longer ones. Each part is in
    order, example by example.
    """

    num_single: int  # spans of one student token
    example: Tensor  # [S] int64
    span: Tensor  # [S] int64, counted within the example
    student_positions: Tensor  # [S] int64, of the span's last token, into the flattened [B x N]
    teacher_positions: Tensor  # [S] int64, of the span's last position, into P
    targets: Tensor  # [S] int64, the label the student's position predicts; IGNORED_LABEL where it predicts none


@dataclass(frozen=True)
class AlignedRows:
    """Rows whose next-token distributions are compared, example by example, in order; see `Aligned`."""

    example: Tensor  # [S] int64
    student_positions: Tensor  # [S] int64, into the flattened [B x N]
    teacher_positions: Tensor  # [S] int64, into P
    targets: Tensor  # [S] int64, the label the student's position predicts; IGNORED_LABEL where it predicts none
    place: Tensor  # [S] int64, counted within the example
    most: int  # rows of the example that has the most
    other_labels: LabelRows  # the batch's label rows at none of these positions


@dataclass(frozen=True)
class ChunkRows:
    """Spans as chunks of text that each side gives a probability: the rows that predict a chunk's tokens.

    A chunk that is not wholly predicted on both sides (a token that is no label, a first token that nothing stands
    before) is left out. Chunks are in order, example by example.
    """

    example: Tensor  # [C] int64
    labels: Tensor  # [R] int64, places in the batch's `label_rows`: the student's tokens of the chunks
    chunk_of_label: Tensor  # [R] int64, into C
    teacher_positions: Tensor  # [Q] int64, into the flattened [B x P]; what follows each is a token of a chunk
    chunk_of_position: Tensor  # [Q] int64, into C


@dataclass(frozen=True)
class ResponseRows:
    """The positions of both sides that predict a label of their own side, for attention between the two.

    Attention runs inside an example, over tables that are as wide as the example with the most rows: the student's
    [B, M], the teacher's [B, Q']. The slots say where in its flattened table a row stands.
    """

    student_slots: Tensor  # [R] int64, of the batch's label rows
    student_width: int  # M
    teacher: LabelRows  # [Q] positions into the flattened [B x P], targets of the teacher's ids
    teacher_slots: Tensor  # [Q] int64
    teacher_width: int  # Q'


@dataclass(frozen=True)
class TeacherBatch:
    """What one teacher has to say about a batch, and how the student's tokens line up with its.

    Span ids are -1 outside spans. Rows of the teacher are its cached positions, concatenated over the responses (or
    the spans themselves, where the pages hold spans). A row that the teacher lacks (its side, the alignment or its
    pages skipped it) has no position and no span.
    """

    name: str
    has_teacher: Tensor  # [B] bool: whether the teacher has the row at all
    span_mask: Tensor  # [B, K] bool
    student_span_ids: Tensor  # [B, N] int64, -1 none
    student_span_last: Tensor  # [B, K] int64, token index of the span's last token; 0 where padded
    teacher_span_ids: Tensor  # [B, P] int64, -1 none
    teacher_span_last: Tensor  # [B, K] int64, row of the span's last position; 0 where padded
    position_mask: Tensor  # [B, P] bool
    span_rows: SpanRows
    other_labels: LabelRows  # the batch's label rows without those that stand at the last token of a span
    hidden: dict[int, Tensor] = field(default_factory=dict)  # layer -> [B, P, D_t]
    attention: dict[int, Tensor] = field(default_factory=dict)  # layer -> [B, P] float32
    top_k_ids: Tensor | None = None  # [B, P, k] int32, teacher ids
    top_k_values: Tensor | None = None  # [B, P, k], log-probabilities at temperature 1
    log_tails: dict[float, Tensor] = field(default_factory=dict)  # temperature -> [B, P] float32
    next_log_prob: Tensor | None = None  # [B, P] float32, of the token that follows; NaN where none does
    ids: Tensor | None = None  # [B, P] int64, the teacher's token at each position; -1 where padded
    next_ids: Tensor | None = None  # [B, P] int64, the one that follows; -1 where none does
    aligned: AlignedRows | None = None  # where `CacheNeeds` asks for them
    chunks: ChunkRows | None = None  # likewise
    responses: ResponseRows | None = None  # likewise


@dataclass(frozen=True)
class Batch:
    """One batch as tensors, everything a method may read.

    `labels[b, n]` is the id AT token n (predicted from token n - 1), IGNORED_LABEL where nothing is learnt.
    """

    example_ids: list[str]
    weight: Tensor  # [B] float32; 0 for rows that only fill the batch
    input_ids: Tensor  # [B, N] int64
    labels: Tensor  # [B, N] int64
    lengths: Tensor  # [B] int64, student tokens
    label_rows: LabelRows
    teachers: tuple[TeacherBatch, ...] = ()

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Batch:
        """The batch on `device`."""
        return map_tensors(self, lambda tensor: tensor.to(device, non_blocking=non_blocking))


def map_tensors(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """`value` with `change` applied to every tensor in it, through dataclasses, dictionaries and tuples."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        return {key: map_tensors(one, change) for key, one in value.items()}
    if isinstance(value, tuple):
        return tuple(map_tensors(one, change) for one in value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{one.name: map_tensors(getattr(value, one.name), change) for one in fields(value)})
    return value


@dataclass(frozen=True)
class StepTotals:
    """Sizes of the GLOBAL step, over all ranks and all micro-batches.

    Every term is a sum divided by one of these, so that the gradients of micro-batches and ranks simply ADD UP to the
    large batch's. (DDP averages over ranks: multiply the loss by the number of ranks there.)
    """

    labels: float  # labelled tokens
    examples: float  # examples of weight > 0, those without a span or a teacher included


@dataclass
class StudentOutput:
    """What the student's body says about a batch; logits are never formed for the whole batch."""

    hidden: dict[int, Tensor]  # layer -> [B, N, D_s]; the last layer after the final norm
    attention: dict[int, Tensor]  # layer -> [B, N] float32, the last query's row, no gradient
    head: OutputHead  # the student's output head, its parameters live
    embeddings: Tensor | None = None  # [V, D_s] the table of input embeddings, no gradient; where it is asked for
    embedding_scale: float = 1.0  # what the family multiplies a looked-up row by before the first block
    router_logits: tuple[Tensor, ...] = ()  # [B x N, experts] of each layer with experts; where it has a router


# --------------------------------------------------------------------------- what a method asks for


@dataclass(frozen=True)
class RowKind:
    """An option that can only be served by pages of one granularity, in the words of the method.

    Attributes:
        option: what is set, such as "kd_position=boundary".
        instead: what to set where the pages are of the other granularity, such as "set kd_position=center_of_mass".
    """

    option: str
    instead: str


@dataclass(frozen=True)
class CacheNeeds:
    """What a method reads of ONE teacher for every batch; the reader loads these and nothing else."""

    hidden: tuple[int, ...] = ()  # layers whose hidden states are read
    attention: tuple[int, ...] = ()  # layers whose attention is read
    temperatures: tuple[float, ...] = ()  # of the top k: its values, and the log tail at each of these; none: no top k
    next_log_prob: bool = False
    ids: bool = False  # the teacher's tokens at its positions, and those that follow
    aligned: Aligned | None = None  # which rows are laid beside each other
    spans: SpanChoice = "all"  # which spans there are
    chunks: bool = False  # by which rows the tokens of each span are predicted
    responses: bool = False  # the rows of both sides that predict a label of their own
    tokens: RowKind | None = None  # what reads rows of single tokens, which pages cached by spans do not hold
    centers: RowKind | None = None  # what reads distributions at centres of mass, which only those hold

    @property
    def layers(self) -> tuple[int, ...]:
        """All layers of the teacher that are read."""
        return tuple(sorted({*self.hidden, *self.attention}))

    @property
    def top_k(self) -> bool:
        """Whether the top k are read."""
        return bool(self.temperatures)


@dataclass(frozen=True)
class KnowledgeNeeds:
    """What a method is told of EVERY teacher when it is built, beside the shapes and the shared vocabulary."""

    head: bool = False
    embeddings: bool = False
    images: bool = False  # where the teacher's ids go among the student's by the bytes they begin with
    nearest: bool = False  # where they go by edit distance


@dataclass(frozen=True)
class StudentNeeds:
    """What the student's forward has to hand over."""

    layers: tuple[int, ...]  # hidden states of these layers
    attention_layers: tuple[int, ...] = ()  # last-query attention of these layers
    embeddings: bool = False  # the table of input embeddings


@dataclass
class LossTerms:
    """The loss of one micro-batch and what it is made of.

    `per_example` holds sums of one example that depend on nothing but that example: ``ce_sum`` (nats), ``labels``,
    and for SRA ``cos``, ``geo``, ``kd`` (without their coefficients; weighted over the teachers, and of each teacher as
    ``kd[name]`` where there are several). `counts` are events worth showing, such as spans whose attention mass
    vanished.
    """

    total: Tensor  # scalar with gradient
    terms: dict[str, Tensor]  # detached scalars, each normalised as in `total` but before its coefficient
    per_example: dict[str, Tensor]  # [B] float32, detached
    counts: dict[str, Tensor] = field(default_factory=dict)  # detached scalars


# --------------------------------------------------------------------------- what a method is built from


@dataclass(frozen=True)
class ModelShape:
    """Sizes of one model; layer `num_layers` is the last one, after the final norm."""

    num_layers: int
    hidden_size: int
    vocabulary_size: int  # rows of the output head, which may be more than the tokenizer's ids


@dataclass(frozen=True)
class InputEmbeddings:
    """A teacher's input embeddings of the ids that occur in its side of the shards."""

    ids: Tensor  # [n] int64, increasing
    weight: Tensor  # [n, D_t] float32
    scale: float = 1.0  # what the family multiplies a looked-up row by before the first block


@dataclass(frozen=True)
class Images:
    """Where a teacher's ids go among the student's at a boundary (docs/method.md, section 6); -1 for nowhere."""

    byte_prefix: Tensor  # [teacher's ids] int64
    first_piece: Tensor  # [teacher's ids] int64
    teacher_first_byte: Tensor  # [teacher's ids] int64
    student_first_byte: Tensor  # [student's ids] int64


@dataclass(frozen=True)
class TeacherKnowledge:
    """What a method knows of a teacher beside the batch: constant during training.

    `shared_student_ids` and `shared_teacher_ids` [V] are pairs of ids with equal bytes (docs/method.md, section 6).
    `head` is the teacher's with ALL its rows; the method cuts out what it reads and keeps that as frozen buffers.
    `teacher_to_student` [teacher vocabulary] maps every teacher id to the student's id that
    stands for its bytes, -1 without one; several teacher ids may share one. `end_of_sequence` is the pair
    (student id, teacher id), a pair by role at kd_position=boundary.
    """

    shared_student_ids: Tensor
    shared_teacher_ids: Tensor
    head: OutputHead | None = None  # where `KnowledgeNeeds` asks for it
    embeddings: InputEmbeddings | None = None  # likewise
    images: Images | None = None  # likewise
    nearest: Tensor | None = None  # likewise; [teacher's ids] int64, the student's id of the nearest piece or -1
    teacher_to_student: Tensor | None = None
    end_of_sequence: tuple[int, int] | None = None


@dataclass(frozen=True)
class TeacherSetting:
    """One teacher of a run."""

    name: str
    weight: float  # its share of what is distilled; the weights of a run's teachers sum to 1
    shape: ModelShape
    knowledge: TeacherKnowledge


@dataclass(frozen=True)
class MethodSetting:
    """Everything a method is built from beside its options: the shape of the student, and its teachers in order."""

    student: ModelShape
    teachers: tuple[TeacherSetting, ...] = ()
    seed: int = 0  # of the projectors' initial values
    student_head: OutputHead | None = None  # as the student begins, for projectors that begin from it
