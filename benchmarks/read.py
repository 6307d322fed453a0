"""How fast a part of the teacher's pages becomes tensors again, and how many bytes it takes.

    python -m benchmarks.read [--positions 32768] [--runs 7] [--checked-runs 61]

Writes one part of synthetic rows (hidden states of width 2,048 in bfloat16, last-query attention, top-64 of a
vocabulary of 151,936 with two log tails, the next token's log-probability; response lengths as of instruction data)
through the real writer, then reads it through the real reader, every checksum on, row group by row group, into torch
tensors. The other side of each ratio is ``readinto`` of the same number of bytes of the file into one warm buffer of
that size. Both read from the page cache. Prints one JSON object:

    read_over_raw       hidden states and attention      time of readinto / time of reading (target: 0.40)
    read_all_over_raw   every column, top-k decoded      time of readinto / time of reading (target: 0.12)
    read_over_small_raw, read_all_over_small_raw
                        the same against ``readinto`` piece by piece into a buffer of one row group, which stays in the
                        processor's cache: a harder measure, without a target
    checked_over_unchecked, checked_all_over_unchecked_all
                        hidden states and attention, or every column, read from opening the folder on, over the same
                        without a single hash computed, seal, footer and values: the median of ratios of neighbouring
                        runs (target: every column, 1.08)
    bytes_per_token     bytes of the part on disk / cached positions (target: 2 x 2,048 + 290)
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from sra_data.shards import durable, known_hashes, part
from sra_data.shards import reader as reader_module
from sra_data.shards.codecs import EncodedTensor, encode_float32, estimate_channel_scales
from sra_data.shards.columns import FolderSchema
from sra_data.shards.kinds import Row
from sra_data.shards.schema import CLOSES, ExampleRow, SideRow, TeacherRow, response_positions
from sra_data.shards.store import (
    FolderReader,
    Unit,
    begin,
    corpus_schema,
    cut_row_groups,
    seal,
    side_schema,
    teacher_schema,
    write_part,
)

WIDTH = 2048
VOCAB_SIZE = 151_936
TOP_K = 64
LAYER = 24
SIDE, TEACHER = "sides/synthetic-00000000", "teachers/synthetic-00000000"
PROMPT_TOKENS = 40
CHECKS = {
    "checked_over_unchecked": ("checked", "unchecked"),
    "checked_all_over_unchecked_all": ("checked_all", "unchecked_all"),
}


def response_lengths(num_positions: int, rng: np.random.Generator) -> list[int]:
    """Lengths of responses until they fill `num_positions`: log-normal, median 64 tokens, mean about 105."""
    lengths: list[int] = []
    while sum(lengths) < num_positions:
        lengths.append(int(np.clip(rng.lognormal(np.log(64), 1.0), 2, 1024)))
    return lengths


def side_rows(lengths: Sequence[int]) -> list[SideRow]:
    """Examples with responses of these lengths; what they say does not matter here."""
    rows = []
    zeros = np.zeros(1, np.int32)
    for number, length in enumerate(lengths):
        tokens = PROMPT_TOKENS + length - 1  # the row before the response is cached too
        ids = np.arange(tokens, dtype=np.int32)
        spans = np.array([[PROMPT_TOKENS, tokens]], np.int32)
        kinds = np.full(tokens, CLOSES, np.uint8)
        rows.append(SideRow(f"{number:08d}", "ok", ids, ids, ids + 1, kinds, spans, zeros, spans, spans))
    return rows


def teacher_rows(side: Sequence[SideRow], hidden_dtype: str, scales: Any) -> Iterator[TeacherRow]:
    """Rows as a teacher of a large vocabulary gives them; ids are uniform, so nothing can be gained by compression."""
    rng = np.random.default_rng(1)
    for row in side:
        positions = response_positions(row.response_spans)
        count = len(positions)
        values = rng.standard_normal((count, WIDTH), dtype=np.float32)
        # The largest of many normal numbers, from the spacings of the largest of many uniform ones.
        spacings = np.cumsum(rng.standard_exponential((count, TOP_K)), axis=1)
        logits = 2.5 * np.sqrt(2 * np.log(VOCAB_SIZE / spacings))
        log_probs = logits - np.log(VOCAB_SIZE) - 2.5**2 / 2
        attention = rng.random(count, dtype=np.float32)
        yield TeacherRow(
            row.id,
            positions,
            {LAYER: encode_float32(values, hidden_dtype, scales)},
            {LAYER: attention / attention.sum()},
            rng.integers(0, VOCAB_SIZE, (count, TOP_K)).astype(np.int32),
            log_probs.astype(np.float16),
            rng.standard_normal((2, count), dtype=np.float32),
            rng.standard_normal(count, dtype=np.float32),
        )


def write_shards(shards: Path, num_positions: int, hidden_dtype: str) -> tuple[int, int]:
    """One sealed part of corpus, side and teacher; returns (bytes of the teacher's part, its positions)."""
    side = side_rows(response_lengths(num_positions, np.random.default_rng(0)))
    counts = [row.num_positions for row in side]
    groups = cut_row_groups(counts)
    unit = Unit(0, 0, len(side))
    scales = estimate_channel_scales(np.random.default_rng(2).standard_normal((256, WIDTH)).astype(np.float32))
    pages = teacher_schema(
        hidden={LAYER: WIDTH},
        hidden_dtype=hidden_dtype,
        channel_scales={LAYER: scales},
        attention=[LAYER],
        top_k=TOP_K,
        vocab_size=VOCAB_SIZE,
        num_temperatures=2,
    )
    corpus = [ExampleRow(row.id, "train", 1, "", "r") for row in side]
    made: dict[str, tuple[FolderSchema, Iterable[Row], str]] = {
        "corpus": (corpus_schema(), corpus, ""),
        SIDE: (side_schema(), side, "corpus"),
        TEACHER: (pages, teacher_rows(side, hidden_dtype, scales), SIDE),
    }
    for section, (schema, rows, base) in made.items():
        begin(shards, section, {"benchmark": "read"}, lambda: [unit], made_from=(base,))
        receipt = write_part(shards / section, schema, unit, rows, groups)
        seal(shards, section)
    return receipt.bytes, sum(counts)


def as_tensors(row: TeacherRow) -> list[torch.Tensor]:
    """The row as the trainer sees it: hidden states without a copy, bit patterns as bfloat16."""
    found = [torch.from_numpy(attention) for attention in row.attention.values()]
    for tensor in row.hidden.values():
        found += encoded_as_tensors(tensor)
    others = (row.top_k_ids, row.top_k_values, row.log_tails, row.next_log_prob)
    return found + [torch.from_numpy(values) for values in others if values is not None]


def encoded_as_tensors(tensor: EncodedTensor) -> list[torch.Tensor]:
    """An encoded tensor's own numbers as torch sees them."""
    if tensor.dtype == "bf16":
        return [torch.from_numpy(tensor.array).view(torch.bfloat16)]
    scales = [] if tensor.vector_scales is None else [tensor.vector_scales]
    return [torch.from_numpy(array) for array in (tensor.array, *scales)]


def read_tensors(reader: FolderReader, columns: list[str] | None) -> Callable[[], None]:
    """Read the whole part, from opening the file, row group by row group."""
    starts = reader.index.group_starts

    def run() -> None:
        reader.close()
        for first, stop in pairwise(starts):
            for row in reader.read(np.arange(first, stop), columns):
                as_tensors(row)

    return run


def open_and_read(shards: Path, columns: list[str] | None) -> Callable[[], None]:
    """Read the whole part, from opening the folder on: its seal, its index, every value."""

    def run() -> None:
        with FolderReader(shards, TEACHER) as reader:
            read_tensors(reader, columns)()

    return run


class _Same:
    """Equal to every hash, of one value or of many rows."""

    def __eq__(self, other: object) -> bool:
        return True

    def __ne__(self, other: object) -> Any:
        return np.zeros(len(other), bool) if isinstance(other, np.ndarray) else False


def unchecked(run: Callable[[], None]) -> Callable[[], None]:
    """The same without a hash computed: values, rows, footer, and the files that a folder is sealed by."""

    same = _Same()

    def skip(*values: object) -> _Same:
        return same

    def patched() -> None:
        with ExitStack() as stack:
            for module, name in ((reader_module, "value_hash"), (known_hashes, "hash_rows"), (part, "footer_hash_of")):
                stack.enter_context(mock.patch.object(module, name, skip))
            stack.enter_context(mock.patch.object(durable, "_is_sealed", skip))  # an object is true
            run()

    return patched


def read_raw(path: Path, num_bytes: int, num_reads: int) -> Callable[[], None]:
    """``readinto`` of the file's first `num_bytes` into one warm buffer, in `num_reads` pieces."""
    buffer = bytearray(-(-num_bytes // num_reads))

    def run() -> None:
        left = num_bytes
        with path.open("rb", buffering=0) as file:
            while left > 0:
                left -= file.readinto(memoryview(buffer)[:left])

    return run


def seconds_of(sides: dict[str, Callable[[], None]], runs: int) -> dict[str, list[float]]:
    """Seconds of each, run in turn after one warm-up; every second time in the other order."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(runs + 1):
        for name, side in list(sides.items())[:: -1 if number % 2 else 1]:  # what ran before leaves its traces
            start = time.perf_counter()
            side()
            if number:
                times[name].append(time.perf_counter() - start)
    return times


def measure(shards: Path, num_positions: int, runs: int, checked_runs: int, hidden_dtype: str) -> dict[str, Any]:
    """All ratios with their two sides, in seconds and bytes."""
    part_bytes, positions = write_shards(shards, num_positions, hidden_dtype)
    path = shards / TEACHER / "part-00000.parquet"
    width_bytes = {"bf16": 2 * WIDTH, "fp16": 2 * WIDTH, "fp32": 4 * WIDTH, "int8": WIDTH + WIDTH // 32}[hidden_dtype]
    read_bytes = positions * (width_bytes + 4)
    states = [f"hidden.{LAYER}", f"attention.{LAYER}"]
    with FolderReader(shards, TEACHER) as reader:
        num_groups = len(reader.index.group_starts) - 1
        measured = seconds_of(
            {
                "raw": read_raw(path, read_bytes, 1),
                "small_raw": read_raw(path, read_bytes, num_groups),
                "read": read_tensors(reader, states),
                "raw_all": read_raw(path, part_bytes, 1),
                "small_raw_all": read_raw(path, part_bytes, num_groups),
                "read_all": read_tensors(reader, None),
            },
            runs,
        )
    for names, columns in ((("checked", "unchecked"), states), (("checked_all", "unchecked_all"), None)):
        run = open_and_read(shards, columns)
        measured |= seconds_of(dict(zip(names, (run, unchecked(run)), strict=True)), checked_runs)
    times = {name: statistics.median(seconds) for name, seconds in measured.items()}
    pairs = {
        "read_over_raw": (times["raw"], times["read"]),
        "read_all_over_raw": (times["raw_all"], times["read_all"]),
        "read_over_small_raw": (times["small_raw"], times["read"]),
        "read_all_over_small_raw": (times["small_raw_all"], times["read_all"]),
        **{name: (times[one], times[other]) for name, (one, other) in CHECKS.items()},
        "bytes_per_token": (part_bytes, positions),
    }
    result: dict[str, Any] = {"num_row_groups": num_groups}
    for name, (numerator, denominator) in pairs.items():
        result[name] = numerator / denominator
        result[f"{name}_numerator"], result[f"{name}_denominator"] = numerator, denominator
    for name, (one, other) in CHECKS.items():  # a few percent: pair by pair, because the machine's speed drifts
        result[name] = statistics.median(a / b for a, b in zip(measured[one], measured[other], strict=True))
    return result


def main() -> None:
    """Run the benchmark and print its one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--positions", type=int, default=32_768)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--checked-runs", type=int, default=61, help="of the two checked_... and their other sides")
    parser.add_argument("--hidden-dtype", choices=["bf16", "fp16", "fp32", "int8"], default="bf16")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        result = measure(Path(folder), chosen.positions, chosen.runs, chosen.checked_runs, chosen.hidden_dtype)
    configuration = vars(chosen) | {"width": WIDTH, "vocab_size": VOCAB_SIZE, "top_k": TOP_K, "temperatures": 2}
    versions = {name: version(name) for name in ("numpy", "pyarrow", "torch", "xxhash")}
    machine = {"machine": platform.machine(), "python": platform.python_version(), **versions}
    print(json.dumps(result | {"configuration": configuration | machine}))


if __name__ == "__main__":
    main()
