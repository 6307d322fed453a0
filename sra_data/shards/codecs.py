"""How one ragged tensor becomes one binary value and back: a small registry of named codecs.

A codec is named in the column's metadata, so a file says itself how to read it; a new codec is one entry in `CODECS`.
Values are C order and little endian. bfloat16, which numpy lacks, travels as its bit pattern (uint16) inside an
`EncodedTensor`, so that a trainer can hand the very bytes to its framework without a copy; `EncodedTensor.float32`
decodes with numpy alone.

Lossy storage is only the ``int8`` codec: one scale per channel, the same for a whole folder, times one per vector and
block of 128 channels. Plain per-vector absmax does not exist here: a
handful of outlier channels would then leave the others a few levels each, 41 % wrong behind a cosine of 0.9986.

Shapes: P positions of one example, D channels, G = ceil(D / 128) blocks of channels, k entries per position.
"""

from __future__ import annotations

import base64
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sra_data.errors import ShardError

assert sys.byteorder == "little", "shards are little endian and read without conversion"

Array = NDArray[Any]
HIDDEN_DTYPES = ("bf16", "fp16", "fp32", "int8")
NUMPY_DTYPES: dict[str, np.dtype[Any]] = {
    "bf16": np.dtype("<u2"),
    "fp16": np.dtype("<f2"),
    "fp32": np.dtype("<f4"),
    "int8": np.dtype("i1"),
}
FIRST_ABOVE_FP16 = 65_520  # from here on fp16 rounds to infinity
INT8_LEVELS = 127
CHANNELS_PER_SCALE = 128


@dataclass(frozen=True)
class EncodedTensor:
    """A tensor as it is stored: raw numbers and the name of what they mean.

    Attributes:
        dtype: "bf16" (array is uint16, the bit pattern), "fp16", "fp32" or "int8".
        array: [..., D], C order; may be a read-only view of a file's bytes.
        vector_scales: "int8" only: float32 [..., G], one per vector and block of channels.
        channel_scales: "int8" only: float32 [D], one per channel, the same for a whole folder.
    """

    dtype: str
    array: Array
    vector_scales: NDArray[np.float32] | None = None
    channel_scales: NDArray[np.float32] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the tensor it stands for."""
        return self.array.shape

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, rows: Any) -> EncodedTensor:
        """Some of the leading rows, still encoded."""
        scales = None if self.vector_scales is None else self.vector_scales[rows]
        return EncodedTensor(self.dtype, self.array[rows], scales, self.channel_scales)

    def float32(self) -> NDArray[np.float32]:
        """Decode to float32; exact for every dtype but "int8"."""
        if self.dtype == "bf16":
            return (self.array.astype(np.uint32) << 16).view(np.float32)
        if self.dtype == "int8":
            assert self.vector_scales is not None
            assert self.channel_scales is not None
            scales = np.repeat(self.vector_scales, CHANNELS_PER_SCALE, axis=-1)[..., : self.array.shape[-1]]
            return self.array.astype(np.float32) * scales * self.channel_scales
        return self.array.astype(np.float32)


def encode_float32(
    values: NDArray[np.float32], dtype: str, channel_scales: NDArray[np.float32] | None = None
) -> EncodedTensor:
    """Encode float32 `values` [..., D] as `dtype` (one of `HIDDEN_DTYPES`); "int8" needs `channel_scales` [D].

    bfloat16 rounds to nearest even, and NaN stays NaN, as frameworks do.

    Raises:
        ShardError: If a finite value does not fit fp16.
    """
    if dtype == "int8":
        if channel_scales is None:
            raise ValueError("int8 needs channel_scales, see estimate_channel_scales")
        return quantize_int8(values, channel_scales)
    if dtype == "bf16":
        bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
        rounded = (bits + (0x7FFF + ((bits >> 16) & 1))) >> 16
        return EncodedTensor(dtype, np.where(np.isnan(values), 0x7FC0, rounded).astype(np.uint16))
    if dtype == "fp16":
        largest = np.abs(values).max(initial=0.0, where=np.isfinite(values))
        if largest >= FIRST_ABOVE_FP16:
            raise ShardError(f"hidden states up to {largest:.0f} do not fit fp16; use --hidden-dtype bf16")
    return EncodedTensor(dtype, np.ascontiguousarray(values, dtype=NUMPY_DTYPES[dtype]))


def estimate_channel_scales(samples: NDArray[np.float32]) -> NDArray[np.float32]:
    """Root mean square of each channel over calibration vectors [n, D]: float32 [D], never zero.

    Estimated once from a fixed sample and written into the plan, so that every unit uses the same scales whoever runs
    it. After division by it an outlier channel is as large as its neighbours and cannot cost them their levels.

    Raises:
        ValueError: If there is no vector, or one is not finite.
    """
    if len(samples) == 0 or not np.isfinite(samples).all():
        raise ValueError(f"calibration needs finite vectors, got shape {samples.shape}")
    scales = np.sqrt(np.mean(np.square(samples, dtype=np.float64), axis=0))
    floor = max(float(scales.max()) * 1e-6, 1e-20)  # a dead channel: any scale does, but not 0
    return np.maximum(scales, floor).astype(np.float32)


def quantize_int8(values: NDArray[np.float32], channel_scales: NDArray[np.float32]) -> EncodedTensor:
    """Round `values` [..., D] / `channel_scales` [D] to 127 levels each way, float32 scales per vector and block.

    A block's scale is its largest entry after division / 127, so nothing is clipped. Blocks of 128 channels keep a
    single large entry from coarsening a whole wide vector.
    """
    whitened = np.asarray(values, np.float32) / channel_scales
    width = whitened.shape[-1]
    largest = np.maximum.reduceat(np.abs(whitened), np.arange(0, width, CHANNELS_PER_SCALE), axis=-1)
    scales = (largest / INT8_LEVELS).astype(np.float32)
    divisors = np.repeat(np.where(scales > 0, scales, 1), CHANNELS_PER_SCALE, axis=-1)[..., :width]
    levels = np.rint(whitened / divisors)
    array = np.clip(levels, -INT8_LEVELS, INT8_LEVELS).astype(np.int8)
    return EncodedTensor("int8", array, scales, np.asarray(channel_scales, np.float32))


def scales_to_text(channel_scales: NDArray[np.float32]) -> str:
    """Channel scales as text, for a plan or a column's metadata; exact."""
    return base64.b64encode(np.asarray(channel_scales, "<f4").tobytes()).decode()


