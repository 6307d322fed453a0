"""Tensors beside the parts of a folder, as safetensors.

Any safetensors reader opens the files (bfloat16 is real BF16 there). Here they are mapped from disk without a copy,
each tensor checked against its xxh3 in the file's metadata, bfloat16 as bit patterns in an `EncodedTensor`.
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
    """Write a safetensors file and its receipt: 8 bytes length, JSON header padded to 8 bytes, data without gaps."""
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


def load_tensors(
    folder: Path, name: str, *, command: str = "cache-teacher"
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Map a safetensors file: 8 bytes length, JSON header, data.

    Raises:
        ShardError: If it is missing or damaged; `command` makes it again.
    """
    file_receipt(folder, name)
    path = folder / name
    remedy = f"delete {name} with its receipt and run `sra-data {command}` again"
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


def _tensor(data: NDArray[np.uint8], entry: Mapping[str, Any]) -> Tensor:
    dtype = next(dtype for dtype, names in DTYPES.items() if names[0] == entry["dtype"])
    start, stop = entry["data_offsets"]
    array: NDArray[Any] = np.asarray(data[start:stop]).view(DTYPES[dtype][1]).reshape(entry["shape"])
    return EncodedTensor(dtype, array) if dtype == "bf16" else array
