"""What is known of one model of a comparison, on disk beside it.

    config.yaml     of the run
    job.json        what was asked for last
    run/            the run's own folder; gone on with by `sra-train run --config run/config.yaml` too
    trained.json    how training ended, and the development split
    tested.json     the test data; tested.npz has the bits of every example
    log.txt         what was said meanwhile

A file appears whole or not at all, and `tested.json` after its arrays: what is there is true.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from sra_data.errors import TrainingError
from sra_train.record.run_folder import write_text

TRAINED, TESTED, ARRAYS, JOB, CONFIG, LOG, RUN = (
    "trained.json",
    "tested.json",
    "tested.npz",
    "job.json",
    "config.yaml",
    "log.txt",
    "run",
)


@dataclass(frozen=True)
class Trained:
    """How training ended.

    Attributes:
        status: diverged, where the loss or the gradients were not finite.
        reason: why, in words.
        model: folder of the exported model, or the name of one that was not trained here.
        exported_step: whose weights it has; 0 where nothing was trained.
        bits_per_byte: on the development split, at temperature 1.
        temperature: of the softmax with the fewest bits there.
        num_examples: of the development split that fit the model.
    """

    status: Literal["done", "diverged"]
    reason: str = ""
    model: str = ""
    exported_step: int = 0
    bits_per_byte: float | None = None
    temperature: float = 1.0
    num_examples: int = 0


@dataclass(frozen=True, eq=False)
class Scored:
    """The test data, example by example; NaN where an example does not fit the model.

    Attributes:
        asked: what decides the numbers: data and options.
        bits: float64 [E] at temperature 1.
        tempered_bits: float64 [E] at the best temperature of the development split.
        num_bytes: int64 [E].
        rouge: one Rouge-L a seed; None where nothing was generated.
    """

    asked: Mapping[str, Any]
    bits: NDArray[np.float64]
    tempered_bits: NDArray[np.float64]
    num_bytes: NDArray[np.int64]
    rouge: tuple[float, ...] | None = None
    left_out: Mapping[str, int] = field(default_factory=dict)


def write_trained(folder: Path, trained: Trained) -> None:
    """Keep it."""
    write_text(folder / TRAINED, json.dumps(asdict(trained), indent=1, ensure_ascii=False))


def read_trained(folder: Path) -> Trained | None:
    """What is known of the training; None where it is not over.

    Raises:
        TrainingError: If the file is damaged.
    """
    found = read_json(folder / TRAINED)
    try:
        return None if found is None else Trained(**found)
    except TypeError as error:
        raise TrainingError(f"{folder / TRAINED}: damaged ({error}); delete it and run again") from None


def write_tested(folder: Path, tested: Scored) -> None:
    """Keep it, arrays first."""
    temporary = folder / f"{ARRAYS}.tmp"
    with temporary.open("wb") as file:
        np.savez(file, bits=tested.bits, tempered_bits=tested.tempered_bits, num_bytes=tested.num_bytes)
    (folder / TESTED).unlink(missing_ok=True)
    os.replace(temporary, folder / ARRAYS)
    record = {"asked": dict(tested.asked), "rouge": tested.rouge, "left_out": dict(tested.left_out)}
    write_text(folder / TESTED, json.dumps(record, indent=1, ensure_ascii=False))


def read_tested(folder: Path, asked: Mapping[str, Any]) -> Scored | None:
    """The numbers for what is asked; None where there are none, or those of other data.

    Raises:
        TrainingError: If a file is damaged.
    """
    found = read_json(folder / TESTED)
    if found is None or found.get("asked") != json.loads(json.dumps(asked)):
        return None
    try:
        with (folder / ARRAYS).open("rb") as file, np.load(file) as arrays:
            bits, tempered, num_bytes = arrays["bits"], arrays["tempered_bits"], arrays["num_bytes"]
            rouge = None if found["rouge"] is None else tuple(found["rouge"])
            left_out = dict(found["left_out"])
    except (BadZipFile, EOFError, KeyError, OSError, TypeError, ValueError) as error:
        raise TrainingError(f"{folder / ARRAYS}: damaged ({error}); delete it and {TESTED} and run again") from None
    return Scored(found["asked"], bits, tempered, num_bytes, rouge, left_out)


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a file; None where there is no file.

    Raises:
        TrainingError: If it is no JSON object.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise TrainingError(f"{path}: damaged ({error}); delete it and run again") from None
    if not isinstance(found, dict):
        raise TrainingError(f"{path}: damaged (no object); delete it and run again")
    return found
