"""Edit distances of an alignment's two tokenizers, beside its parts, as safetensors; only where it was asked for.

For `method=mined`, which compares pieces: where every id of either side goes among the other's, and what every id
stands for, so that training can line up two sequences without a tokenizer of the teacher's. `sra-data align
--edit-distance` writes it, also into a folder that is there already; no root depends on it.

Bytes are stored as the int32 numbers of their fours, for the file holds numbers of 16 bits and more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sra_data.errors import ShardError
from sra_data.shards.manifest import repair_for
from sra_data.shards.receipts import has_file
from sra_data.shards.tensor_file import int32_of, load_tensors, save_tensors

NEAREST = "nearest.safetensors"
COMMAND = "align --edit-distance"


@dataclass(frozen=True, eq=False)
class SideNearest:
    """Of one side's ids.

    Attributes:
        ids: [ids] int32, the other side's id of the smallest edit distance; -1 for ids that stand for no bytes.
        pieces: the bytes each id stands for; empty where it stands for none.
    """

    ids: NDArray[np.int32]
    pieces: list[bytes]


@dataclass(frozen=True, eq=False)
class StoredNearest:
    """Both directions: `left` are the left side's ids among the right's."""

    left: SideNearest
    right: SideNearest


def save_nearest(folder: Path, nearest: StoredNearest) -> None:
    """Write nearest.safetensors and its receipt into an alignment's folder."""
    tensors: dict[str, NDArray[np.int32]] = {}
    for name, side in (("left", nearest.left), ("right", nearest.right)):
        ends = np.cumsum([len(piece) for piece in side.pieces], dtype=np.int32)
        tensors |= {f"{name}.ids": side.ids, f"{name}.ends": ends, f"{name}.bytes": _as_fours(side.pieces)}
    save_tensors(folder, NEAREST, tensors, {})


def load_nearest(folder: Path) -> StoredNearest:
    """Read it.

    Raises:
        ShardError: If it is not there or damaged; with the command that makes it.
    """
    if not has_file(folder, NEAREST):
        raise ShardError(
            f"{folder}: its ids were not compared by edit distance; run the `sra-data align` that made it again with"
            " --edit-distance"
        )
    shapes = {f"{name}.{part}": f"{name[0]}" for name in ("left", "right") for part in ("ids", "ends")}
    shapes |= {"left.bytes": "b", "right.bytes": "c"}
    tensors, _ = load_tensors(folder, NEAREST, shapes, command=COMMAND)
    found = int32_of({key: tensors[key] for key in shapes}, folder / NEAREST)
    sides = []
    for name in ("left", "right"):
        ids, content, starts = found[f"{name}.ids"], found[f"{name}.bytes"].tobytes(), [0, *found[f"{name}.ends"]]
        if (np.diff(starts) < 0).any() or starts[-1] > len(content):
            raise ShardError(f"{folder / NEAREST}: {name}.ends beyond {len(content)} bytes; {repair_for(folder)}")
        sides.append(SideNearest(ids, [content[start:stop] for start, stop in pairwise(map(int, starts))]))
    return StoredNearest(*sides)


def _as_fours(pieces: Sequence[bytes]) -> NDArray[np.int32]:
    content = b"".join(pieces)
    return np.frombuffer(content + b"\0" * (-len(content) % 4), dtype="<i4")
