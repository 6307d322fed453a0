"""Shards written long ago stay readable: format 1, as it was first published.

`format-1/shards` was written by `tests.synthetic_shards.make_shards` (6 examples, bf16, seed 3), `format-1/rows.json`
holds what it meant then. Neither is written again: a build that reads them differently needs a new format version.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sra_data.shards.codecs import EncodedTensor
from sra_data.shards.schema import AlignmentRow, CorpusRow, TeacherRow
from sra_data.shards.store import ShardSet, load_head
from sra_data.stages.verify import VerifyOptions, verify
from sra_data.terminal import Reporter

HERE = Path(__file__).parent
FORMATS = sorted(path.name for path in HERE.glob("format-*"))


def described(shards: Path) -> dict[str, Any]:
    """Everything the folder says, as plain values."""
    with ShardSet.open(shards) as opened:
        everything = range(len(opened.corpus))
        rows: dict[str, list[Any]] = {
            "corpus": opened.corpus.read(everything),
            "alignment": opened.alignment().read(everything),
            "teacher": opened.teacher.read(everything),
        }
        roots = {"corpus": opened.corpus.root, "alignment": opened.alignment().root, "teacher": opened.teacher.root}
    tensors, metadata = load_head(shards / "teacher")
    return {
        "roots": roots,
        "head": {name: plain(tensor[:2]) for name, tensor in tensors.items()},
        "head_metadata": metadata,
        **{kind: [fields_of(row) for row in found] for kind, found in rows.items()},
    }


def fields_of(row: CorpusRow | AlignmentRow | TeacherRow) -> dict[str, Any]:
    return {name: plain(value) for name, value in vars(row).items()}


def plain(value: Any) -> Any:
    """Arrays and tensors as lists of numbers, exactly."""
    if isinstance(value, dict):
        return {str(key): plain(one) for key, one in value.items()}
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, EncodedTensor):
        value = value.float32()
    assert isinstance(value, np.ndarray)
    return value.tolist()


@pytest.mark.parametrize("name", FORMATS)
def test_old_shards_are_read_as_they_were_meant(name: str) -> None:
    expected = json.loads((HERE / name / "rows.json").read_text("utf-8"))
    assert described(HERE / name / "shards") == expected


@pytest.mark.parametrize("name", FORMATS)
def test_old_shards_pass_verification(name: str) -> None:
    verify(VerifyOptions(shards=HERE / name / "shards"), Reporter())


def test_there_are_old_shards() -> None:
    assert "format-1" in FORMATS
