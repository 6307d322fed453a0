"""Shards written long ago stay readable: format 2, as it was first written.

`format-2/shards` was written by `tests.synthetic_shards.make_shards` (6 examples, bf16, seed 3, two teachers with
different tokenizers), `format-2/rows.json` holds what it meant then. Neither is written again: a build that reads them
differently needs a new format version.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sra_data.shards.codecs import EncodedTensor
from sra_data.shards.kinds import Row
from sra_data.shards.store import ShardSet
from sra_data.stages.verify import VerifyOptions, verify
from sra_data.terminal import Reporter

HERE = Path(__file__).parent
FORMATS = sorted(path.name for path in HERE.glob("format-*"))


def described(shards: Path) -> dict[str, Any]:
    """Everything the folder says, as plain values."""
    with ShardSet.open(shards) as opened:
        found: dict[str, Any] = {}
        for section in opened:
            group, _, name = section.partition("/")
            openers = {"sides": opened.side, "alignments": opened.alignment, "teachers": opened.teacher}
            reader = openers[group](name) if name else opened.corpus
            rows = [fields_of(row) for row in reader.read(range(len(reader)))]
            found[section] = {"root": reader.root, "rows": rows}
        for name in opened.manifest.names("teachers"):
            head, metadata = opened.head(name)
            ids, weight, _ = opened.embeddings(name)
            found[f"teachers/{name}"] |= {
                "head": {key: plain(tensor[:2]) for key, tensor in head.items()},
                "head_metadata": metadata,
                "embedded_ids": plain(ids),
                "embeddings": plain(weight[:2]),
            }
            side = opened.side_of_teacher(name)
            pair = opened.pair(student=opened.choose_student(), teacher=side)
            found[f"teachers/{name}"]["vocabulary"] = fields_of(pair.vocabulary())
    return found


def fields_of(value: Row | object) -> dict[str, Any]:
    return {name: plain(one) for name, one in vars(value).items()}


def plain(value: Any) -> Any:
    """Arrays and tensors as lists of numbers, exactly; NaN as text, which JSON lacks."""
    if isinstance(value, dict):
        return {str(key): plain(one) for key, one in value.items()}
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, tuple):
        return list(value)
    if isinstance(value, EncodedTensor):
        value = value.float32()
    assert isinstance(value, np.ndarray)
    return json.loads(json.dumps(value.tolist()).replace("NaN", '"NaN"'))


@pytest.mark.parametrize("name", FORMATS)
def test_old_shards_are_read_as_they_were_meant(name: str) -> None:
    expected = json.loads((HERE / name / "rows.json").read_text("utf-8"))
    assert described(HERE / name / "shards") == expected


@pytest.mark.parametrize("name", FORMATS)
def test_old_shards_pass_verification(name: str) -> None:
    verify(VerifyOptions(shards=HERE / name / "shards"), Reporter()).refuse_if_damaged()


def test_there_are_old_shards() -> None:
    assert "format-2" in FORMATS
