"""Where the ids of either side of an alignment go among the other's, beside its parts, as safetensors.

For next-token distributions at a boundary (docs/method.md, section 6). Training reads it from here, because it has no
tokenizer of the teacher's.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sra_data.shards.tensor_file import int32_of, load_tensors, save_tensors

IMAGES = "images.safetensors"
Ids = NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class SideImages:
    """Of one side's ids, [ids] int32 each; -1 where there is none.

    Attributes:
        byte_prefix: the other side's id of the longest byte string that the id's bytes begin with.
        first_piece: the first piece of the other side's own cut of the id's text.
        first_byte: the first byte the id stands for.
    """

    byte_prefix: Ids
    first_piece: Ids
    first_byte: Ids


@dataclass(frozen=True, eq=False)
class StoredImages:
    """Both directions: `left` are the left side's ids among the right's."""

    left: SideImages
    right: SideImages


def save_images(folder: Path, images: StoredImages) -> None:
    """Write images.safetensors and its receipt into an alignment's folder."""
    tensors = {
        f"{side}.{name}": values for side, of_side in vars(images).items() for name, values in vars(of_side).items()
    }
    save_tensors(folder, IMAGES, tensors, {})


def load_images(folder: Path) -> StoredImages:
    """Read it.

    Raises:
        ShardError: If it is missing or damaged.
    """
    names = ("byte_prefix", "first_piece", "first_byte")
    shapes = {f"{side}.{name}": letter for side, letter in (("left", "L"), ("right", "R")) for name in names}
    tensors, _ = load_tensors(folder, IMAGES, shapes, command="align")
    found = int32_of({key: tensors[key] for key in shapes}, folder / IMAGES)
    left, right = (SideImages(*(found[f"{side}.{name}"] for name in names)) for side in ("left", "right"))
    return StoredImages(left, right)
