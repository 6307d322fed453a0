"""Compressed files read like plain ones, and files with anything in them give rows or one line, never a traceback."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sra_data.corpus import compressed
from sra_data.corpus.sources import SourceRange, open_source
from sra_data.errors import SourceError
from tests.unit.corpus.test_sources import NAMES, ROWS, pairs, write

TEXT_NAMES = [name for name in NAMES if name.endswith(("jsonl", "json", "csv", "tsv"))]
GOOD = {"prompt": "p", "response": "r"}


def squeeze(path: Path, suffix: str) -> Path:
    """The same file compressed, under its name with the suffix behind."""
    packed = path.with_name(path.name + suffix)
    content = path.read_bytes()
    if suffix == ".gz":
        packed.write_bytes(gzip.compress(content[:5000]) + gzip.compress(content[5000:]))  # two members, as `cat` makes
    else:
        with pa.CompressedOutputStream(str(packed), "zstd") as out:
            out.write(content)
    path.unlink()
    return packed


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
@pytest.mark.parametrize("name", TEXT_NAMES)
def test_a_compressed_file_gives_the_same_rows_from_any_place(tmp_path, name, suffix) -> None:
    source = open_source(str(squeeze(write(tmp_path / name, ROWS), suffix)))
    rows = list(source.scan())
    assert [(one.row.prompt, one.row.response) for one in rows] == [(row["prompt"], row["response"]) for row in ROWS]
    for start, stop in ((0, 3), (200, 260), (150, 151), (599, 600)):
        again = list(source.read(SourceRange(rows[start].position, stop)))
        assert [one.row for one in again] == [one.row for one in rows[start:stop]]


@pytest.mark.parametrize("name", TEXT_NAMES)
def test_units_that_follow_each_other_decompress_a_file_once(tmp_path, name, monkeypatch) -> None:
    source = open_source(str(squeeze(write(tmp_path / name, ROWS), ".gz")))
    rows = list(source.scan())
    opened = []
    original = compressed._Content.__init__
    monkeypatch.setattr(
        compressed._Content, "__init__", lambda self, path: (opened.append(path), original(self, path))[1]
    )
    for start in range(0, len(rows), 50):
        list(source.read(SourceRange(rows[start].position, start + 50)))
    assert len(opened) <= 1  # none, where the scan has left it at a place to go on from


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
@pytest.mark.parametrize("keep", [0.0, 0.3, 0.9])
def test_a_compressed_file_that_was_cut_is_one_line(tmp_path, suffix, keep) -> None:
    path = squeeze(write(tmp_path / "a.jsonl", ROWS), suffix)
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
    with pytest.raises(SourceError) as error:
        assert pairs(open_source(str(path)))
    assert "\n" not in str(error.value)
    assert path.name in str(error.value)


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
@pytest.mark.parametrize("damage", ["cut", "another byte at the beginning"])
def test_a_damaged_file_is_refused_however_often_it_is_read(tmp_path, suffix, damage) -> None:
    path = squeeze(write(tmp_path / "a.jsonl", ROWS), suffix)
    content = bytearray(path.read_bytes())
    if damage == "cut":
        content = content[: len(content) // 2]
    else:
        content[0] ^= 0xFF  # the first read fails
    path.write_bytes(bytes(content))
    kept = compressed._latest._kept
    for _ in range(3):
        with pytest.raises(SourceError, match="cannot be read"):
            pairs(open_source(str(path)))
        assert compressed._latest._kept in (None, kept), "what failed stays open to be read on"


@pytest.mark.parametrize("name", ["a.parquet.gz", "a.gz", "a.txt.gz"])
def test_what_is_compressed_by_itself_is_not_unpacked(tmp_path, name) -> None:
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(SourceError, match="is not known"):
        open_source(str(tmp_path / name))


def table_with(column: str, value: bytes) -> pa.Table:
    """Three rows, the second with bytes that are no text in one column."""
    values = {"prompt": [b"p", b"p", b"p"], "response": [b"r", b"r", b"r"], "other": [b"o", b"o", b"o"]}
    values[column][1] = value
    arrays = [pa.array(one, pa.binary()).view(pa.string()) for one in values.values()]
    return pa.table(arrays, names=list(values))


@pytest.mark.parametrize("column", ["prompt", "response", "other"])
@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
def test_a_value_that_is_no_text_is_an_invalid_row(tmp_path, name, column) -> None:
    table, path = table_with(column, b"\xff\xfe"), tmp_path / name
    if name.endswith("parquet"):
        pq.write_table(table, path)
    else:
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
    with pytest.raises(SourceError, match=rf"row 2: the value in column '{column}' is not UTF-8"):
        pairs(open_source(str(path)))
    counts: Counter[str] = Counter()
    assert pairs(open_source(str(path)), on_invalid="skip", counts=counts) == [("p", "r")] * 2
    assert counts == {"unreadable_value": 1}


def test_a_date_beyond_all_calendars_is_an_invalid_row(tmp_path) -> None:
    values = {name: [value] * 2 for name, value in GOOD.items()}
    pq.write_table(pa.table({**values, "when": pa.array([0, 1 << 60], pa.timestamp("ms"))}), tmp_path / "a.parquet")
    assert pairs(open_source(str(tmp_path / "a.parquet")), on_invalid="skip") == [("p", "r")]


def test_a_line_that_is_no_text_is_an_invalid_row(tmp_path) -> None:
    good = json.dumps(GOOD).encode()
    (tmp_path / "a.jsonl").write_bytes(good + b"\n" + good.replace(b"r", b"\xff", 1) + b"\n" + good + b"\n")
    source = open_source(str(tmp_path / "a.jsonl"))
    with pytest.raises(SourceError, match=r"a\.jsonl:2: not UTF-8 \(byte 0xff"):
        pairs(source)
    assert pairs(source, on_invalid="skip") == [("p", "r")] * 2


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_a_number_of_thousands_of_digits_in_a_column_nobody_uses_is_no_matter(tmp_path, name) -> None:
    row = json.dumps(GOOD)[:-1] + f', "n": {"7" * 5000}}}'
    (tmp_path / name).write_text(f"[{row}]" if name == "a.json" else row)
    assert pairs(open_source(str(tmp_path / name))) == [("p", "r")]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_json_that_is_nested_too_deep_is_one_line(tmp_path, name) -> None:
    row = json.dumps(GOOD)[:-1] + f', "n": {"[" * 200_000}{"]" * 200_000}}}'
    (tmp_path / name).write_text(f"[{row}]" if name == "a.json" else row)
    with pytest.raises(SourceError, match="nested too deep"):
        pairs(open_source(str(tmp_path / name)))


@pytest.mark.parametrize("name", [*NAMES, "b.jsonl.gz", "b.csv.zst"])
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_file_with_anything_in_it_gives_rows_or_one_line(tmp_path, name, data) -> None:
    kind = name.removesuffix(".gz").removesuffix(".zst")
    path = write(tmp_path / kind, ROWS[:20])
    if kind != name:
        path = squeeze(path, name[len(kind) :])
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(content) - 1))
        content[place] = data.draw(st.integers(0, 255))
    cut = data.draw(st.one_of(st.none(), st.integers(0, len(content))))
    path.write_bytes(bytes(content[:cut]))
    said = ""
    try:
        pairs(open_source(str(path)), on_invalid=data.draw(st.sampled_from(["fail", "skip"])))
    except SourceError as error:
        said = str(error)
    assert "\n" not in said
