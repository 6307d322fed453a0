"""The teacher's output head and the input embeddings of the ids that occur, beside its parts, as safetensors.

See tensor_file.py for how they are written and checked.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sra_data.shards.codecs import EncodedTensor
from sra_data.shards.tensor_file import Tensor, load_tensors, save_tensors

HEAD = "head.safetensors"
EMBEDDINGS = "embeddings.safetensors"


def save_head(folder: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write head.safetensors and its receipt.

    Args:
        folder: the teacher's folder.
        tensors: `OutputHead.state`'s tensors, say weight [V, D] and bias [V]: `EncodedTensor` or float32 / float16
            arrays.
        metadata: text by name: scale, soft-cap, fingerprints.
    """
    save_tensors(folder, HEAD, tensors, metadata)


def load_head(folder: Path) -> tuple[dict[str, EncodedTensor], dict[str, str]]:
    """Read head.safetensors: the tensors (mapped from disk, read-only) and the metadata.

    Raises:
        ShardError: If it is missing or damaged.
    """
    tensors, metadata = load_tensors(folder, HEAD)
    return {name: _as_encoded(tensor) for name, tensor in tensors.items()}, metadata


def save_embeddings(folder: Path, ids: NDArray[np.int32], weight: Tensor | None, metadata: Mapping[str, str]) -> None:
    """Write embeddings.safetensors and its receipt.

    Args:
        folder: the teacher's folder.
        ids: [n], increasing: the ids that occur.
        weight: [n, D], their input embeddings; None where they are tied to the head: its rows are then used.
        metadata: text by name: what the model multiplies embeddings by, fingerprints.
    """
    tied = {"tied": "head.weight"} if weight is None else {}
    tensors: dict[str, Tensor] = {"ids": np.ascontiguousarray(ids, np.int32)}
    if weight is not None:
        tensors["weight"] = weight
    save_tensors(folder, EMBEDDINGS, tensors, {**metadata, **tied})


def load_embeddings(folder: Path) -> tuple[NDArray[np.int32], EncodedTensor, dict[str, str]]:
    """Read embeddings.safetensors: ids int32 [n], their embeddings [n, D], and the metadata.

    Raises:
        ShardError: If it, or the head it refers to, is missing or damaged.
    """
    tensors, metadata = load_tensors(folder, EMBEDDINGS)
    ids = tensors["ids"]
    assert isinstance(ids, np.ndarray)
    if metadata.get("tied"):
        return ids, load_head(folder)[0]["weight"][ids], metadata
    return ids, _as_encoded(tensors["weight"]), metadata


def _as_encoded(tensor: Tensor) -> EncodedTensor:
    if isinstance(tensor, EncodedTensor):
        return tensor
    return EncodedTensor({"<f2": "fp16", "<f4": "fp32"}[tensor.dtype.str], tensor)
