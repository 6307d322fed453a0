"""The teacher's output head and the input embeddings of the ids that occur, beside its parts, as safetensors.

See tensor_file.py for how they are written and checked.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sra_data.errors import ShardError
from sra_data.shards.codecs import EncodedTensor
from sra_data.shards.manifest import repair_for
from sra_data.shards.tensor_file import Tensor, int32_of, load_tensors, save_tensors

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
    tensors, metadata = load_tensors(folder, HEAD, {"weight": "VD"})
    _refuse_bad_numbers(metadata, folder / HEAD)
    found = {name: _as_encoded(tensor, folder / HEAD) for name, tensor in tensors.items()}
    if "bias" in found and found["bias"].shape != found["weight"].shape[:1]:
        shapes = f"bias of {found['bias'].shape} for weight of {found['weight'].shape}"
        raise ShardError(f"{folder / HEAD}: {shapes}; {repair_for(folder)}")
    return found, metadata


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
    path = folder / EMBEDDINGS
    tensors, metadata = load_tensors(folder, EMBEDDINGS, {"ids": "n"})
    _refuse_bad_numbers(metadata, path)
    ids = int32_of({"ids": tensors["ids"]}, path)["ids"]
    is_tied = bool(metadata.get("tied"))
    weight = load_head(folder)[0]["weight"] if is_tied else _as_encoded(tensors.get("weight"), path)
    known = len(weight) if is_tied else int(ids.max(initial=-1)) + 1
    is_sorted = (np.diff(ids) > 0).all() and ids.min(initial=0) >= 0 and ids.max(initial=-1) < known
    if not is_sorted or (not is_tied and len(weight) != len(ids)):
        raise ShardError(f"{path}: {len(ids)} ids for {len(weight)} embeddings do not fit; {repair_for(folder)}")
    return ids, weight[ids] if is_tied else weight, metadata


def _refuse_bad_numbers(metadata: Mapping[str, str], path: Path) -> None:
    """What is a number in a model's own words must be one: scale and soft-cap."""
    for name in ("scale", "softcap"):
        text = metadata.get(name, "")
        try:
            is_number = not text or math.isfinite(float(text))
        except ValueError:
            is_number = False
        if not is_number:
            raise ShardError(f"{path}: {name} {text[:40]!r} is no finite number; {repair_for(path.parent)}")


def _as_encoded(tensor: Tensor | None, path: Path) -> EncodedTensor:
    if isinstance(tensor, EncodedTensor):
        return tensor
    dtype = None if tensor is None else {"<f2": "fp16", "<f4": "fp32"}.get(tensor.dtype.str)
    if tensor is None or dtype is None:
        had = "no weight" if tensor is None else f"a tensor of {tensor.dtype}"
        raise ShardError(f"{path}: {had}, expected bf16, fp16 or fp32; {repair_for(path.parent)}")
    return EncodedTensor(dtype, tensor)
