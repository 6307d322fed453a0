"""A capture of speculators: a safetensors file a text, with hidden states of chosen layers at every position.

    token_ids        whole numbers [T]
    hidden_states    [T, L, D] in the teacher's dtype: L layers, in ascending order

Which layers those are the files do not say; the server was told (`--target-layer-ids`), and what it takes where it is
told nothing is taken here too: 2, half of them, all but three, and the last. Layer l is what block l gives, so the last
one comes BEFORE the final norm, which speculators puts on it itself. The `data_<i>.pt` of earlier releases are pickles:
they are never opened.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sra_data.captures.files import CapturedRow, checked_ids, files_in, folder_named
from sra_data.errors import CaptureError, ConfigError, ShardError, one_line
from sra_data.shards.metadata import LONGEST_HEADER, HeaderRecord, TensorRecord, checked

IDS, STATES = "token_ids", "hidden_states"
AGAIN = "capture it again"
ID_TYPES: dict[str, np.dtype[Any]] = {"I64": np.dtype("<i8"), "I32": np.dtype("<i4")}
STATE_TYPES: dict[str, np.dtype[Any]] = {"BF16": np.dtype("<u2"), "F16": np.dtype("<f2"), "F32": np.dtype("<f4")}


@dataclass(frozen=True)
class _File:
    """One text's file, as its header says."""

    path: Path
    ids: TensorRecord
    states: TensorRecord
    start: int  # of the tensors' bytes

    @property
    def shape(self) -> tuple[int, int, int]:
        """T, L, D."""
        tokens, layers, width = self.states.shape
        return tokens, layers, width


class SpeculatorsCapture:
    """A folder of such files.

    Attributes:
        files: in order.
        num_layers, hidden_size: L and D, of every file.
        dtype: of the states: "BF16", "F16" or "F32".
    """

    format = "speculators"

    def __init__(self, folder: str) -> None:
        """Find the files and look into the first; raises CaptureError for what is no such capture."""
        self.folder = folder_named(folder)
        self.files = files_in(self.folder, ".safetensors")
        if not self.files:
            _refuse_none(self.folder)
        first = _opened(self.files[0])
        _, self.num_layers, self.hidden_size = first.shape
        self.dtype = first.states.dtype

    def rows(self) -> Iterator[CapturedRow]:
        """All rows, ids alone."""
        for number, path in enumerate(self.files):
            ids = self.ids_of(number)
            yield CapturedRow(number, str(path), ids, len(ids))

    def ids_of(self, number: int) -> NDArray[np.int64]:
        """Of a row."""
        file = self._file(number)
        dtype = ID_TYPES[file.ids.dtype]
        found = _mapped(file, file.ids, dtype, tuple(file.ids.shape))
        return checked_ids(np.array(found), str(file.path))

    def states_of(self, number: int, place: int, positions: NDArray[Any]) -> NDArray[Any]:
        """[P, D] of the place-th layer at some positions, as stored; bfloat16 as its bit pattern."""
        file = self._file(number)
        found = _mapped(file, file.states, STATE_TYPES[file.states.dtype], file.shape)
        return np.array(found[positions, place])

    def _file(self, number: int) -> _File:
        file = _opened(self.files[number])
        if (file.shape[1:], file.states.dtype) != ((self.num_layers, self.hidden_size), self.dtype):
            raise CaptureError(
                f"{file.path}: {STATES} of {file.shape[1]} layers, {file.shape[2]} channels in {file.states.dtype}, "
                f"those before have {self.num_layers}, {self.hidden_size} in {self.dtype}; import them apart"
            )
        return file


