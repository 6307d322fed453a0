"""Nothing on disk can change without being noticed, and the message says what, where and what to do."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sra_data.errors import ShardError
from sra_data.shards.columns import Row
from sra_data.shards.schema import CorpusRow, TeacherRow
from sra_data.shards.store import ShardSet, load_embeddings, load_head
from sra_data.stages.verify import VerifyOptions, VerifySummary, verify
from sra_data.terminal import Reporter
from tests.unit.shards.builders import ALIGNMENT
from tests.unit.shards.test_rows import assert_equal

PART = "part-00001.parquet"


def flip(path: Path, place: int, bit: int = 0) -> None:
    """Turn one bit of a file around."""
    content = bytearray(path.read_bytes())
    content[place] ^= 1 << bit
    path.write_bytes(content)


def verified(shards: Path) -> VerifySummary:
    """What verify finds."""
    return verify(VerifyOptions(shards), Reporter())


def test_a_flipped_bit_never_gives_wrong_rows(sealed_set: tuple[Path, dict[str, list[Row]]], shards: Path) -> None:
    """Any bit of a part: the rows come back as they were written, or a ShardError does; verify always tells."""
    rows = sealed_set[1]

    @settings(max_examples=60, deadline=None)
    @given(st.sampled_from(["corpus", ALIGNMENT, "teacher"]), st.floats(0, 1, exclude_max=True), st.integers(0, 7))
    def flipped(section: str, where: float, bit: int) -> None:
        part = shards / section / PART
        place = int(where * part.stat().st_size)
        flip(part, place, bit)
        found = None
        with ShardSet.open(shards) as opened:
            readers = {"corpus": opened.corpus, "teacher": opened.teacher, ALIGNMENT: opened.alignment()}
            with suppress(ShardError):
                found = readers[section].read(range(12, 24))
        expected = rows[section][12:24] if found is not None else []
        for row, written in zip(found or [], expected, strict=True):
            assert_equal(row, written)
        problems = verified(shards).problems
        flip(part, place, bit)
        assert len(problems) == 1
        assert PART in problems[0]

    flipped()


def test_a_damaged_value_is_named_with_file_example_and_column(shards: Path) -> None:
    part = shards / "teacher" / PART
    chunk_end = _chunk_end(part, "hidden.2")
    flip(part, chunk_end - 1)  # the last value of the first row group
    group = json.loads((shards / "teacher" / "part-00001.receipt.json").read_text())["row_groups"][0]
    with ShardSet.open(shards) as opened:
        rows = range(12, 12 + group)
        opened.teacher.read(rows, ["hidden.4", "top_k.ids"])  # other columns still read
        expected = rf"teacher/{PART}: example id-{rows[-1]}, column hidden.2: checksum differs; run `sra-data verify"
        with pytest.raises(ShardError, match=expected):
            opened.teacher.read(rows, ["hidden.2"])


def _chunk_end(part: Path, column: str) -> int:
    metadata = pq.ParquetFile(part).metadata
    chunks = [metadata.row_group(0).column(place) for place in range(metadata.num_columns)]
    chunk = next(chunk for chunk in chunks if chunk.path_in_schema == column)
    return chunk.data_page_offset + chunk.total_compressed_size


def test_a_part_of_another_corpus_in_its_place_is_refused(shards: Path) -> None:
    for ending in (".parquet", ".receipt.json"):
        shutil.copy(shards / "teacher" / f"part-00000{ending}", shards / "teacher" / f"part-00001{ending}")
    with ShardSet.open(shards) as opened, pytest.raises(ShardError, match=r"part-00001.parquet"):
        opened.teacher.read([13])
    assert any("part-00001" in problem for problem in verified(shards).problems)


def test_whole_shards_verify(sealed_set: tuple[Path, dict[str, list[Row]]]) -> None:
    summary = verified(sealed_set[0])
    assert summary.problems == ()
    assert (summary.num_parts, summary.num_rows) == (9, 90)
    summary.refuse_if_damaged()


def _delete_receipt(shards: Path) -> None:
    (shards / "corpus" / "part-00002.receipt.json").unlink()


def _truncate(shards: Path) -> None:
    part = shards / ALIGNMENT / PART
    part.write_bytes(part.read_bytes()[:-9])


def _change_head(shards: Path) -> None:
    flip(shards / "teacher" / "head.safetensors", -1)


def _change_index(shards: Path) -> None:
    flip(shards / "teacher" / "index.parquet", 40)


def _change_plan(shards: Path) -> None:
    plan = json.loads((shards / "teacher" / "plan.json").read_text())
    plan["fingerprint"]["source"] = "other.jsonl"
    (shards / "teacher" / "plan.json").write_text(json.dumps(plan))


def _change_root(shards: Path) -> None:
    manifest = json.loads((shards / "manifest.json").read_text())
    manifest["teacher"]["root"] = "0" * 64
    (shards / "manifest.json").write_text(json.dumps(manifest))


def _other_corpus(shards: Path) -> None:
    manifest = json.loads((shards / "manifest.json").read_text())
    manifest["teacher"]["corpus_root"] = "0" * 64
    (shards / "manifest.json").write_text(json.dumps(manifest))


def _delete_folder(shards: Path) -> None:
    shutil.rmtree(shards / "teacher")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (_delete_receipt, r"part-00002.receipt.json: missing"),
        (_truncate, r"part-00001.parquet"),
        (_change_head, r"head.safetensors: damaged"),
        (_change_index, r"index.parquet: damaged"),
        (_change_plan, r"name other inputs"),
        (_change_root, r"the manifest has 000000000000"),
        (_other_corpus, r"made for corpus 000000000000"),
        (_delete_folder, r"teacher/plan.json: missing"),
    ],
)
def test_verify_tells_what_is_wrong(damage: Callable[[Path], None], said: str, shards: Path) -> None:
    damage(shards)
    summary = verified(shards)
    with pytest.raises(ShardError, match=said) as raised:
        summary.refuse_if_damaged()
    assert "\n" not in str(raised.value)


def test_verify_without_a_manifest_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match=r"manifest.json: missing; no shards here; run `sra-data align` first"):
        verified(tmp_path)


@pytest.mark.parametrize("offset", [0.0, 0.5])
def test_deep_compares_with_what_the_teacher_says_now(
    offset: float, sealed_set: tuple[Path, dict[str, list[Row]]]
) -> None:
    folder, rows = sealed_set
    said = {row.id: row for row in rows["teacher"]}
    asked: list[str] = []

    def recapture(shards: ShardSet, examples: Sequence[CorpusRow]) -> list[TeacherRow]:
        asked.extend(row.id for row in examples)
        again = [said[row.id] for row in examples]
        return [dataclasses.replace(row, next_log_prob=row.next_log_prob + offset) for row in again]

    summary = verify(VerifyOptions(folder, deep=True, sample=5), Reporter(), recapture)
    assert len(asked) == summary.num_recaptured == 5
    assert len(summary.problems) == (5 if offset else 0)
    assert all("next_log_prob: the teacher now says otherwise" in problem for problem in summary.problems)


def test_a_flipped_bit_in_the_head_is_found_on_loading(shards: Path) -> None:
    flip(shards / "teacher" / "head.safetensors", -3)
    with pytest.raises(ShardError, match=r"head.safetensors: tensor weight: checksum differs"):
        load_head(shards / "teacher")


def test_tied_embeddings_are_the_heads_rows(sealed_set: tuple[Path, dict[str, list[Row]]]) -> None:
    ids, weight, metadata = load_embeddings(sealed_set[0] / "teacher")
    assert ids.tolist() == [1, 4]
    assert metadata["scale"] == "2.0"
    assert np.array_equal(weight.float32(), np.arange(24, dtype=np.float32).reshape(6, 4)[[1, 4]])
