"""DistillKit's compressed log-probabilities: what its configuration says, and a position's bytes as numbers again.

A position holds its k most probable ids and their log-probabilities at temperature 1, most probable first:

    indices    k numbers of ceil(log2 d) bits, the most significant bit first, behind one another
    values     the first `exact_k` as they are, in `exact_dtype`
               the coefficients of a curve through the other k - exact_k, one for each of `polynomial_terms`, in
               `term_dtype`: t ** n for a number n, sqrt(t), exp(t), with t = 0, 1, 2, ... (0 .. 1 with `normalize_t`)
               for each of `residual_bins`: a scale, then numbers of `element_bits` bits, what the next values lie
               beside the curve; every bin fills up its last byte
    and with `delta_encoding` each value but the first is its difference from the one before

Numbers are little endian. The curve is computed as it was where the residuals were taken: its terms in float32, rounded
to `term_dtype`. Nothing here changes a value; what is made of them is the matter of `distributions.py`.

Legend: P positions, k ids, n bytes of a position.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import Tensor

from sra_data.errors import CaptureError, one_line

CONFIG = "compression_config.yaml"
LARGEST_CONFIG = 1 << 20
MOST = 1 << 20  # of ids of a position; d is bounded by LARGEST_NUMBER
LARGEST_NUMBER = 1 << 31
MOST_BITS = 32  # of a residual

NumberType = Literal["float16", "bfloat16", "float32", "float64"]
Terms = list[Literal["sqrt", "exp"] | Annotated[int, Field(ge=0, le=64)]]
TYPES: dict[NumberType, tuple[torch.dtype, int]] = {
    "float16": (torch.float16, 2),
    "bfloat16": (torch.bfloat16, 2),
    "float32": (torch.float32, 4),
    "float64": (torch.float64, 8),
}


class ResidualBin(BaseModel):
    """So many residuals of so many bits, with one scale."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    scale_dtype: NumberType
    element_bits: int = Field(ge=1, le=MOST_BITS)
    num_elements: int = Field(ge=1, le=MOST)

    @property
    def packed_bytes(self) -> int:
        """Of its numbers, without the scale."""
        return -(-self.element_bits * self.num_elements // 8)


class Compression(BaseModel):
    """compression_config.yaml; a setting that is not known here could mean anything, so it is refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    d: int = Field(ge=2, lt=LARGEST_NUMBER)
    k: int = Field(ge=1, le=MOST)
    exact_k: int = Field(ge=0, le=MOST)
    exact_dtype: NumberType = "float32"
    polynomial_terms: Terms | None = None
    term_dtype: NumberType = "float32"
    residual_bins: list[ResidualBin]
    delta_encoding: bool = True
    error_diffusion: bool = False
    normalize_t: bool = False

    @model_validator(mode="after")
    def _fits(self) -> Compression:
        rest = self.k - self.exact_k
        if rest < 0 or self.k > self.d:
            raise ValueError(f"k={self.k} with exact_k={self.exact_k} and d={self.d}")
        if rest and not self.polynomial_terms and not self.residual_bins:
            raise ValueError(f"nothing says the {rest} values behind exact_k={self.exact_k}")
        if sum(one.num_elements for one in self.residual_bins) > rest:
            raise ValueError(f"residuals of more than the {rest} values behind exact_k={self.exact_k}")
        return self

    @property
    def index_bits(self) -> int:
        """Bits of an id, by the float32 logarithm that wrote them."""
        return int(torch.log2(torch.tensor(self.d, dtype=torch.float32)).ceil().item())

    @property
    def index_bytes(self) -> int:
        """Bytes of a position's ids."""
        return -(-self.k * self.index_bits // 8)

    @property
    def value_bytes(self) -> int:
        """Bytes of a position's log-probabilities."""
        exact = self.exact_k * TYPES[self.exact_dtype][1]
        curve = len(self.polynomial_terms or ()) * TYPES[self.term_dtype][1]
        return exact + curve + sum(TYPES[one.scale_dtype][1] + one.packed_bytes for one in self.residual_bins)

    @property
    def is_exact(self) -> bool:
        """Whether every value was stored as it was, up to its number type."""
        return self.exact_k == self.k


def read_compression(folder: Path) -> Compression:
    """The configuration beside a capture's files.

    Raises:
        CaptureError: If it is missing, no YAML, or says what is not known here.
    """
    path = folder / CONFIG
    remedy = "give the folder that distillkit.sample_logits_vllm wrote"
    if not path.is_file():
        raise CaptureError(f"{folder}: no {CONFIG}, which says how its log-probabilities are compressed; {remedy}")
    try:
        if path.stat().st_size > LARGEST_CONFIG:
            raise ValueError(f"{path.stat().st_size} bytes")
        found: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        raise CaptureError(f"{path}: cannot be read as YAML ({one_line(error, 120)}); {remedy}") from None
    if isinstance(found, dict) and "polynomial_degree" in found:
        raise CaptureError(f"{path}: of the format before `residual_bins`, which is not read here; capture it again")
    try:
        return Compression.model_validate(found)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = ".".join(map(str, first["loc"])) or "content"
        message = first["msg"].removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            message = "a setting that is not known here and may change what the bytes mean"
        raise CaptureError(f"{path}: {name}: {message}; {remedy}") from None


def unpack_ids(packed: NDArray[np.uint8], form: Compression) -> NDArray[np.int64]:
    """[P, n] bytes -> [P, k] ids."""
    return _unpacked(packed, bits=form.index_bits, count=form.k)


def unpack_values(packed: NDArray[np.uint8], form: Compression) -> NDArray[np.float64]:
    """[P, n] bytes -> [P, k] log-probabilities at temperature 1, as they were stored."""
    at = form.exact_k * TYPES[form.exact_dtype][1]
    values = [_numbers(packed[:, :at], form.exact_dtype).double()]
    rest = form.k - form.exact_k
    beside = torch.zeros(len(packed), rest, dtype=torch.float64)
    if form.polynomial_terms:
        stop = at + len(form.polynomial_terms) * TYPES[form.term_dtype][1]
        beside += _curve(_numbers(packed[:, at:stop], form.term_dtype), form)
        at = stop
    first = 0
    for one in form.residual_bins:
        scale = _numbers(packed[:, at : at + TYPES[one.scale_dtype][1]], one.scale_dtype)  # [P, 1]
        at += TYPES[one.scale_dtype][1]
        steps = _unpacked(packed[:, at : at + one.packed_bytes], bits=one.element_bits, count=one.num_elements)
        at += one.packed_bytes
        beside[:, first : first + one.num_elements] += _residuals(steps, scale, one.element_bits)
        first += one.num_elements
    found = torch.cat([*values, beside], dim=1)
    return (found.cumsum(dim=1) if form.delta_encoding else found).numpy()


def _unpacked(packed: NDArray[np.uint8], *, bits: int, count: int) -> NDArray[np.int64]:
    """[P, n] bytes -> [P, count] numbers of so many bits, the most significant first."""
    stream = np.unpackbits(np.ascontiguousarray(packed), axis=1)[:, : bits * count].reshape(len(packed), count, bits)
    weights = np.int64(1) << np.arange(bits - 1, -1, -1, dtype=np.int64)
    found: NDArray[np.int64] = stream.astype(np.int64) @ weights
    return found


def _numbers(packed: NDArray[np.uint8], kind: NumberType) -> Tensor:
    """[P, n] bytes -> [P, n / size] numbers."""
    dtype, size = TYPES[kind]
    count = packed.shape[1] // size
    if not count or not len(packed):
        return torch.zeros(len(packed), count, dtype=dtype)
    return torch.from_numpy(np.ascontiguousarray(packed).copy()).view(dtype)


def _curve(coefficients: Tensor, form: Compression) -> Tensor:
    """[P, terms] -> [P, k - exact_k], the values that the curve has."""
    count = form.k - form.exact_k
    places = torch.linspace(0, 1, count) if form.normalize_t else torch.arange(count, dtype=torch.float32)
    columns = [
        getattr(torch, term)(places) if isinstance(term, str) else places**term for term in form.polynomial_terms or ()
    ]
    terms = torch.stack(columns, dim=-1).to(coefficients.dtype)  # [k - exact_k, terms]
    return (terms * coefficients[:, None]).sum(dim=-1).double()


def _residuals(steps: NDArray[np.int64], scale: Tensor, bits: int) -> Tensor:
    """[P, m] stored numbers and [P, 1] scales -> what the values lie beside the curve."""
    numbers = torch.from_numpy(steps).float()
    signed = numbers * 2 - 1 if bits == 1 else numbers - 2.0 ** (bits - 1)
    return (signed * scale).double()
