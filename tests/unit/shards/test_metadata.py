"""What metadata may not say, one thing at a time: types, bounds, and counts that contradict each other."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sra_data.errors import ShardError
from sra_data.shards.metadata import (
    ColumnRecord,
    FileReceiptRecord,
    ManifestRecord,
    PlanRecord,
    ReceiptRecord,
    checked,
    checked_header,
)

HASH, SHORT = "0" * 64, "0" * 16
PLAN = {
    "format_version": 2,
    "kind": "side",
    "fingerprint": {},
    "units": [[0, 0, 4, None], [1, 4, 6, {"file": "a"}]],
    "files": ["head.safetensors"],
    "made_from": ["corpus"],
    "seal": HASH,
}
RECEIPT = {
    "part": 1,
    "rows": 4,
    "row_groups": [3, 1],
    "bytes": 100,
    "sha256": HASH,
    "footer": SHORT,
    "rows_root": HASH,
    "notes": {},
    "seal": HASH,
}
FILE = {"bytes": 100, "sha256": HASH, "header": SHORT, "seal": HASH}
SECTION = {
    "fingerprint": {},
    "root": HASH,
    "num_parts": 2,
    "num_rows": 6,
    "num_bytes": 100,
    "index_sha256": HASH,
    "granularity": "token",
    "seal": {"facts": HASH, "plan": HASH, "receipts": HASH, "files": {}},
}
COLUMN = {"codec": "bf16", "shape": ["positions", 8], "compression": "none", "parameters": {}, "nullable": False}


def manifest_of(**facts: Any) -> dict[str, Any]:
    """A manifest of one teacher."""
    return {"format_version": 2, "teachers": {"big": {**SECTION, **facts}}, "seal": HASH}


WRONG: list[tuple[Any, dict[str, Any], str]] = [
    (PlanRecord, {**PLAN, "kind": "head"}, "kind: "),
    (PlanRecord, {**PLAN, "units": [[0, 0, 4]]}, "is not part, start, stop and hint"),
    (PlanRecord, {**PLAN, "units": [[0, 0, 4, None], [1, 3, 6, None]]}, "does not follow part 0 up to row 4"),
    (PlanRecord, {**PLAN, "units": [[0, 0, 4, None], [0, 4, 6, None]]}, "does not follow part 0"),
    (PlanRecord, {**PLAN, "units": [[0, 4, 4, None]]}, "does not follow"),
    (PlanRecord, {**PLAN, "units": [[0, 0, 1 << 60, None]]}, "does not follow"),
    (PlanRecord, {**PLAN, "units": [[False, 0, 4, None]]}, "is not part, start, stop and hint"),
    (PlanRecord, {**PLAN, "files": ["../../etc/passwd"]}, "files.0: not the name of a folder or file"),
    (PlanRecord, {**PLAN, "files": [".."]}, "files.0: not the name of a folder or file"),
    (PlanRecord, {**PLAN, "made_from": ["sides/../../x"]}, "made_from.0: not the name of a folder or file"),
    (PlanRecord, {**PLAN, "made_from": ["elsewhere"]}, "made_from.0: not corpus, sides"),
    (PlanRecord, {name: value for name, value in PLAN.items() if name != "files"}, "files: Field required"),
    (ReceiptRecord, {**RECEIPT, "rows": 5}, "row groups of 4 rows for 5"),
    (ReceiptRecord, {**RECEIPT, "row_groups": [4, 0]}, "row_groups.1: "),
    (ReceiptRecord, {**RECEIPT, "rows": 4.0}, "rows: "),
    (ReceiptRecord, {**RECEIPT, "part": -1}, "part: "),
    (ReceiptRecord, {**RECEIPT, "bytes": 1 << 60}, "bytes: "),
    (ReceiptRecord, {**RECEIPT, "sha256": "0" * 63 + "g"}, "sha256: "),
    (ReceiptRecord, {**RECEIPT, "sha256": HASH + "\n"}, "sha256: "),
    (ReceiptRecord, {**RECEIPT, "extra": 1}, "extra: "),
    (FileReceiptRecord, {**FILE, "header": HASH}, "header: "),
    (FileReceiptRecord, {**FILE, "bytes": "100"}, "bytes: "),
    (ManifestRecord, manifest_of(seal=None), "sealed without seal"),
    (ManifestRecord, manifest_of(num_rows=None), "sealed without num_rows"),
    (ManifestRecord, manifest_of(num_dev=7), "7 of 6 rows are development"),
    (ManifestRecord, manifest_of(num_layers=2, layers=[3]), "layer 3 of 2"),
    (ManifestRecord, manifest_of(num_layers=10**9 * 4), "num_layers: "),
    (ManifestRecord, manifest_of(side="../x"), "side: not the name"),
    (ManifestRecord, manifest_of(temperatures=[0.0]), "temperatures.0: "),
    (ManifestRecord, manifest_of(failed_examples="id-1"), "failed_examples: "),
    (ManifestRecord, manifest_of(made_from={"corpus": "f00d"}), "made_from.corpus: "),
    (ManifestRecord, {"format_version": 2, "seal": HASH, "sides": {"a/b": SECTION}}, "not the name of a folder"),
    (ManifestRecord, {"format_version": 2, "seal": HASH, "alignments": {"alone": SECTION}}, "does not name two sides"),
    (ManifestRecord, {"format_version": 2, "seal": HASH, "pairs": [{"teacher": {}}]}, "pairs.0"),
    (ColumnRecord, {**COLUMN, "shape": ["rows"]}, "shape.0"),
    (ColumnRecord, {**COLUMN, "shape": [-1]}, "shape.0"),
    (ColumnRecord, {**COLUMN, "compression": "gzip"}, "compression: "),
]


@pytest.mark.parametrize(("record", "value", "said"), WRONG)
def test_what_a_file_may_not_say_is_refused_with_field_value_and_remedy(
    record: Any, value: dict[str, Any], said: str
) -> None:
    with pytest.raises(ShardError, match=rf"^file: damaged \(.*{said}.*\); do this$"):
        checked(record, value, where="file", remedy="do this")


@pytest.mark.parametrize(
    ("record", "value"),
    [
        (PlanRecord, PLAN),
        (ReceiptRecord, RECEIPT),
        (FileReceiptRecord, FILE),
        (ManifestRecord, manifest_of(num_layers=3, layers=[3], anything={"a": [1]})),
        (ColumnRecord, COLUMN),
    ],
)
def test_what_it_may_say_is_taken(record: Any, value: dict[str, Any]) -> None:
    checked(record, value, where="file", remedy="do this")


def entry(start: int, stop: int, *shape: int, dtype: str = "F32") -> dict[str, Any]:
    """A tensor of a header."""
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, stop]}


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ({"a": entry(0, 8, 2), "b": entry(4, 12, 2)}, r"tensor 'b': bytes 4:12 for shape \[2\] behind 8"),
        ({"a": entry(0, 8, 2), "b": entry(9, 17, 2)}, r"tensor 'b': bytes 9:17 for shape \[2\] behind 8"),
        ({"a": entry(0, 8, 3)}, r"tensor 'a': bytes 0:8 for shape \[3\] behind 0"),
        ({"a": entry(0, 8, 2)}, "tensors of 8 bytes in 16"),
        ({"a": entry(0, 1 << 50, 1 << 48)}, "tensors of 1125899906842624 bytes in 16"),
        ({"a": entry(0, 16, 4, dtype="F64")}, "tensors.a.dtype"),
        ({"a": entry(-16, 0, 4)}, "tensors.a.data_offsets.0"),
        ({"a": {"dtype": "F32"}}, "tensors.a.shape"),
        ({"__metadata__": {"scale": 1.0}}, "metadata.scale"),
        ([], "a list in place of an object"),
    ],
)
def test_a_header_whose_tensors_are_not_the_bytes_there_are_is_refused(header: Any, said: str) -> None:
    with pytest.raises(ShardError, match=rf"^file: damaged \(.*{said}.*\); do this$"):
        checked_header(json.dumps(header).encode(), num_bytes=16, where="file", remedy="do this")


def test_a_message_is_one_printable_line_whatever_the_file_held() -> None:
    value = {**RECEIPT, "sha256": "\ud800\n\x1b[2J" + "x" * 9999}
    with pytest.raises(ShardError) as raised:
        checked(ReceiptRecord, value, where="file", remedy="do this")
    assert str(raised.value).isprintable()
    assert len(str(raised.value)) < 300
    hostile = {"format_version": 2, "seal": HASH, "teachers": {"big\x1b[2J": SECTION}}
    with pytest.raises(ShardError, match=r"teachers\.big\\x1b\[2J") as raised:
        checked(ManifestRecord, hostile, where="file", remedy="do this")
    assert str(raised.value).isprintable()