def captured_layers(said: Sequence[int], *, num_captured: int, num_layers: int) -> tuple[int, ...]:
    """Which layers a capture holds: as the user says, or as speculators' server takes them.

    Args:
        said: by the user; empty where nothing is said.
        num_captured: layers in the files.
        num_layers: of the teacher.

    Raises:
        ConfigError: If they are not as many as the files hold, or none of the teacher's, or not in ascending order.
    """
    layers = tuple(said) or (2, num_layers // 2, num_layers - 3, num_layers)
    shown = ",".join(map(str, layers))
    whose = f"--captured-layers {shown}" if said else f"--captured-layers: speculators takes {shown} where none is said"
    if len(layers) != num_captured:
        raise ConfigError(
            f"{whose}, the capture holds {num_captured} layers; give those of its --target-layer-ids, and the last"
        )
    if list(layers) != sorted(set(layers)) or layers[0] < 0 or layers[-1] > num_layers:
        raise ConfigError(
            f"{whose}: give distinct layers of the teacher's 0 to {num_layers} in ascending order, as they are stored"
        )
    return layers


def _refuse_none(folder: Path) -> None:
    """Say what is there instead of safetensors files.

    Raises:
        CaptureError: Always.
    """
    if files_in(folder, ".pt"):
        raise CaptureError(
            f"{folder}: .pt files of an earlier speculators, which are pickles and never opened here; capture it again "
            "with a release that writes hs_<i>.safetensors"
        )
    inside = folder / "hidden_states"
    if inside.is_dir():
        raise CaptureError(f"{folder}: its hidden states are in {inside.name}; give {inside}")
    raise CaptureError(f"{folder}: no .safetensors file in it; give the folder with speculators' hs_<i>.safetensors")


def _opened(path: Path) -> _File:
    """A file's header, checked: its tensors fill the file, and are those of this format.

    Raises:
        CaptureError: If not.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > min(LONGEST_HEADER, size - 8):
                raise ValueError(f"a header of {length} bytes in {size}")
            found = json.loads(file.read(length))
        if not isinstance(found, Mapping):
            raise ValueError("a header that is no object")
        tensors = {name: entry for name, entry in found.items() if name != "__metadata__"}
        ordered = dict(sorted(tensors.items(), key=_offset_of))
        value = {"metadata": found.get("__metadata__", {}), "tensors": ordered}
        header = checked(HeaderRecord, value, where=path, remedy=AGAIN)
    except ShardError as error:
        raise CaptureError(str(error)) from None
    except (OSError, ValueError, RecursionError) as error:
        raise CaptureError(f"{path}: cannot be read as safetensors ({one_line(error, 120)}); {AGAIN}") from None
    if header.num_bytes != size - 8 - length:
        raise CaptureError(f"{path}: tensors of {header.num_bytes} bytes in {size - 8 - length}; {AGAIN}")
    return _of_this_format(path, header, 8 + length)


def _of_this_format(path: Path, header: HeaderRecord, start: int) -> _File:
    """The two tensors of a header.

    Raises:
        CaptureError: If one is missing, or of another type or shape.
    """
    lacking = next((name for name in (IDS, STATES) if name not in header.tensors), None)
    if lacking is not None:
        there = ", ".join(list(header.tensors)[:8]) or "nothing"
        raise CaptureError(f"{path}: no {lacking} in it (it has {there}); give a capture of speculators")
    ids, states = header.tensors[IDS], header.tensors[STATES]
    if ids.dtype not in ID_TYPES or len(ids.shape) != 1 or states.dtype not in STATE_TYPES or len(states.shape) != 3:
        raise CaptureError(
            f"{path}: {IDS} {ids.dtype} {ids.shape} and {STATES} {states.dtype} {states.shape}, whole numbers [T] and "
            f"halves or floats [T, layers, channels] are wanted; {AGAIN}"
        )
    if ids.shape[0] != states.shape[0] or not all(states.shape):
        raise CaptureError(f"{path}: {ids.shape[0]} {IDS} for {STATES} {states.shape}; {AGAIN}")
    return _File(path, ids, states, start)


def _offset_of(item: tuple[str, Any]) -> int:
    """Where a tensor's bytes begin; what is no such entry comes first, and is refused by its record."""
    entry = item[1]
    offsets = entry.get("data_offsets") if isinstance(entry, Mapping) else None
    first = offsets[0] if isinstance(offsets, list) and offsets else None
    return first if isinstance(first, int) else -1


def _mapped(file: _File, tensor: TensorRecord, dtype: np.dtype[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    """A tensor of a file, read as far as it is looked at."""
    offset = file.start + tensor.data_offsets[0]
    return np.memmap(file.path, dtype=dtype, mode="r", offset=offset, shape=shape)
