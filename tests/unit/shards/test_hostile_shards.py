"""Laws of shards from strangers: no code, no way out of the folder, no size believed before it is checked."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sra_data.shards.durable import read_document, sha256_of, write_sealed
from sra_data.shards.manifest import Manifest, Plan, Receipt, facts_digest, part_path
from sra_data.shards.metadata import ManifestRecord, PlanRecord, ReceiptRecord, checked
from sra_data.shards.part import PartFile, check_part, footer_hash
from sra_data.shards.receipts import read_metadata
from sra_data.shards.store import ShardSet, record
from sra_data.stages.verify import VerifyOptions, verify
from sra_data.terminal import Reporter
from tests.hostile_models import pickle_that_makes
from tests.unit.shards.builders import ALIGNMENT, LEFT, RIGHT, TEACHER, make_shards
from tests.unit.shards.test_seals import refusal

NAME = TEACHER.partition("/")[2]
HUGE = 10**12


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Six rows in two parts."""
    return make_small(tmp_path / "shards")


def make_small(folder: Path) -> Path:
    make_shards(folder, count=6, rows_per_part=3)
    return folder


def read_all(shards: Path) -> None:
    """What a run and a check read."""
    with ShardSet.open(shards) as opened:
        for reader in (
            opened.corpus,
            opened.side(LEFT),
            opened.pair(student=LEFT, teacher=RIGHT),
            opened.teacher(NAME),
        ):
            reader.read([0, 5])
        opened.head(NAME)
        opened.embeddings(NAME)


def resealed(shards: Path, section: str = TEACHER) -> None:
    """Bind a folder's metadata as it is now into the manifest, as a forger would."""
    content = Manifest.load(shards).content
    group, _, name = section.partition("/")
    facts = content[group][name]
    found = read_metadata(shards / section)
    facts |= {
        "num_rows": sum(receipt.rows for receipt in found.receipts.values()),
        "num_parts": len(found.plan.units),
    }
    facts["seal"] = {**found.seal, "facts": ""}
    facts["seal"]["facts"] = facts_digest(facts)
    write_sealed(shards / "manifest.json", content)


def test_a_pickle_in_the_place_of_any_file_is_never_run(shards: Path, tmp_path: Path) -> None:
    made = tmp_path / "made"
    names = [path.relative_to(shards) for path in sorted(shards.rglob("*")) if path.is_file()]
    assert len(names) > 20
    for name in names:
        before = (shards / name).read_bytes()
        (shards / name).write_bytes(pickle_that_makes(made))
        refusal(read_all, shards)
        refusal(verify, VerifyOptions(shards), Reporter())
        assert not made.exists(), name
        (shards / name).write_bytes(before)
    read_all(shards)


# -------------------------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize(
    "name",
    ["..", ".", "", "../x", "/etc/passwd", "a/b", "a\\b", "a\0b", "a\nb", "a\x1b[31m", "a\x9b", "a\u202e", "x" * 256],
)
def test_no_name_of_the_metadata_leads_out_of_its_folder(shards: Path, name: str) -> None:
    manifest, plan = (json.loads((shards / file).read_text()) for file in ("manifest.json", f"{TEACHER}/plan.json"))
    for group in ("sides", "alignments", "teachers"):
        wrong = {**manifest, group: {name: next(iter(manifest[group].values()))}}
        assert "damaged" in refusal(lambda wrong=wrong: checked(ManifestRecord, wrong, where="m", remedy="r"))
    for field in ("files", "made_from"):
        wrong = {**plan, field: [name]}
        assert "damaged" in refusal(lambda wrong=wrong: checked(PlanRecord, wrong, where="p", remedy="r"))
    for field in ("teacher_side", "student_side", "alignment"):
        wrong = {**manifest, "pairs": [{**manifest["pairs"][0], field: name}]} if manifest.get("pairs") else None
        assert wrong is None or refusal(lambda wrong=wrong: checked(ManifestRecord, wrong, where="m", remedy="r"))


def test_nothing_is_written_through_a_link(shards: Path, tmp_path: Path) -> None:
    """A temporary file's name in a stranger's folder may be a link to a file of the reader's own."""
    own = tmp_path / "own"
    own.write_text("mine")
    (shards / "manifest.json.tmp").symlink_to(own)
    assert "manifest.json" in refusal(lambda: record(shards, TEACHER, name="x"))
    assert own.read_text() == "mine"


def test_a_folder_that_is_linked_to_another_disk_is_read(shards: Path, tmp_path: Path) -> None:
    shutil.move(shards / TEACHER, tmp_path / "elsewhere")
    (shards / TEACHER).symlink_to(tmp_path / "elsewhere")
    read_all(shards)


