"""L_KD set up: what the teacher's head and the shared vocabulary become, by option (docs/method.md, sections 5 and 6).

Holds the teacher's head as frozen buffers, cut to what is read: V's rows for kd_vocabulary=renormalised, all rows with
V first for `rest`, none for kd_source=top_k. Buffers are not saved: a checkpoint holds what was trained.

Shapes: R rows, V shared ids, S and T the vocabularies of student and teacher.
"""

from __future__ import annotations

from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from sra_data.errors import ConfigError, ShardError
from sra_train.contract import Batch, TeacherKnowledge
from sra_train.methods.terms.distributions import (
    SharedOrRestTerm,
    SharedVocabularyTerm,
    TeacherOutcomes,
    TopKTerm,
    top_k_outcomes,
)
from sra_train.methods.terms.divergence import Divergence
from sra_train.methods.terms.head_loss import ChunkedHead, HeadTerm
from sra_train.methods.terms.vocabulary import VocabularyMap

KDPosition = Literal["center_of_mass", "boundary"]
KDSource = Literal["head", "top_k"]
KDVocabulary = Literal["renormalised", "rest"]


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


class Distillation(nn.Module):
    """Makes the KD term of a batch."""

    teacher_weight: Tensor | None
    teacher_bias: Tensor | None

    def __init__(self, options: DistillationOptions, knowledge: TeacherKnowledge) -> None:
        super().__init__()
        self.options = options
        self.vocabulary = VocabularyMap(knowledge, with_end_of_sequence=options.kd_position == "boundary")
        self.outcomes: TeacherOutcomes | None = None
        self._with_head = options.kd_source == "head"
        weight = bias = None
        if self._with_head:
            if knowledge.head is None:
                raise ConfigError("kd_source=head: the shards hold no teacher's head; run `sra-data cache-teacher`")
            head = knowledge.head.detach()
            self.scale, self.softcap = head.scale, head.softcap
            ids = self.vocabulary.teacher_ids
            if options.kd_vocabulary == "rest":
                ids, self.outcomes = self.vocabulary.teacher_outcomes(head.vocabulary_size)
            cut = head.restrict(ids)
            weight, bias = cut.weight, cut.bias
        self.register_buffer("teacher_weight", weight, persistent=False)
        self.register_buffer("teacher_bias", bias, persistent=False)

    def student_order(self, vocabulary_size: int) -> tuple[Tensor | None, Tensor | None]:
        """Order of the student's head rows with V first [S] and its inverse; None where the ids' own order serves."""
        if not self._with_head:
            return None, None
        if self.outcomes is not None and self.vocabulary.num_shared == vocabulary_size:
            self._refuse_rest_without_ids(vocabulary_size)
        return self.vocabulary.student_order(vocabulary_size)

    def student_columns(self, vocabulary_size: int) -> int:
        """How many columns of that order the head term reads."""
        is_whole = not self._with_head or self.options.kd_vocabulary == "rest"
        return vocabulary_size if is_whole else self.vocabulary.num_shared

    def head_term(self, states: Tensor, coefficients: Tensor, dtype: torch.dtype) -> HeadTerm:
        """The teacher's distributions at `states` [R, D_t], from its head."""
        assert self.teacher_weight is not None
        bias = None if self.teacher_bias is None else self.teacher_bias.to(dtype)
        head = ChunkedHead(self.teacher_weight.to(dtype), bias, scale=self.scale, softcap=self.softcap)
        temperature, kind = self.options.temperature, self.options.kd_divergence
        if self.outcomes is None:
            return SharedVocabularyTerm(states, head, coefficients, temperature=temperature, kind=kind)
        return SharedOrRestTerm(states, head, coefficients, outcomes=self.outcomes, temperature=temperature, kind=kind)

    def top_k_term(
        self, batch: Batch, example: Tensor, positions: Tensor, coefficients: Tensor, vocabulary_size: int
    ) -> HeadTerm:
        """The teacher's truncated distributions at rows (example, position) [R] of the cache."""
        temperature = self.options.temperature
        if batch.top_k_ids is None or batch.top_k_values is None:
            raise ShardError(
                "teacher's pages: no top-k columns; run `sra-data cache-teacher --top-k 64` into a new folder"
            )
        tails = batch.log_tails or {}
        if temperature not in tails:
            known = ", ".join(f"{one:g}" for one in sorted(tails)) or "none"
            raise ShardError(
                f"teacher's pages: no log tail at temperature={temperature:g} (cached: {known}); "
                f"choose a cached one or run `sra-data cache-teacher --temperatures {temperature:g}` into a new folder"
            )
        outcomes = top_k_outcomes(
            top_k_ids=batch.top_k_ids[example, positions].long(),
            top_k_values=batch.top_k_values[example, positions],
            log_tail=tails[temperature][example, positions],
            teacher_to_student=self.vocabulary.teacher_to_student,
            student_vocabulary=vocabulary_size,
            temperature=temperature,
        )
        return TopKTerm(outcomes, coefficients, temperature=temperature, kind=self.options.kd_divergence)

    def _refuse_rest_without_ids(self, vocabulary_size: int) -> None:
        """A teacher with a rest against a student that has none would be infinitely far from it."""
        assert self.outcomes is not None
        assert self.teacher_weight is not None
        if len(self.teacher_weight) > self.outcomes.num_shared + self.outcomes.num_doubles:
            raise ConfigError(
                f"kd_vocabulary=rest: all {vocabulary_size} ids of the student are shared, so its rest is empty while "
                "the teacher's is not; set kd_vocabulary=renormalised"
            )
