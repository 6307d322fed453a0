"""What a method is told of each teacher when it is built: sizes, the shared vocabulary, its head, its embeddings."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from sra_data.models.output_head import OutputHead
from sra_train.contract import Images, InputEmbeddings, KnowledgeNeeds, ModelShape, TeacherKnowledge, TeacherSetting
from sra_train.data.sources import Sources, TeacherSource


def teacher_settings(sources: Sources, needs: KnowledgeNeeds) -> tuple[TeacherSetting, ...]:
    """Every teacher of the run, in order.

    Raises:
        ShardError: If a file is missing or damaged.
    """
    return tuple(teacher_setting(sources, teacher, needs) for teacher in sources.teachers)


def teacher_setting(sources: Sources, teacher: TeacherSource, needs: KnowledgeNeeds) -> TeacherSetting:
    """One of them."""
    facts = teacher.pages.facts
    shape = ModelShape(
        num_layers=int(facts["num_layers"]),
        hidden_size=int(facts["hidden_size"]),
        vocabulary_size=int(facts["vocabulary_size"]),
    )
    shared = teacher.pair.vocabulary()
    knowledge = TeacherKnowledge(
        shared_student_ids=long_tensor(shared.student_ids),
        shared_teacher_ids=long_tensor(shared.teacher_ids),
        head=teacher_head(sources, teacher.name) if needs.head else None,
        embeddings=teacher_embeddings(sources, teacher.name) if needs.embeddings else None,
        images=Images(**{name: long_tensor(ids) for name, ids in vars(teacher.pair.images()).items()})
        if needs.images
        else None,
        nearest=long_tensor(teacher.pair.nearest().student_of_teacher) if needs.nearest else None,
        teacher_to_student=long_tensor(shared.student_of_teacher),
        end_of_sequence=shared.end_of_sequence,
    )
    return TeacherSetting(teacher.name, teacher.weight, shape, knowledge)


def teacher_head(sources: Sources, name: str) -> OutputHead:
    """A teacher's head in float32, with its family's scaling and soft-cap."""
    stored, metadata = sources.shards.head(name)
    tensors = {name: torch.from_numpy(np.array(tensor.float32())) for name, tensor in stored.items()}
    return OutputHead.from_state(tensors, dict(metadata))


def teacher_embeddings(sources: Sources, name: str) -> InputEmbeddings:
    """A teacher's input embeddings of the ids that occur, in float32."""
    ids, weight, metadata = sources.shards.embeddings(name)
    return InputEmbeddings(
        ids=long_tensor(ids),
        weight=torch.from_numpy(np.array(weight.float32())),
        scale=float(metadata.get("scale", "1.0")),
    )


def long_tensor(values: NDArray[np.int32]) -> torch.Tensor:
    """int64 of its own memory."""
    return torch.from_numpy(values.astype(np.int64))