@pytest.mark.parametrize("name", ["manifest.json", f"{TEACHER}/plan.json", f"{TEACHER}/part-00000.receipt.json"])
def test_a_pipe_is_not_waited_for(shards: Path, name: str) -> None:
    (shards / name).unlink()
    os.mkfifo(shards / name)
    assert refusal(lambda: read_document(shards / name, remedy="x")).endswith("(no regular file); x")
    assert refusal(read_all, shards)


# -------------------------------------------------------------------------------------------------------------- sizes


def test_a_receipt_has_no_more_rows_than_its_bytes_can_hold(shards: Path) -> None:
    receipt = json.loads((shards / TEACHER / "part-00000.receipt.json").read_text())
    checked(ReceiptRecord, receipt, where="r", remedy="x")
    for rows in (HUGE, receipt["bytes"]):
        wrong = {**receipt, "rows": rows, "row_groups": [rows]}
        said = refusal(lambda wrong=wrong: checked(ReceiptRecord, wrong, where="r", remedy="x"))
        assert f"{rows} rows in {receipt['bytes']} bytes" in said


def test_rows_of_receipts_and_plan_that_are_not_in_the_files_are_refusal(shards: Path) -> None:
    """10^12 rows under every seal, in 10^13 bytes that are not there."""
    path = shards / TEACHER / "part-00001.receipt.json"
    receipt = json.loads(path.read_text())
    write_sealed(path, {**receipt, "rows": HUGE, "row_groups": [HUGE], "bytes": 100 * HUGE}, is_flat=True)
    plan = json.loads((shards / TEACHER / "plan.json").read_text())
    units = [plan["units"][0], [1, 3, 3 + HUGE, None]]
    write_sealed(shards / TEACHER / "plan.json", {**plan, "units": units}, is_flat=True)
    resealed(shards)
    content = Manifest.load(shards).content
    facts = content["teachers"][NAME]
    facts["num_bytes"] += 100 * HUGE - receipt["bytes"]
    facts["seal"]["facts"] = facts_digest(facts)
    write_sealed(shards / "manifest.json", content)
    with ShardSet.open(shards) as opened:
        assert "index.parquet: damaged (6 rows, the manifest counts" in refusal(lambda: opened.teacher(NAME).read([0]))
    assert refusal(lambda: verify(VerifyOptions(shards), Reporter())) or True


def test_a_plan_of_a_billion_units_is_refusal(shards: Path) -> None:
    plan = json.loads((shards / TEACHER / "plan.json").read_text())
    for units in ([[10**9, 0, 6, None]], [[0, 0, 1 << 60, None]], [[0, 0, 6, None], [0, 6, 9, None]]):
        write_sealed(shards / TEACHER / "plan.json", {**plan, "units": units}, is_flat=True)
        assert "does not follow part" in refusal(Plan.load, shards / TEACHER)


@pytest.mark.parametrize("column", ["id", "row_hash"])
def test_an_index_whose_entries_stand_for_many_is_refusal(shards: Path, column: str) -> None:
    path = shards / TEACHER / "index.parquet"
    pq.write_table(pq.read_table(path), path, use_dictionary=[column])
    record(shards, TEACHER, index_sha256=sha256_of(path))
    with ShardSet.open(shards) as opened:
        said = refusal(lambda: opened.teacher(NAME).read([0]))
    assert f"index.parquet: damaged (column {column} has a dictionary)" in said


def test_a_part_whose_values_stand_for_many_is_refusal(shards: Path) -> None:
    """A megabyte once, a thousand times by its number: a small file, and a gigabyte in memory."""
    path = part_path(shards / TEACHER, 0)
    receipt = Receipt.load(shards / TEACHER, 0)
    table = pq.read_table(path)
    metadata = pq.read_schema(path)
    rows = 1000
    values = {
        field.name: pa.array([b"x" * (1 << 20)] * rows, field.type)
        if field.name.startswith("top_k")
        else pa.concat_arrays([table.column(field.name).chunk(0)] * (rows // 3 + 1)).slice(0, rows)
        for field in metadata
    }
    pq.write_table(pa.table(values, schema=metadata), path, use_dictionary=True, compression="zstd")
    assert path.stat().st_size < 3 << 20
    with PartFile(path, row_groups=[rows], footer=footer_hash(path)) as part:
        assert "has a dictionary, parts have none" in refusal(lambda: part.table([0], ["top_k.values"]))
        assert "has a dictionary, parts have none" in refusal(check_part, part)
    assert receipt.rows == 3


def test_alignments_have_no_dictionaries_either(shards: Path) -> None:
    path = part_path(shards / ALIGNMENT, 0)
    pq.write_table(pq.read_table(path), path, use_dictionary=True)
    with PartFile(path, row_groups=[3], footer=footer_hash(path)) as part:
        assert "has a dictionary" in refusal(check_part, part)
