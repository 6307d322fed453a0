"""Where rows come from: files, folders, globs, Hub data sets, the built-in corpus.

Everything streams: a row is read, handed on and forgotten, so memory does not grow with the corpus. Every row knows its
`Position`, and a `SourceRange` (a position and a stop) is enough to read the same rows again later, in another process,
without reading what stands before them (text formats seek by byte; columnar formats by row).

What this module refuses: a path with no readable file, a file without rows, a Hub data set that cannot be reached, and
slices of one. How one file is read stands in `readers.py`, what makes a row valid in `examples.py`.
"""

from __future__ import annotations

import glob
import re
from collections import Counter
from collections.abc import Generator, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sra_data.corpus.builtin import BUILTIN_SPLITS, builtin_records
from sra_data.corpus.compressed import CODECS, data_suffix
from sra_data.corpus.examples import Row, RowReader, parse_columns
from sra_data.corpus.readers import COLUMNAR_SUFFIXES, RECORD_READERS, count_arrow_rows
from sra_data.errors import SourceError, one_line

# Written beside the data by `Dataset.save_to_disk`; they end in .json and are no data.
NOT_DATA = frozenset({"dataset_info.json", "state.json", "dataset_dict.json", "dataset_infos.json"})
SPLIT_OF_FILE_NAME = re.compile(r"^(train|dev|valid|validation|val|test)(?:[-_.]|$)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Position:
    """Where a row starts.

    Attributes:
        file: Index into `Source.files`.
        offset: Bytes from the start of a text file; rows from the start of a columnar one.
        line: 1-based line (text) or row (columnar) inside the file, for messages.
        number: 0-based row number in the whole source; rows that are left out count too.
    """

    file: int
    offset: int
    line: int
    number: int


@dataclass(frozen=True, slots=True)
class SourceRange:
    """Consecutive rows of one source: from `start` up to, not including, row number `stop`."""

    start: Position
    stop: int

    def to_json(self) -> dict[str, Any]:
        """Plain numbers, for a plan on disk."""
        return {**asdict(self.start), "stop": self.stop}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> SourceRange:
        """The inverse of `to_json`."""
        fields = dict(value)
        stop = int(fields.pop("stop"))
        return cls(Position(**{name: int(number) for name, number in fields.items()}), stop)


@dataclass(frozen=True, slots=True)
class Located:
    """A valid row and where it starts."""

    position: Position
    row: Row


class Source:
    """Rows of one `--data` argument.

    Args:
        spec: What the user wrote, for messages.
        files: The files to read, in order; empty for the built-in corpus.
        columns: Columns named by the user.
        file_splits: Split of all rows of a file (from the names in a folder), or None.
        builtin_split: The built-in corpus: ``""`` for all of it, or one split's name; None for files.
        first_number: Number of the first row (rows of `--dev-data` are numbered on from those of `--data`).
        split: Split given to every row, over whatever the row says.
    """

    def __init__(
        self,
        spec: str,
        *,
        files: list[Path],
        columns: dict[str, str] | None = None,
        file_splits: list[str | None] | None = None,
        builtin_split: str | None = None,
        first_number: int = 0,
        split: str | None = None,
    ) -> None:
        self.spec = spec
        self.files = files
        self.columns = columns or {}
        self.file_splits = file_splits or [None] * len(files)
        self.builtin_split = builtin_split
        self.first_number = first_number
        self.split = split
        self.columns_read: dict[str, str] = {}  # which columns play which roles -> the first file in which they do

    def describe(self) -> str:
        """The source in a few words, for logs and manifests."""
        if self.builtin_split is not None:
            return f"built-in corpus ({self.builtin_split or 'all splits'})"
        return f"{self.spec} ({len(self.files)} file{'s' if len(self.files) != 1 else ''})"

    def scan(self, *, on_invalid: str = "fail", counts: Counter[str] | None = None) -> Iterator[Located]:
        """Every valid row, in order.

        Args:
            on_invalid: ``fail`` raises at the first invalid row; ``skip`` counts it under its reason and goes on.
            counts: Receives, by reason, the rows skipped and the lone surrogates replaced.

        Raises:
            SourceError: An invalid row (with ``fail``), an empty file, or a file that cannot be parsed at all.
        """
        if self.builtin_split is not None:
            yield from self._read_builtin(None, on_invalid, counts)
            return
        number = self.first_number
        for file in range(len(self.files)):
            start = Position(file, 0, 1, number)
            number = yield from self._read_file(start, None, on_invalid, counts)
            if number == start.number:
                raise SourceError(f"{self.files[file]}: no rows in this file (it is empty); give a file with examples")

    def read(
        self, unit: SourceRange, *, on_invalid: str = "fail", counts: Counter[str] | None = None
    ) -> Iterator[Located]:
        """The valid rows of one range, exactly as `scan` gave them."""
        if self.builtin_split is not None:
            yield from self._read_builtin(unit, on_invalid, counts)
            return
        start = unit.start
        while start.number < unit.stop and start.file < len(self.files):
            number = yield from self._read_file(start, unit.stop, on_invalid, counts)
            start = Position(start.file + 1, 0, 1, number)

    def _read_file(
        self, start: Position, stop: int | None, on_invalid: str, counts: Counter[str] | None
    ) -> Generator[Located, None, int]:
        """Yield the valid rows of one file from `start` on; return the number of the row after the last one read."""
        path = self.files[start.file]
        name = str(path)
        suffix = data_suffix(path)
        columnar = suffix in COLUMNAR_SUFFIXES
        reader = RowReader(
            columns=self.columns, split=self.split, file_split=self.file_splits[start.file], counts=counts
        )
        number = start.number
        for record in RECORD_READERS[suffix](path, start.offset, start.line):
            where = f"{name}: row {record.line}" if columnar else f"{name}:{record.line}"
            row = reader.row(record.values, record.problem, where=where, number=number, on_invalid=on_invalid)
            if row is not None:
                yield Located(Position(start.file, record.offset, record.line, number), row)
            number += 1
            if number == stop:  # asked before the next row is read, which is another unit's
                break
        for layout in reader.layouts.values():
            self.columns_read.setdefault(layout.words, name)
        return number

    def _read_builtin(
        self, unit: SourceRange | None, on_invalid: str, counts: Counter[str] | None
    ) -> Iterator[Located]:
        reader = RowReader(columns={}, split=self.split, file_split=None, counts=counts)  # its columns are its own
        records = builtin_records(self.builtin_split or None)
        first = 0 if unit is None else unit.start.offset
        stop = len(records) if unit is None else unit.stop - self.first_number
        for index in range(first, stop):
            where = f"built-in corpus: {records[index]['id']}"
            number = self.first_number + index
            row = reader.row(records[index], None, where=where, number=number, on_invalid=on_invalid)
            if row is not None:
                yield Located(Position(0, index, index + 1, number), row)


def open_source(
    spec: str,
    columns: str | dict[str, str] | None = None,
    *,
    split: str | None = None,
    first_number: int = 0,
) -> Source:
    """Find out what `spec` is and make it readable.

    Args:
        spec: ``builtin``, ``builtin:dev``, a file, a folder, a glob, or a Hub data set ``name:split`` (with
            ``name:configuration:split`` where the data set has configurations).
        columns: ``prompt=question,response=answer,id=uid`` or the same as a mapping.
        split: Split given to every row (used for `--dev-data`).
        first_number: Number of the first row.

    Raises:
        SourceError: Nothing readable there.
        ConfigError: `columns` cannot be understood.
    """
    named = parse_columns(columns)
    if spec == "builtin" or spec.startswith("builtin:"):
        builtin_split = spec.partition(":")[2]
        if builtin_split and builtin_split not in BUILTIN_SPLITS:
            raise SourceError(
                f"--data {spec}: the built-in corpus has no split {builtin_split!r}; use builtin or builtin:train, "
                "builtin:dev, builtin:test"
            )
        return Source(
            spec, files=[], columns=named, builtin_split=builtin_split, split=split, first_number=first_number
        )
    files, splits = find_files(spec)
    return Source(spec, files=files, columns=named, file_splits=splits, split=split, first_number=first_number)


def find_files(spec: str) -> tuple[list[Path], list[str | None]]:
    """The data files `spec` stands for, and the split each file's name gives (only inside a folder)."""
    if not spec.strip():
        raise SourceError("--data: a name without a letter; give a file, a folder, a glob, a Hub data set or builtin")
    try:
        return _find_files(spec, Path(spec).expanduser())
    except OSError as error:  # a name too long, a folder that may not be looked into
        raise SourceError(f"--data {spec}: {error.strerror or error}; give another file or folder") from error


def _find_files(spec: str, path: Path) -> tuple[list[Path], list[str | None]]:
    if path.is_dir():
        files = [file for file in sorted(path.rglob("*")) if _is_data(file, below=path)]
        if not files:
            raise SourceError(f"--data {spec}: this folder has no {_suffixes()} file; name another folder or a file")
        return files, [_split_of(file) if len(files) > 1 else None for file in files]
    if path.is_file():
        return [_readable(path)], [None]
    if glob.has_magic(spec):
        files = [_readable(Path(name)) for name in sorted(glob.glob(spec, recursive=True)) if Path(name).is_file()]
        if not files:
            raise SourceError(f"--data {spec}: no file matches this pattern; check it, and quote it for the shell")
        return files, [None] * len(files)
    if can_be_read(path) or spec.startswith((".", "/", "~")):
        raise SourceError(f"--data {spec}: no such file; give a file, a folder, a glob, a Hub data set or builtin")
    files = find_hub_files(spec)
    return files, [None] * len(files)


def find_hub_files(spec: str) -> list[Path]:
    """Download (or find in the cache) a Hub data set; its Arrow files are read like any others."""
    import datasets

    name, *rest = spec.split(":")
    if len(rest) > 2 or not name:
        raise SourceError(f"--data {spec}: cannot be read as name:split; write, say, someone/dataset:train")
    split = rest[-1] if rest else "train"
    configuration = rest[0] if len(rest) == 2 else None
    try:
        dataset = datasets.load_dataset(name, configuration, split=split)
    except (OSError, ValueError, RuntimeError) as error:
        reason = one_line(error, 200)
        raise SourceError(
            f"--data {spec}: neither a file or folder here nor a Hub data set that can be reached ({reason}); check "
            "the name and the split, or download it and give its folder"
        ) from error
    files = [Path(entry["filename"]) for entry in dataset.cache_files]
    if not files or sum(count_arrow_rows(file) for file in files) != len(dataset):
        raise SourceError(f"--data {spec}: a slice of a Hub data set cannot be read; save it with to_json and name it")
    return files


def _is_data(file: Path, *, below: Path) -> bool:
    hidden = any(part.startswith(".") for part in file.relative_to(below).parts)
    return file.is_file() and not hidden and can_be_read(file) and file.name not in NOT_DATA


def _readable(path: Path) -> Path:
    if not can_be_read(path):
        raise SourceError(f"--data {path}: the suffix {path.suffix!r} is not known; convert it to one of {_suffixes()}")
    return path


def can_be_read(path: Path) -> bool:
    """Whether the suffix is known; text may be compressed, tables are by themselves."""
    suffix = data_suffix(path)
    return suffix in RECORD_READERS and (path.suffix not in CODECS or suffix not in COLUMNAR_SUFFIXES)


def _split_of(file: Path) -> str | None:
    found = SPLIT_OF_FILE_NAME.match(file.name)
    return found.group(1).lower() if found else None


def _suffixes() -> str:
    return f"{', '.join(RECORD_READERS)} (text also with {' or '.join(CODECS)} behind)"