def scales_from_text(text: str) -> NDArray[np.float32]:
    """Back from `scales_to_text`: float32 [D]."""
    return np.frombuffer(base64.b64decode(text), "<f4")


# --------------------------------------------------------------------------- packed ids


def bits_for(vocab_size: int) -> int:
    """Bits an id below `vocab_size` needs: 151,936 -> 18."""
    return max(int(vocab_size - 1).bit_length(), 1)


def _whole_bits(bits: int) -> int:
    return 16 if bits >= 16 else 8 if bits >= 8 else 0


def pack_ids(ids: Array, bits: int) -> bytes:
    """Pack non-negative `ids` to `bits` each: the low 16 (or 8) bits as whole numbers, then one plane per higher bit.

    18 bits of n ids are n uint16 and two planes of n/8 bytes: as small as a bit stream, and decoded at memory speed.

    Raises:
        ValueError: If an id does not fit.
    """
    flat = np.ascontiguousarray(ids).reshape(-1).astype(np.int64)
    if flat.size and (flat.min() < 0 or flat.max() >> bits):
        raise ValueError(f"ids from {flat.min()} to {flat.max()} do not fit {bits} bits")
    whole = _whole_bits(bits)
    pieces = [flat.astype(f"<u{whole // 8}").tobytes()] if whole else []
    for bit in range(whole, bits):
        pieces.append(np.packbits(((flat >> bit) & 1).astype(bool), bitorder="little").tobytes())
    return b"".join(pieces)


def packed_size(count: int, bits: int) -> int:
    """Bytes of `count` ids packed to `bits`."""
    whole = _whole_bits(bits)
    return count * whole // 8 + (bits - whole) * ((count + 7) // 8)


def unpack_ids(data: memoryview, count: int, bits: int) -> NDArray[np.int32]:
    """Back from `pack_ids`: int32 [count]."""
    whole = _whole_bits(bits)
    start = count * whole // 8
    ids = np.frombuffer(data, f"<u{whole // 8}", count).astype(np.int32) if whole else np.zeros(count, np.int32)
    step = (count + 7) // 8
    for first in range(whole, bits, 8):  # up to eight planes are put together as bytes, then widened once
        high = np.zeros(count, np.uint8)
        for bit in range(first, min(first + 8, bits)):
            plane = np.frombuffer(data, np.uint8, step, start)
            high |= np.unpackbits(plane, count=count, bitorder="little") << np.uint8(bit - first)
            start += step
        ids |= high.astype(np.int32) << np.int32(first)
    return ids


# --------------------------------------------------------------------------- descending values


def pack_sorted(values: Array) -> bytes:
    """Differences of neighbouring bit patterns, byte planes apart: fp16 or fp32 of any shape, in C order.

    Exact for any values (differences wrap around). Top-k log-probabilities come in descending order, so all but the
    first difference of a position are small and their high bytes nearly constant: zstd stores a third of the size.
    """
    bits = np.ascontiguousarray(values).reshape(-1).view(f"<u{values.dtype.itemsize}")
    deltas = bits.copy()
    deltas[1:] -= bits[:-1]
    return np.ascontiguousarray(deltas.reshape(-1, 1).view(np.uint8).T).tobytes()


