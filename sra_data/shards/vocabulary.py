"""The shared vocabulary of an alignment, beside its parts, as safetensors.

Training reads it from here, because it has no tokenizer of the teacher's.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sra_data.shards.tensor_file import load_tensors, save_tensors

VOCABULARY = "vocabulary.safetensors"


@dataclass(frozen=True, eq=False)
class StoredVocabulary:
    """Ids of two tokenizers that stand for the same bytes.

    Attributes:
        student_ids: [n] int32, one pair for each shared string.
        teacher_ids: [n] int32.
        student_of_teacher: [teacher's ids] int32: for every teacher id the student's id of its bytes, or -1.
        end_of_sequence: (student's id, teacher's id), a pair by role; None where a side has none.
    """

    student_ids: NDArray[np.int32]
    teacher_ids: NDArray[np.int32]
    student_of_teacher: NDArray[np.int32]
    end_of_sequence: tuple[int, int] | None


def save_vocabulary(folder: Path, vocabulary: StoredVocabulary) -> None:
    """Write vocabulary.safetensors and its receipt into an alignment's folder."""
    tensors = {
        "student_ids": vocabulary.student_ids,
        "teacher_ids": vocabulary.teacher_ids,
        "student_of_teacher": vocabulary.student_of_teacher,
        "end_of_sequence": np.array(vocabulary.end_of_sequence or (), dtype=np.int32),
    }
    save_tensors(folder, VOCABULARY, tensors, {})


def load_vocabulary(folder: Path) -> StoredVocabulary:
    """Read it.

    Raises:
        ShardError: If it is missing or damaged.
    """
    tensors, _ = load_tensors(folder, VOCABULARY, command="align")
    arrays = {name: np.asarray(tensor) for name, tensor in tensors.items()}
    end = arrays.pop("end_of_sequence").tolist()
    return StoredVocabulary(**arrays, end_of_sequence=(end[0], end[1]) if end else None)
