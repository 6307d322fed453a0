"""A capture of DistillKit (`distillkit.sample_logits_vllm`): parquet files with compressed top-k log-probabilities.

A row is a text's `input_ids` and, for each position p but the last, what the teacher said of the token behind it: the
server's log-probabilities of a prompt, whose first token has none. So value p stands at position p, and a row of N ids
has N - 1. Hidden states, attention and an output head are not in it.

Rows are read in the order of the files, a few at a time. Those that are asked for are set down in a file of their own
(`Kept`), because a shuffled capture would otherwise be read once for every unit of the shards.
"""

from __future__ import annotations

import tempfile
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from sra_data.captures.compressed import CONFIG, Compression, read_compression, unpack_ids, unpack_values
from sra_data.captures.distributions import Distributions, distributions
from sra_data.captures.files import CapturedRow, checked_ids, files_in, folder_named
from sra_data.errors import CaptureError, one_line

IDS, VALUES, INDICES = "input_ids", "compressed_logprobs", "bytepacked_indices"
LEGACY = ("packed_indices", "exact_values", "coeffs")
ROWS_AT_ONCE = 32


class DistillkitCapture:
    """A folder of such files.

    Attributes:
        files: parquet, in order, and the configuration.
        form: how positions are compressed.
    """

    format = "distillkit"

    def __init__(self, folder: str) -> None:
        """Find the files and read the configuration; raises CaptureError for what is no such capture."""
        self.folder = folder_named(folder)
        self.parquet = files_in(self.folder, ".parquet")
        if not self.parquet:
            raise CaptureError(
                f"{self.folder}: no .parquet file in it; give the folder that distillkit.sample_logits_vllm wrote"
            )
        self.form = read_compression(self.folder)
        self.files = [*self.parquet, self.folder / CONFIG]
        self._firsts: list[int] = []  # of each file, its first row's number

    def rows(self) -> Iterator[CapturedRow]:
        """All rows, ids alone."""
        for number, where, row in self._read([IDS]):
            ids = _ids_of(row, where)
            yield CapturedRow(number, where, ids, len(ids) - 1)

    def keep(self, numbers: NDArray[np.int64], scratch: Path | None) -> Kept:
        """The rows of these numbers, ascending, set down in a file without a name under `scratch`."""
        kept = Kept(self.form, numbers, scratch)
        try:
            for number, where, row in self._read([IDS, VALUES, INDICES]):
                if number in kept:
                    kept.put(number, *self._checked(row, where))
        except BaseException:
            kept.close()
            raise
        return kept

    def where(self, number: int) -> str:
        """File and row of a row that was read, for messages."""
        file = bisect_right(self._firsts, number) - 1
        return f"{self.parquet[file]}, row {number - self._firsts[file]}"

    def _checked(
        self, row: dict[str, Any], where: str
    ) -> tuple[NDArray[np.int64], NDArray[np.uint8], NDArray[np.uint8]]:
        """Ids, values and indices of a row.

        Raises:
            CaptureError: If there are not as many bytes as the ids and the configuration make.
        """
        ids = _ids_of(row, where)
        values, indices = _bytes_of(row[VALUES], VALUES, where), _bytes_of(row[INDICES], INDICES, where)
        widths = (VALUES, values, self.form.value_bytes), (INDICES, indices, self.form.index_bytes)
        for name, found, width in widths:
            if found.shape != (len(ids) - 1, width):
                raise CaptureError(
                    f"{where}: {name} of {found.shape[0]} positions with {found.shape[1]} bytes, {len(ids)} ids"
                    f" and k={self.form.k} make {len(ids) - 1} with {width}; is {CONFIG} that of this capture?"
                )
        return ids, values, indices

    def _read(self, columns: list[str]) -> Iterator[tuple[int, str, dict[str, Any]]]:
        """(number, file and row, columns) of every row."""
        number, self._firsts = 0, []
        for path in self.parquet:
            with _naming(path), pq.ParquetFile(path) as file:
                _refuse_other_columns(file.schema_arrow, path)
                self._firsts.append(number)
                for batch in file.iter_batches(batch_size=ROWS_AT_ONCE, columns=columns, use_threads=False):
                    for index in range(batch.num_rows):
                        row = {name: batch.column(name)[index] for name in columns}
                        yield number, self.where(number), row
                        number += 1