def unpack_sorted(data: memoryview, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """Back from `pack_sorted`: `shape` of `dtype`."""
    whole = np.dtype(f"<u{dtype.itemsize}")
    planes = np.frombuffer(data, np.uint8).reshape(dtype.itemsize, -1)
    deltas = planes[-1].astype(whole)
    for plane in planes[-2::-1]:  # widening plane by plane is several times faster than a transposition of bytes
        deltas <<= whole.type(8)
        deltas |= plane
    return np.cumsum(deltas, dtype=whole).view(dtype).reshape(shape)


# --------------------------------------------------------------------------- registry

Parameters = Mapping[str, Any]


@dataclass(frozen=True)
class Codec:
    """How a value becomes bytes and back.

    Attributes:
        encode: (value, parameters) -> buffers whose concatenation is stored.
        decode: (bytes, shape, parameters) -> value; a leading -1 in the shape follows from the number of bytes.
        size: (shape, parameters) -> bytes.
    """

    encode: Callable[[Any, Parameters], list[Any]]
    decode: Callable[[memoryview, tuple[int, ...], Parameters], Any]
    size: Callable[[tuple[int, ...], Parameters], int]


def _count(shape: tuple[int, ...]) -> int:
    return math.prod(shape)


def _plain(dtype: str) -> Codec:
    """Numbers as they are, copied out on reading so that they are aligned, writable and free of the file's buffer."""
    stored = np.dtype(dtype)
    return Codec(
        encode=lambda value, parameters: [_bytes_of(_checked(value, stored))],
        decode=lambda data, shape, parameters: np.frombuffer(data, stored).reshape(shape).copy(),
        size=lambda shape, parameters: _count(shape) * stored.itemsize,
    )


def _encoded(dtype: str) -> Codec:
    """An `EncodedTensor` without scales; reading gives a view, no copy."""
    stored = NUMPY_DTYPES[dtype]
    return Codec(
        encode=lambda value, parameters: [_bytes_of(_checked(_tensor(value, dtype).array, stored))],
        decode=lambda data, shape, parameters: EncodedTensor(dtype, np.frombuffer(data, stored).reshape(shape)),
        size=lambda shape, parameters: _count(shape) * stored.itemsize,
    )


def _encode_int8(value: Any, parameters: Parameters) -> list[Any]:
    tensor = _tensor(value, "int8")
    if tensor.channel_scales is None or scales_to_text(tensor.channel_scales) != parameters["channel_scales"]:
        raise ValueError("int8 values must use the channel scales their column was declared with")
    return [
        _bytes_of(_checked(tensor.vector_scales, np.dtype("<f4"))),
        _bytes_of(_checked(tensor.array, np.dtype("i1"))),
    ]


def _num_blocks(shape: tuple[int, ...]) -> int:
    return -(-shape[-1] // CHANNELS_PER_SCALE)


def _size_int8(shape: tuple[int, ...], parameters: Parameters) -> int:
    return _count(shape) + 4 * shape[0] * _num_blocks(shape)


def _decode_int8(data: memoryview, shape: tuple[int, ...], parameters: Parameters) -> EncodedTensor:
    blocks = _num_blocks(shape)
    head = 4 * shape[0] * blocks  # the scales come first, where they stay aligned
    scales = np.frombuffer(data[:head], "<f4").reshape(shape[0], blocks)
    array = np.frombuffer(data[head:], "i1").reshape(shape)
    return EncodedTensor("int8", array, scales, scales_from_text(parameters["channel_scales"]))


def _tensor(value: Any, dtype: str) -> EncodedTensor:
    if not isinstance(value, EncodedTensor) or value.dtype != dtype:
        raise ValueError(f"expected an EncodedTensor of {dtype}, got {getattr(value, 'dtype', type(value).__name__)}")
    return value


def _checked(array: Any, stored: np.dtype[Any]) -> Array:
    if not isinstance(array, np.ndarray) or array.dtype != stored:
        raise ValueError(f"expected an array of {stored}, got {getattr(array, 'dtype', type(array).__name__)}")
    return array


def _bytes_of(array: Array) -> Array:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


CODECS: dict[str, Codec] = {
    "int32": _plain("<i4"),
    "uint8": _plain("<u1"),
    "float32": _plain("<f4"),
    "bf16": _encoded("bf16"),
    "fp16": _encoded("fp16"),
    "fp32": _encoded("fp32"),
    "int8": Codec(_encode_int8, _decode_int8, _size_int8),
    "packed_ids": Codec(
        encode=lambda value, parameters: [pack_ids(value, parameters["bits"])],
        decode=lambda data, shape, parameters: unpack_ids(data, _count(shape), parameters["bits"]).reshape(shape),
        size=lambda shape, parameters: packed_size(_count(shape), parameters["bits"]),
    ),
    "sorted_fp16": Codec(
        encode=lambda value, parameters: [pack_sorted(_checked(value, np.dtype("<f2")))],
        decode=lambda data, shape, parameters: unpack_sorted(data, shape, np.dtype("<f2")),
        size=lambda shape, parameters: _count(shape) * 2,
    ),
    "sorted_fp32": Codec(
        encode=lambda value, parameters: [pack_sorted(_checked(value, np.dtype("<f4")))],
        decode=lambda data, shape, parameters: unpack_sorted(data, shape, np.dtype("<f4")),
        size=lambda shape, parameters: _count(shape) * 4,
    ),
}


def codec_named(name: str, *, where: str) -> Codec:
    """The codec a file names.

    Raises:
        ShardError: If this build does not know it.
    """
    if name not in CODECS:
        raise ShardError(f"{where}: unknown codec {name}, this build knows {', '.join(CODECS)}; update the package")
    return CODECS[name]
