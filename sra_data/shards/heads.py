"""The teacher's output head and the input embeddings of the ids that occur, beside its parts, as safetensors.

Any safetensors reader opens them (bfloat16 is real BF16 there). Here they are mapped from disk without a copy, each
tensor checked against its xxh3 in the file's metadata, bfloat16 as bit patterns in an `EncodedTensor`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from sra_data.errors import ShardError
from sra_data.shards.codecs import EncodedTensor
from sra_data.shards.durable import publish, staged
from sra_data.shards.seal import file_receipt, write_file_receipt

HEAD = "head.safetensors"
EMBEDDINGS = "embeddings.safetensors"
HASH_PREFIX = "xxh3."

# dtype here -> (safetensors' name, numpy dtype of the bytes)
DTYPES: dict[str, tuple[str, np.dtype[Any]]] = {
    "bf16": ("BF16", np.dtype("<u2")),
    "fp16": ("F16", np.dtype("<f2")),
    "fp32": ("F32", np.dtype("<f4")),
    "int32": ("I32", np.dtype("<i4")),
    "int64": ("I64", np.dtype("<i8")),
}
Tensor = EncodedTensor | NDArray[Any]


def save_head(folder: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write head.safetensors and its receipt.

    Args:
        folder: the teacher's folder.
        tensors: `OutputHead.state`'s tensors, say weight [V, D] and bias [V]: `EncodedTensor` or float32 / float16
            arrays.
        metadata: text by name: scale, soft-cap, fingerprints.
    """
    _save(folder, HEAD, tensors, metadata)


def load_head(folder: Path) -> tuple[dict[str, EncodedTensor], dict[str, str]]:
    """Read head.safetensors: the tensors (mapped from disk, read-only) and the metadata.

    Raises:
        ShardError: If it is missing or damaged.
    """
    tensors, metadata = _load(folder, HEAD)
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
    _save(folder, EMBEDDINGS, tensors, {**metadata, **tied})


def load_embeddings(folder: Path) -> tuple[NDArray[np.int32], EncodedTensor, dict[str, str]]:
    """Read embeddings.safetensors: ids int32 [n], their embeddings [n, D], and the metadata.

    Raises:
        ShardError: If it, or the head it refers to, is missing or damaged.
    """
    tensors, metadata = _load(folder, EMBEDDINGS)
    ids = tensors["ids"]
    assert isinstance(ids, np.ndarray)
    if metadata.get("tied"):
        return ids, load_head(folder)[0]["weight"][ids], metadata
    return ids, _as_encoded(tensors["weight"]), metadata


def _as_encoded(tensor: Tensor) -> EncodedTensor:
    if isinstance(tensor, EncodedTensor):
        return tensor
    return EncodedTensor({"<f2": "fp16", "<f4": "fp32"}[tensor.dtype.str], tensor)


def _save(folder: Path, name: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file: 8 bytes length, JSON header padded to 8 bytes, data without gaps."""
    stored = {key: _stored(key, tensor) for key, tensor in tensors.items()}
    said = dict(metadata)
    header: dict[str, Any] = {"__metadata__": said}
    end = 0
    for key, (dtype, array) in stored.items():
        start, end = end, end + array.nbytes
        header[key] = {"dtype": DTYPES[dtype][0], "shape": list(array.shape), "data_offsets": [start, end]}
        said[HASH_PREFIX + key] = xxhash.xxh3_64_hexdigest(_flat(array))
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with staged(folder / name) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, array in stored.values():
            file.write(_flat(array))
        publish(file, folder / name)
    write_file_receipt(folder, name)


def _flat(array: NDArray[Any]) -> memoryview:
    return array.reshape(-1).view(np.uint8).data


def _stored(key: str, tensor: Tensor) -> tuple[str, NDArray[Any]]:
    if isinstance(tensor, EncodedTensor):
        if tensor.vector_scales is not None:
            raise ValueError(f"{key}: int8 is for hidden states only")
        return tensor.dtype, np.ascontiguousarray(tensor.array)
    for dtype, (_, stored) in DTYPES.items():
        if dtype != "bf16" and tensor.dtype == stored:
            return dtype, np.ascontiguousarray(tensor)
    raise ValueError(f"{key}: dtype {tensor.dtype} is not one of {', '.join(DTYPES)}")


def _load(folder: Path, name: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Map a safetensors file: 8 bytes length, JSON header, data."""
    file_receipt(folder, name)
    path = folder / name
    remedy = f"delete {name} with its receipt and run `sra-data cache-teacher` again"
    try:
        content = np.memmap(path, np.uint8, mode="r")
        length = int.from_bytes(content[:8].tobytes(), "little")
        header = json.loads(content[8 : 8 + length].tobytes())
        metadata: dict[str, str] = header.pop("__metadata__", {})
        data = content[8 + length :]
        tensors = {key: _tensor(data, entry) for key, entry in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError, OSError, StopIteration) as error:
        raise ShardError(f"{path}: damaged ({' '.join(str(error).split())}); {remedy}") from error
    for key, tensor in tensors.items():
        array = tensor.array if isinstance(tensor, EncodedTensor) else tensor
        if xxhash.xxh3_64_hexdigest(_flat(array)) != metadata.pop(HASH_PREFIX + key, ""):
            raise ShardError(f"{path}: tensor {key}: checksum differs; {remedy}")
    return tensors, metadata


def _tensor(data: NDArray[np.uint8], entry: Mapping[str, Any]) -> Tensor:
    dtype = next(dtype for dtype, names in DTYPES.items() if names[0] == entry["dtype"])
    start, stop = entry["data_offsets"]
    array: NDArray[Any] = np.asarray(data[start:stop]).view(DTYPES[dtype][1]).reshape(entry["shape"])
    return EncodedTensor(dtype, array) if dtype == "bf16" else array
