"""The files of a capture: which there are, and one digest of all they hold.

A capture is a folder of a stranger's: files are found in it by their names alone, nothing in a file leads to another,
and nothing of them is run. What is wrong is one line: the file, the row, what it holds, what to do.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import xxhash
from numpy.typing import NDArray

from sra_data.errors import CaptureError, one_line

Format = Literal["distillkit", "speculators"]
READ_BYTES = 1 << 24
LARGEST_ID = 1 << 31


@dataclass(frozen=True)
class CapturedRow:
    """One captured text: its ids, and at how many positions from the first on something is said.

    Attributes:
        number: of the row, in the order of the capture.
        where: file and row, for messages.
        ids: int64 [N].
        num_values: what is said stands at positions 0 .. num_values - 1.
    """

    number: int
    where: str
    ids: NDArray[np.int64]
    num_values: int


def files_in(folder: Path, suffix: str) -> list[Path]:
    """The plain files of a folder with a suffix, those with numbers in their names in the numbers' order."""
    found = [path for path in folder.iterdir() if path.suffix == suffix and path.is_file()]
    return sorted(found, key=_by_numbers)


def _by_numbers(path: Path) -> list[tuple[int, str]]:
    """data_10 behind data_9: words by letters, numbers by their size."""
    words = re.split(r"([0-9]+)", path.name)
    return [(int(word), "") if index % 2 else (-1, word) for index, word in enumerate(words)]


def folder_named(name: str) -> Path:
    """The folder a capture lies in.

    Raises:
        CaptureError: If there is none.
    """
    folder = Path(name)
    try:
        is_there = name != "" and folder.is_dir()
    except OSError:
        is_there = False
    if not is_there:
        raise CaptureError(f"{name or 'a capture without a name'}: no such folder; give the folder of the capture")
    return folder


def digest_of(files: Sequence[Path]) -> str:
    """sha256 hex over names, sizes and contents: the same capture, wherever it lies."""
    return hashlib.sha256(
        json.dumps([[path.name, path.stat().st_size, _content(path)] for path in files]).encode()
    ).hexdigest()


def _content(path: Path) -> str:
    """xxh3_128 of a file, read a block at a time."""
    hasher = xxhash.xxh3_128()
    try:
        with path.open("rb") as file:
            while block := file.read(READ_BYTES):
                hasher.update(block)
    except OSError as error:
        raise CaptureError(f"{path}: cannot be read ({one_line(error, 120)}); copy the capture again") from error
    return hasher.hexdigest()


def checked_ids(ids: NDArray[np.generic], where: str) -> NDArray[np.int64]:
    """Token ids as numbers that fit.

    Raises:
        CaptureError: If one is below 0 or above what any vocabulary has.
    """
    if len(ids) and (int(ids.min()) < 0 or int(ids.max()) >= LARGEST_ID):
        wrong = int(ids.min()) if int(ids.min()) < 0 else int(ids.max())
        raise CaptureError(f"{where}: token id {wrong} is none of any vocabulary; capture it again")
    return ids.astype(np.int64)