class Kept:
    """Rows of a capture that are at hand in any order; the file is gone with the process."""

    def __init__(self, form: Compression, numbers: NDArray[np.int64], scratch: Path | None) -> None:
        self.form = form
        self._numbers = numbers
        self._starts = np.zeros(len(numbers), np.int64)
        self._num_ids = np.zeros(len(numbers), np.int64)
        self._file = tempfile.TemporaryFile(dir=scratch)  # noqa: SIM115 - closed by `close`
        self._end = 0

    def __contains__(self, number: int) -> bool:
        place = int(np.searchsorted(self._numbers, number))
        return place < len(self._numbers) and int(self._numbers[place]) == number

    def put(self, number: int, ids: NDArray[np.int64], values: NDArray[np.uint8], indices: NDArray[np.uint8]) -> None:
        """Set a row down.

        Raises:
            CaptureError: If the disk is full.
        """
        place = np.searchsorted(self._numbers, number)
        self._starts[place], self._num_ids[place] = self._end, len(ids)
        try:
            for part in (ids, values, indices):
                self._file.write(np.ascontiguousarray(part).data)
                self._end += part.nbytes
        except OSError as error:
            raise CaptureError(
                f"after {self._end:,} bytes nothing more of the capture can be set down ({one_line(error, 80)}); free "
                "space beside the shards, or import fewer units at a time with --units"
            ) from error

    def close(self) -> None:
        """Give the file back."""
        self._file.close()

    def ids_of(self, number: int) -> NDArray[np.int64]:
        """Of a row."""
        start, count = self._place_of(number)
        return np.frombuffer(self._bytes(start, 8 * count), np.int64)

    def distributions_of(
        self, number: int, positions: NDArray[Any], *, vocabulary_size: int, where: str
    ) -> Distributions:
        """What a row says at some positions.

        Raises:
            CaptureError: See `distributions`, in which `where` is the row.
        """
        start, num_ids = self._place_of(number)
        form, count, start = self.form, num_ids - 1, start + 8 * num_ids
        values = np.frombuffer(self._bytes(start, count * form.value_bytes), np.uint8).reshape(count, -1)
        start += count * form.value_bytes
        indices = np.frombuffer(self._bytes(start, count * form.index_bytes), np.uint8).reshape(count, -1)
        return distributions(
            unpack_ids(indices[positions], form),
            unpack_values(values[positions], form),
            vocabulary_size=vocabulary_size,
            where=where,
        )

    def _place_of(self, number: int) -> tuple[int, int]:
        """Where a row begins, and its ids."""
        place = np.searchsorted(self._numbers, number)
        return int(self._starts[place]), int(self._num_ids[place])

    def _bytes(self, start: int, count: int) -> bytes:
        self._file.seek(start)
        return self._file.read(count)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Whatever the Parquet reader says about a file as one line."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise CaptureError(
            f"{path}: cannot be read as Parquet ({one_line(error, 120)}); copy or capture it again"
        ) from error


def _refuse_other_columns(schema: Any, path: Path) -> None:
    """Refuse a file that is none of this format.

    Raises:
        CaptureError: Naming the column.
    """
    if all(name in schema.names for name in LEGACY):
        raise CaptureError(f"{path}: of the format before {VALUES}, which is not read here; capture it again")
    for name, is_nested in ((IDS, False), (VALUES, True), (INDICES, True)):
        if name not in schema.names:
            raise CaptureError(
                f"{path}: no column {name} (it has {', '.join(schema.names[:8])}); give a capture of "
                "distillkit.sample_logits_vllm"
            )
        kind = schema.field(name).type
        inner = kind.value_type if _is_list(kind) else None
        if is_nested:
            fits = inner is not None and _is_list(inner) and inner.value_type == pa.uint8()
        else:
            fits = inner is not None and pa.types.is_integer(inner)
        if not fits:
            wanted = "lists of lists of uint8" if is_nested else "lists of whole numbers"
            raise CaptureError(f"{path}: column {name} holds {kind}, {wanted} are wanted; capture it again")


def _is_list(kind: Any) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind))


def _ids_of(row: dict[str, Any], where: str) -> NDArray[np.int64]:
    """The ids of a row.

    Raises:
        CaptureError: If there are none, or one is no id.
    """
    values = row[IDS].values
    if values is None or values.null_count or not len(values):
        raise CaptureError(f"{where}: {IDS} without ids, or with an empty place; capture it again")
    return checked_ids(values.to_numpy(zero_copy_only=False), where)


def _bytes_of(scalar: Any, name: str, where: str) -> NDArray[np.uint8]:
    """[P, n] bytes of a row's positions.

    Raises:
        CaptureError: If positions are missing or not all of one size.
    """
    positions = scalar.values
    if positions is None or positions.null_count:
        raise CaptureError(f"{where}: {name} with an empty place; capture it again")
    widths = positions.value_lengths().to_numpy(zero_copy_only=False)
    flat = positions.flatten()
    if flat.null_count or (len(widths) and (widths != widths[0]).any()):
        raise CaptureError(f"{where}: {name} of positions that are not all of one size; capture it again")
    width = int(widths[0]) if len(widths) else 0
    found: NDArray[np.uint8] = flat.to_numpy(zero_copy_only=False).reshape(len(widths), width)
    return found
