"""Nothing on disk can change without being noticed, and the message says what, where and what to do."""

from __future__ import annotations

import json
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sra_data.errors import ShardError
from sra_data.shards.manifest import Receipt
from sra_data.shards.part import PartFile, check_part
from sra_data.shards.seal import check_root
from sra_data.shards.store import FolderReader, ShardSet, load_embeddings, load_head, read_index, seal
from tests.unit.shards.builders import ALIGNED, ALIGNMENT, LEFT, RIGHT, SECTIONS, STUDENT_SIDE, TEACHER
from tests.unit.shards.test_rows import assert_equal

PART = "part-00001.parquet"


def flip(path: Path, place: int, bit: int = 0) -> None:
    """Turn one bit of a file around."""
    content = bytearray(path.read_bytes())
    content[place] ^= 1 << bit
    path.write_bytes(content)


def reader_of(shards: ShardSet, section: str) -> FolderReader:
    """The reader of a section."""
    group, _, name = section.partition("/")
    ways = {"corpus": lambda name: shards.corpus, "sides": shards.side, "alignments": shards.alignment}
    return ways.get(group, shards.teacher)(name)


def check_whole(shards: Path, section: str, part: int) -> None:
    """What `verify` reads a part with."""
    receipt = Receipt.load(shards / section, part)
    path = shards / section / f"part-{part:05d}.parquet"
    with PartFile(path, row_groups=receipt.row_groups, footer=receipt.footer) as file:
        check_root(file.schema, check_part(file)[1], receipt, path)


def test_a_flipped_bit_never_gives_wrong_rows(sealed_set: tuple[Path, dict[str, list[Any]]], shards: Path) -> None:
    """Any bit of a part: the rows come back as they were written, or a ShardError that names the part does."""
    rows = sealed_set[1]

    @settings(max_examples=100, deadline=None)
    @given(st.sampled_from(SECTIONS), st.floats(0, 1, exclude_max=True), st.integers(0, 7))
    def flipped(section: str, where: float, bit: int) -> None:
        part = shards / section / PART
        place = int(where * part.stat().st_size)
        flip(part, place, bit)
        found, refused = None, ""
        with ShardSet.open(shards) as opened:
            try:
                found = reader_of(opened, section).read(range(12, 24))
            except ShardError as error:
                refused = str(error)
        if found is None:
            assert PART in refused
            assert "\n" not in refused
        for row, written in zip(found or [], rows[section][12:24] if found else [], strict=True):
            assert_equal(row, written)
        with suppress(ShardError):  # what is not seen here is Parquet's own slack
            check_whole(shards, section, 1)
            with ShardSet.open(shards) as opened:
                assert_equal(reader_of(opened, section).read([13])[0], rows[section][13])
        flip(part, place, bit)

    flipped()


@pytest.mark.parametrize("section", SECTIONS)
def test_a_damaged_value_is_named_with_file_example_and_column(
    section: str, sealed_set: tuple[Path, dict[str, list[Any]]], shards: Path
) -> None:
    part = shards / section / PART
    group = json.loads((shards / section / "part-00001.receipt.json").read_text())["row_groups"][0]
    rows = range(12, 12 + group)
    column, others = ("hidden.2", ["hidden.4", "top_k.ids"]) if section == TEACHER else ("hashes", [])
    empty = 0  # behind the last value that is not: their lengths alone, four bytes each
    while section == TEACHER and not len(sealed_set[1][TEACHER][rows[-1 - empty]].positions):
        empty += 1
    flip(part, _chunk_end(part, column) - 1 - 4 * empty)  # the last value of the first row group
    what = "column hidden.2: checksum differs" if others else "hashes: not those of the sealed index"
    last = (
        rf"{section}/{PART}: example id-{rows[-1 - empty]}, {what}; run `sra-data repair {shards}`: it throws {PART} "
    )
    with ShardSet.open(shards) as opened:
        reader = reader_of(opened, section)
        if others:
            reader.read(rows, others)  # other columns still read
        behind = range(rows.stop, 24)  # whole row groups of the same part, which still read
        assert len(reader.read(behind)) == len(behind) > 0
        with pytest.raises(ShardError, match=last):
            reader.read(rows, ["hidden.2"] if others else None)
        assert len(reader.read(behind)) == len(behind)


