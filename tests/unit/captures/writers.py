"""Captures as the two tools write them, made here bit by bit from what a live model says; no code of the reader's.

DistillKit: log-probabilities of a prompt, k a position, packed as `compression_config.yaml` says. Speculators: a file a
text, hidden states of some layers before the final norm.
"""

from __future__ import annotations

import itertools
import math
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml
from safetensors.torch import save_file
from torch import nn

EXACT = {"d": 97, "k": 5, "exact_k": 5, "exact_dtype": "float32", "polynomial_terms": None, "residual_bins": []}
FITTED = {
    "d": 97,
    "k": 20,
    "exact_k": 6,
    "exact_dtype": "bfloat16",
    "polynomial_terms": [0, 1, 2, "sqrt"],
    "term_dtype": "float32",
    "residual_bins": [
        {"scale_dtype": "float16", "element_bits": 5, "num_elements": 7},
        {"scale_dtype": "float32", "element_bits": 3, "num_elements": 5},
    ],
    "delta_encoding": True,
}
SCHEMA = pa.schema(
    {
        "input_ids": pa.list_(pa.uint64()),
        "compressed_logprobs": pa.list_(pa.list_(pa.uint8())),
        "bytepacked_indices": pa.list_(pa.list_(pa.uint8())),
    }
)


def log_probs_of(model: nn.Module, ids: Sequence[int]) -> np.ndarray:
    """[N - 1, V]: what a server says of a prompt's tokens, the first of which has nothing before it."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([list(ids)])).logits[0, :-1]
    return torch.log_softmax(logits.float(), -1).double().numpy()


def as_bits(number: int, count: int) -> str:
    """The most significant bit first."""
    return "".join("1" if number & (1 << place) else "0" for place in reversed(range(count)))


def as_bytes(bits: str) -> bytes:
    """Eight bits a byte, zeros behind."""
    bits += "0" * (-len(bits) % 8)
    return bytes(int(bits[start : start + 8], 2) for start in range(0, len(bits), 8))


def as_numbers(values: Sequence[float], kind: str) -> bytes:
    """Little endian; bfloat16 is the upper half of a rounded float32."""
    if kind == "bfloat16":
        words = torch.tensor(values, dtype=torch.float32).to(torch.bfloat16).view(torch.int16).tolist()
        return b"".join(struct.pack("<h", word) for word in words)
    return b"".join(struct.pack({"float16": "<e", "float32": "<f", "float64": "<d"}[kind], one) for one in values)


def of_kind(value: float, kind: str) -> float:
    """A number as it is read back."""
    if kind == "bfloat16":
        return float(torch.tensor(value).to(torch.bfloat16))
    return float(np.dtype(kind).type(value))


def packed_position(log_probs: np.ndarray, form: dict[str, Any]) -> tuple[bytes, bytes]:
    """(values, indices) of one position's [V] log-probabilities."""
    order = sorted(range(len(log_probs)), key=lambda one: -log_probs[one])[: form["k"]]
    width = math.ceil(math.log2(form["d"]))
    indices = as_bytes("".join(as_bits(one, width) for one in order))
    values = [float(log_probs[one]) for one in order]
    if form.get("delta_encoding", True):
        values = [values[0]] + [after - before for before, after in itertools.pairwise(values)]
    packed = as_numbers(values[: form["exact_k"]], form["exact_dtype"])
    rest = np.array(values[form["exact_k"] :])
    if form["polynomial_terms"] and len(rest):
        places = np.arange(len(rest), dtype=np.float64)
        if form.get("normalize_t"):
            places = np.linspace(0, 1, len(rest))
        terms = np.stack(
            [getattr(np, one)(places) if isinstance(one, str) else places**one for one in form["polynomial_terms"]], 1
        )
        fitted = np.linalg.lstsq(terms, rest, rcond=None)[0]
        kept = np.array([of_kind(one, form["term_dtype"]) for one in fitted])
        packed += as_numbers(fitted.tolist(), form["term_dtype"])
        rest = rest - terms @ kept
    first = 0
    for bin in form["residual_bins"]:
        bits, count = bin["element_bits"], bin["num_elements"]
        some, first = rest[first : first + count], first + count
        half = 1.0 if bits == 1 else 2.0 ** (bits - 1)
        largest = float(np.abs(some).max())
        scale = of_kind(largest / half if largest else 1.0, bin["scale_dtype"])
        low, high = (0, 1) if bits == 1 else (-half, half - 1)
        steps = np.clip(np.round(some / scale), low, high) - low
        packed += as_numbers([scale], bin["scale_dtype"])
        packed += as_bytes("".join(as_bits(int(one), bits) for one in steps))
    return packed, indices


def distillkit_row(model: nn.Module, ids: Sequence[int], form: dict[str, Any]) -> dict[str, Any]:
    """One row of a capture."""
    packed = [packed_position(one, form) for one in log_probs_of(model, ids)]
    return {
        "input_ids": list(ids),
        "compressed_logprobs": [list(values) for values, _ in packed],
        "bytepacked_indices": [list(indices) for _, indices in packed],
    }


def write_distillkit(
    folder: Path, rows: Sequence[dict[str, Any]], form: dict[str, Any], *, rows_a_file: int = 4
) -> Path:
    """A capture's folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "compression_config.yaml").write_text(yaml.safe_dump(form))
    for number, first in enumerate(range(0, len(rows), rows_a_file)):
        table = pa.Table.from_pylist(list(rows[first : first + rows_a_file]), schema=SCHEMA)
        pq.write_table(table, folder / f"data_{number}.parquet")
    return folder


def states_of(model: Any, ids: Sequence[int], layers: Sequence[int]) -> torch.Tensor:
    """[N, L, D]: what block l gives for each layer l; 0 is what goes into the first."""
    blocks = next(one for one in model.modules() if isinstance(one, nn.ModuleList))
    said: dict[int, torch.Tensor] = {}

    def keep(layer: int) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            said[layer] = output[0] if isinstance(output, tuple) else output

        return hook

    handles = [block.register_forward_hook(keep(number)) for number, block in enumerate(blocks, 1)]
    handles.append(
        blocks[0].register_forward_pre_hook(
            lambda module, inputs, keywords: said.update({0: (*inputs, keywords.get("hidden_states"))[0]}),
            with_kwargs=True,
        )
    )
    with torch.no_grad():
        model(input_ids=torch.tensor([list(ids)]))
    for handle in handles:
        handle.remove()
    return torch.stack([said[layer][0] for layer in layers], dim=1).contiguous()


def write_speculators(
    folder: Path,
    model: Any,
    rows: Sequence[Sequence[int]],
    layers: Sequence[int],
    *,
    dtype: torch.dtype = torch.float32,
) -> Path:
    """A capture's folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, ids in enumerate(rows):
        tensors = {"token_ids": torch.tensor(list(ids)), "hidden_states": states_of(model, ids, layers).to(dtype)}
        save_file(tensors, folder / f"hs_{number}.safetensors")
    return folder
