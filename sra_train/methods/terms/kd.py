"""L_KD set up: what the teacher's head and the shared vocabulary become, by option (docs/method.md, sections 5 and 6).

Holds the teacher's head as frozen buffers, cut to what is read: V's rows for kd_vocabulary=renormalised, all rows with
V first for `rest`, none for kd_source=top_k. Buffers are not saved: a checkpoint holds what was trained.

Shapes: R rows, V shared ids, S and T the vocabularies of student and teacher.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from sra_data.errors import ConfigError, ShardError
from sra_train.contract import AlignedRows, SpanRows, TeacherBatch, TeacherKnowledge
from sra_train.methods.terms.distributions import (
    SharedOrRestTerm,
    SharedVocabularyTerm,
    TeacherOutcomes,
    TopKTerm,
    top_k_outcomes,
)
from sra_train.methods.terms.divergence import Divergence
from sra_train.methods.terms.events import Events, EventTerm
from sra_train.methods.terms.head_loss import ChunkedHead, HeadTerm
from sra_train.methods.terms.vocabulary import VocabularyMap

KDPosition = Literal["center_of_mass", "boundary"]
KDSource = Literal["head", "top_k"]
KDVocabulary = Literal["renormalised", "rest", "first_piece", "byte_prefix", "next_byte"]
EVENTS = ("first_piece", "byte_prefix", "next_byte")  # outcomes that are events about the bytes that follow


class DistillationOptions(Protocol):
    """What a method's options have to name, so that the method can distil distributions."""

    @property
    def kd_position(self) -> KDPosition: ...
    @property
    def kd_source(self) -> KDSource: ...
    @property
    def kd_vocabulary(self) -> KDVocabulary: ...
    @property
    def kd_divergence(self) -> Divergence: ...
    @property
    def temperature(self) -> float: ...
    @property
    def student_top_k(self) -> int: ...


def check_distillation(options: DistillationOptions) -> None:
    """Refuse values and combinations that mean nothing.

    Raises:
        ConfigError: With the remedy.
    """
    if not 0 < options.temperature < math.inf:
        raise ConfigError(f"temperature={options.temperature}: must be a positive finite number")
    is_event = options.kd_vocabulary in EVENTS
    if is_event and (options.kd_position, options.kd_source) != ("boundary", "head"):
        raise ConfigError(
            f"kd_vocabulary={options.kd_vocabulary}: its outcomes are what follows a boundary, in the teacher's whole"
            " distribution; set kd_position=boundary and kd_source=head"
        )
    if options.student_top_k < 0 or (options.student_top_k and not is_event):
        raise ConfigError(
            f"student_top_k={options.student_top_k}: how many events stand alone, with kd_vocabulary="
            f"{' or '.join(EVENTS)} and kd_source=head; 0 for all"
        )


