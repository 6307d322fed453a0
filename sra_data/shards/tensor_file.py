"""Tensors beside the parts of a folder, as safetensors.

Any safetensors reader opens the files (bfloat16 is real BF16 there). Here they are mapped from disk without a copy,
each tensor checked against its xxh3 in the file's metadata, bfloat16 as bit patterns in an `EncodedTensor`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from sra_data.errors import ShardError
from sra_data.shards.claims import claimed_file
from sra_data.shards.codecs import EncodedTensor
from sra_data.shards.durable import explain, publish, staged
from sra_data.shards.manifest import repair_for
from sra_data.shards.metadata import TensorRecord
from sra_data.shards.receipts import checked_file, fetched_file, file_receipt_bytes

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


def save_tensors(folder: Path, name: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file and its receipt: 8 bytes length, JSON header padded to 8 bytes, data without gaps.

    One that is there already, with its receipt, stays as it is.
    """
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
    with claimed_file(folder, name) as claim:
        if claim is None:  # another process made it meanwhile
            return
        with staged(folder / name) as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for _, array in stored.values():
                file.write(_flat(array))
            publish(file, folder / name)
        claim.fulfil(file_receipt_bytes(folder, name))


def load_tensors(
    folder: Path, name: str, shapes: Mapping[str, str], *, command: str = "cache-teacher"
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Map a safetensors file: 8 bytes length, JSON header, data. The header is believed once its hash is the receipt's.

    Args:
        folder: where it is.
        name: of the file.
        shapes: the tensors it must have, each with a letter for every dimension: equal letters are equal sizes. Others
            may be there too.
        command: what makes it again.

    Raises:
        ShardError: If it is missing or damaged, or lacks one of `shapes`.
    """
    _, header, start = checked_file(folder, name)
    path = fetched_file(folder, name)
    remedy = f"delete {name} with its receipt and run `sra-data {command}` again"
    _refuse_other_shapes({key: entry.shape for key, entry in header.tensors.items()}, shapes, path, remedy)
    try:
        data = np.memmap(path, np.uint8, mode="r")[start:]
    except OSError as error:
        raise explain(error, path, "reading") from error
    tensors = {key: _tensor(data, entry) for key, entry in header.tensors.items()}
    metadata = dict(header.metadata)
    for key, tensor in tensors.items():
        array = tensor.array if isinstance(tensor, EncodedTensor) else tensor
        if xxhash.xxh3_64_hexdigest(_flat(array)) != metadata.pop(HASH_PREFIX + key, ""):
            raise ShardError(f"{path}: tensor {key}: checksum differs; {remedy}")
    return tensors, metadata


def _refuse_other_shapes(
    found: Mapping[str, Sequence[int]], shapes: Mapping[str, str], path: Path, remedy: str
) -> None:
    sizes: dict[str, int] = {}
    for key, letters in shapes.items():
        shape = found.get(key)
        if shape is None or len(shape) != len(letters):
            raise ShardError(f"{path}: tensor {key} of shape {shape}, expected [{', '.join(letters)}]; {remedy}")
        for letter, size in zip(letters, shape, strict=True):
            if sizes.setdefault(letter, size) != size:
                raise ShardError(f"{path}: tensor {key}: {letter} is {size}, elsewhere {sizes[letter]}; {remedy}")


def int32_of(tensors: Mapping[str, Tensor], path: Path) -> dict[str, NDArray[np.int32]]:
    """Tensors that must all be numbers of ids.

    Raises:
        ShardError: If one is of another dtype.
    """
    for key, tensor in tensors.items():
        if isinstance(tensor, EncodedTensor) or tensor.dtype != np.int32:
            raise ShardError(f"{path}: tensor {key} of {tensor.dtype}, expected int32; {repair_for(path.parent)}")
    return {key: np.asarray(tensor) for key, tensor in tensors.items()}


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


def _tensor(data: NDArray[np.uint8], entry: TensorRecord) -> Tensor:
    dtype = next(dtype for dtype, names in DTYPES.items() if names[0] == entry.dtype)
    start, stop = entry.data_offsets
    array: NDArray[Any] = np.asarray(data[start:stop]).view(DTYPES[dtype][1]).reshape(entry.shape)
    return EncodedTensor(dtype, array) if dtype == "bf16" else array