@pytest.mark.parametrize("is_here", [True, False], ids=["on a disk", "in a store"])
def test_hashes_are_read_by_part_from_a_disk_and_by_row_group_from_a_store(
    shards: Path, monkeypatch: pytest.MonkeyPatch, is_here: bool
) -> None:
    asked: list[int] = []
    real = PartFile.hashes

    def noted(self: PartFile, row_group: int) -> Any:
        asked.append(row_group)
        return real(self, row_group)

    monkeypatch.setattr(PartFile, "hashes", noted)
    monkeypatch.setattr(FolderReader, "is_here", is_here)
    with ShardSet.open(shards) as opened:
        reader = reader_of(opened, TEACHER)
        groups = list(range(int((reader.index.part_of_group == 1).sum())))
        for _ in range(2):
            reader.read([12], ["hidden.2"])
        assert asked == (groups if is_here else [0])
        reader.read([23], ["hidden.2"])
        assert asked == (groups if is_here else [0, groups[-1]])
    assert len(groups) > 1


def _chunk_end(part: Path, column: str) -> int:
    metadata = pq.ParquetFile(part).metadata
    chunks = [metadata.row_group(0).column(place) for place in range(metadata.num_columns)]
    chunk = next(chunk for chunk in chunks if chunk.path_in_schema == column)
    return chunk.data_page_offset + chunk.total_compressed_size


@pytest.mark.parametrize("section", SECTIONS)
def test_a_part_of_another_place_is_refused(section: str, shards: Path) -> None:
    for ending in (".parquet", ".receipt.json"):
        shutil.copy(shards / section / f"part-00000{ending}", shards / section / f"part-00001{ending}")
    said = r"part-00001.receipt.json: says it is of part 0; run `sra-data repair"
    with pytest.raises(ShardError, match=said), ShardSet.open(shards) as opened:
        reader_of(opened, section).read([13])
    with pytest.raises(ShardError, match=said):
        seal(shards, section)


@pytest.mark.parametrize("section", SECTIONS)
def test_a_damaged_or_missing_index_is_refused(section: str, shards: Path) -> None:
    flip(shards / section / "index.parquet", 40)
    with ShardSet.open(shards) as opened, pytest.raises(ShardError, match=r"index.parquet: damaged, its sha256"):
        reader_of(opened, section).read([0])
    (shards / section / "index.parquet").unlink()
    with ShardSet.open(shards) as opened, pytest.raises(ShardError, match=r"index.parquet: missing; run the command"):
        reader_of(opened, section).read([0])
    with pytest.raises(ShardError, match=r"index.parquet: missing; run the command"):
        read_index(shards / section)


def test_an_index_of_another_kind_is_refused(shards: Path) -> None:
    assert read_index(shards / STUDENT_SIDE, kind="side").kind == "side"
    with pytest.raises(ShardError, match=r"an index of side, not of corpus"):
        read_index(shards / STUDENT_SIDE, kind="corpus")


@pytest.mark.parametrize(
    ("section", "name", "open_file"),
    [
        (TEACHER, "head.safetensors", lambda shards: shards.head("big-00000000")),
        (TEACHER, "embeddings.safetensors", lambda shards: shards.embeddings("big-00000000")),
        (ALIGNMENT, "vocabulary.safetensors", lambda shards: shards.pair(student=LEFT, teacher=RIGHT).vocabulary()),
    ],
)
def test_a_damaged_file_beside_the_parts_is_refused(section: str, name: str, open_file: Any, shards: Path) -> None:
    command = "align" if section == ALIGNMENT else "cache-teacher"
    flip(shards / section / name, -3)
    with ShardSet.open(shards) as opened:
        said = rf"{name}: tensor \w+: checksum differs; delete .* and run `sra-data {command}` again"
        with pytest.raises(ShardError, match=said):
            open_file(opened)
        (shards / section / name).unlink()
        with pytest.raises(ShardError, match=rf"{name}: missing or not \d+ bytes long"):
            open_file(opened)
    with pytest.raises(ShardError, match=rf"{name}: missing or not \d+ bytes long"):
        seal(shards, section)


def test_a_deleted_folder_is_one_line(shards: Path) -> None:
    shutil.rmtree(shards / ALIGNMENT)
    with ShardSet.open(shards) as opened, pytest.raises(ShardError, match=f"{ALIGNED}: missing; run `sra-data align"):
        opened.alignment(ALIGNED)


def test_a_flipped_bit_in_the_head_is_found_on_loading(shards: Path) -> None:
    flip(shards / TEACHER / "head.safetensors", -3)
    with pytest.raises(ShardError, match=r"head.safetensors: tensor weight: checksum differs"):
        load_head(shards / TEACHER)


def test_tied_embeddings_are_the_heads_rows(sealed_set: tuple[Path, dict[str, list[Any]]]) -> None:
    ids, weight, metadata = load_embeddings(sealed_set[0] / TEACHER)
    assert ids.tolist() == [1, 4]
    assert metadata["scale"] == "2.0"
    assert np.array_equal(weight.float32(), np.arange(24, dtype=np.float32).reshape(6, 4)[[1, 4]])