class Distillation(nn.Module):
    """Makes one teacher's KD term of a batch."""

    teacher_weight: Tensor | None
    teacher_bias: Tensor | None
    doubles: Tensor | None  # see TeacherOutcomes
    into: Tensor | None
    student_events: Tensor | None  # see Events
    teacher_events: Tensor | None

    def __init__(self, options: DistillationOptions, knowledge: TeacherKnowledge, *, student_vocabulary: int) -> None:
        """`student_vocabulary` is S, the rows of the student's head.

        Raises:
            ConfigError: If the options cannot be met with what is known of the teacher.
        """
        super().__init__()
        self.options = options
        self.student_vocabulary = student_vocabulary
        self.vocabulary = VocabularyMap(
            knowledge,
            student_vocabulary=student_vocabulary,
            with_end_of_sequence=options.kd_position == "boundary",
        )
        self._with_head = options.kd_source == "head"
        self._round_sizes: Sequence[int] = ()
        weight = bias = doubles = into = events = None
        if self._with_head:
            if knowledge.head is None:
                raise ConfigError("kd_source=head: the shards hold no teacher's head; run `sra-data cache-teacher`")
            head = knowledge.head.detach()
            self.scale, self.softcap = head.scale, head.softcap
            ids = self.vocabulary.teacher_ids
            if options.kd_vocabulary == "rest":
                ids, outcomes = self.vocabulary.teacher_outcomes(head.vocabulary_size)
                self._refuse_rest_without_ids(outcomes, head.vocabulary_size)
                doubles, into, self._round_sizes = outcomes.doubles, outcomes.into, outcomes.round_sizes
            elif options.kd_vocabulary in EVENTS:
                events, ids = self._events(knowledge, head.vocabulary_size), torch.arange(head.vocabulary_size)
            cut = head.restrict(ids)
            weight, bias = cut.weight, cut.bias
        self._num_events = 0 if events is None else events.count
        self._cast: dict[tuple[torch.device, torch.dtype], tuple[Tensor, Tensor | None]] = {}
        buffers = {"teacher_weight": weight, "teacher_bias": bias, "doubles": doubles, "into": into}
        buffers |= {"student_events": None, "teacher_events": None}
        if events is not None:
            buffers |= {"student_events": events.student, "teacher_events": events.teacher}
        for name, buffer in buffers.items():
            self.register_buffer(name, buffer, persistent=False)

    @property
    def ids_read(self) -> Tensor | None:
        """The student's ids whose logits the term reads, if not all."""
        is_part = self._with_head and self.options.kd_vocabulary == "renormalised"
        return self.vocabulary.student_ids if is_part else None

    def head_term(self, states: Tensor, coefficients: Tensor, dtype: torch.dtype, *, ids_alone: bool) -> HeadTerm:
        """The teacher's distributions at `states` [R, D_t], from its head.

        Args:
            states: of the teacher.
            coefficients: [R].
            dtype: of the product.
            ids_alone: Whether the student's head comes cut to `ids_read`.
        """
        weight, bias = self._teacher_head(dtype)
        head = ChunkedHead(weight, bias, scale=self.scale, softcap=self.softcap)
        temperature, kind = self.options.temperature, self.options.kd_divergence
        if self.student_events is not None and self.teacher_events is not None:
            events = Events(self.student_events, self.teacher_events, self._num_events)
            return EventTerm(
                states,
                head,
                coefficients,
                events=events,
                temperature=temperature,
                kind=kind,
                student_top_k=self.options.student_top_k,
            )
        shared = self.vocabulary.student_ids
        if self.doubles is None or self.into is None:
            columns = None if ids_alone else shared
            return SharedVocabularyTerm(states, head, coefficients, columns=columns, temperature=temperature, kind=kind)
        outcomes = TeacherOutcomes(self.vocabulary.num_shared, self.doubles, self.into, self._round_sizes)
        return SharedOrRestTerm(
            states, head, coefficients, shared=shared, outcomes=outcomes, temperature=temperature, kind=kind
        )

    def _teacher_head(self, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
        """Weight and bias in the dtype of the product, cast once a run."""
        weight, bias = self.teacher_weight, self.teacher_bias
        assert weight is not None
        if weight.dtype == dtype:
            return weight, bias
        key = weight.device, dtype
        if key not in self._cast:
            self._cast = {key: (weight.to(dtype), None if bias is None else bias.to(dtype))}
        return self._cast[key]

    def top_k_term(self, teacher: TeacherBatch, rows: SpanRows | AlignedRows, coefficients: Tensor) -> HeadTerm:
        """The teacher's truncated distributions at the teacher's position of each row.

        Raises:
            ShardError: If the batch lacks the columns.
        """
        temperature = self.options.temperature
        if teacher.top_k_ids is None or teacher.top_k_values is None:
            raise ShardError(
                f"teacher {teacher.name}: its pages hold no top-k columns; run `sra-data cache-teacher --top-k 64` into"
                " a new folder"
            )
        if temperature not in teacher.log_tails:
            known = ", ".join(f"{one:g}" for one in sorted(teacher.log_tails)) or "none"
            raise ShardError(
                f"teacher {teacher.name}: its pages hold no log tail at temperature={temperature:g} (cached: {known});"
                f" choose a cached one or run `sra-data cache-teacher --temperatures {temperature:g}` into a new folder"
            )
        at = rows.example, rows.teacher_positions
        outcomes = top_k_outcomes(
            top_k_ids=teacher.top_k_ids[at].long(),
            top_k_values=teacher.top_k_values[at],
            log_tail=teacher.log_tails[temperature][at],
            teacher_to_student=self.vocabulary.teacher_to_student,
            student_vocabulary=self.student_vocabulary,
            temperature=temperature,
        )
        return TopKTerm(outcomes, coefficients, temperature=temperature, kind=self.options.kd_divergence)

    def _events(self, knowledge: TeacherKnowledge, teacher_vocabulary: int) -> Events:
        """What the ids of both sides are, by the bytes they begin with."""
        kind, images = self.options.kd_vocabulary, knowledge.images
        if images is None:
            raise ConfigError(f"kd_vocabulary={kind}: the shards hold no map of ids; run `sra-data align` again")
        if kind == "next_byte":
            sizes = self.student_vocabulary, teacher_vocabulary
            events = Events.of_first_bytes(images.student_first_byte, images.teacher_first_byte, vocabularies=sizes)
            return events if knowledge.end_of_sequence is None else events.with_pair(*knowledge.end_of_sequence)
        mapped = (images.first_piece if kind == "first_piece" else images.byte_prefix).clone()
        if knowledge.end_of_sequence is not None:
            student_end, teacher_end = knowledge.end_of_sequence
            mapped[mapped == student_end] = -1
            longer = mapped.new_full((max(0, teacher_end + 1 - len(mapped)),), -1)
            mapped = torch.cat([mapped, longer])
            mapped[teacher_end] = student_end
        events = Events.of_images(
            mapped, student_vocabulary=self.student_vocabulary, teacher_vocabulary=teacher_vocabulary
        )
        if not events.student_has_residual:
            raise ConfigError(
                f"kd_vocabulary={kind}: all {self.student_vocabulary} ids of the student are images, so it has none"
                " for what the teacher says beside them; set kd_vocabulary=next_byte"
            )
        return events

    def _refuse_rest_without_ids(self, outcomes: TeacherOutcomes, teacher_vocabulary: int) -> None:
        """A teacher with a rest against a student that has none would be infinitely far from it."""
        has_rest = teacher_vocabulary > outcomes.num_shared + outcomes.num_doubles
        if outcomes.num_shared == self.student_vocabulary and has_rest:
            raise ConfigError(
                f"kd_vocabulary=rest: all {self.student_vocabulary} ids of the student are shared, so its rest is empty"
                " while the teacher's is not; set kd_vocabulary=renormalised"
            )
