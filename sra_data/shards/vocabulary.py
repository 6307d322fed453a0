"""The shared vocabulary of an alignment, beside its parts, as safetensors: left and right as in the folder's name.

Training reads it from here, because it has no tokenizer of the teacher's.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sra_data.errors import ShardError
from sra_data.shards.manifest import repair_for
from sra_data.shards.tensor_file import int32_of, load_tensors, save_tensors

VOCABULARY = "vocabulary.safetensors"
SHAPES = {"left_ids": "n", "right_ids": "n", "right_of_left": "L", "left_of_right": "R", "end_of_sequence": "e"}


@dataclass(frozen=True, eq=False)
class StoredVocabulary:
    """Ids of two tokenizers that stand for the same bytes.

    Attributes:
        left_ids: [n] int32, increasing, one pair for each shared string: the lowest id of each side.
        right_ids: [n] int32.
        right_of_left: [left's ids] int32: for every left id the right's id of its bytes, or -1.
        left_of_right: [right's ids] int32, likewise.
        end_of_sequence: (left's id, right's id), a pair by role; None where a side has none.
    """

    left_ids: NDArray[np.int32]
    right_ids: NDArray[np.int32]
    right_of_left: NDArray[np.int32]
    left_of_right: NDArray[np.int32]
    end_of_sequence: tuple[int, int] | None

    def swapped(self) -> StoredVocabulary:
        """The same, right for left, pairs in the order of the new left's ids."""
        end, order = self.end_of_sequence, np.argsort(self.right_ids, kind="stable")
        return StoredVocabulary(
            self.right_ids[order],
            self.left_ids[order],
            self.left_of_right,
            self.right_of_left,
            None if end is None else (end[1], end[0]),
        )


def save_vocabulary(folder: Path, vocabulary: StoredVocabulary) -> None:
    """Write vocabulary.safetensors and its receipt into an alignment's folder."""
    tensors = {
        "left_ids": vocabulary.left_ids,
        "right_ids": vocabulary.right_ids,
        "right_of_left": vocabulary.right_of_left,
        "left_of_right": vocabulary.left_of_right,
        "end_of_sequence": np.array(vocabulary.end_of_sequence or (), dtype=np.int32),
    }
    save_tensors(folder, VOCABULARY, tensors, {})


def load_vocabulary(folder: Path) -> StoredVocabulary:
    """Read it.

    Raises:
        ShardError: If it is missing or damaged.
    """
    path = folder / VOCABULARY
    tensors, _ = load_tensors(folder, VOCABULARY, SHAPES, command="align")
    found = int32_of({name: tensors[name] for name in SHAPES}, path)
    end = found.pop("end_of_sequence").tolist()
    vocabulary = StoredVocabulary(**found, end_of_sequence=(end[0], end[1]) if len(end) == 2 else None)
    num_left, num_right = len(vocabulary.right_of_left), len(vocabulary.left_of_right)
    bounds = (
        (vocabulary.left_ids, 0, num_left),
        (vocabulary.right_ids, 0, num_right),
        (vocabulary.right_of_left, -1, num_right),
        (vocabulary.left_of_right, -1, num_left),
    )
    if any(len(ids) and not (lowest <= ids.min() and ids.max() < stop) for ids, lowest, stop in bounds):
        raise ShardError(f"{path}: ids beyond {num_left} on the left or {num_right} on the right; {repair_for(folder)}")
    return vocabulary
