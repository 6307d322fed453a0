"""Another format is refused in one line that names the command, wherever it is met."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sra_data.errors import ShardError
from sra_data.shards.manifest import Manifest, Plan, part_path
from sra_data.shards.part import footer_hash
from sra_data.shards.receipts import read_metadata
from sra_data.shards.store import (
    FORMAT_VERSION,
    Receipt,
    ShardSet,
    begin,
    read_part,
    record,
    record_pairs,
    seal,
    state_of,
)
from tests.unit.shards.builders import FINGERPRINT, LEFT, PAIR, STUDENT_SIDE, TEACHER, make_units

ANEW = "make it anew: sra-data align --teacher X --student Y --data D --out NEW, then sra-data cache-teacher NEW"
REFUSED = f"shard format {{version}}, this build reads 2; {ANEW}"


def set_version(path: Path, version: object) -> None:
    """Give a manifest or a plan another format version."""
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format_version": version}))


def make_part_of_format_1(folder: Path) -> None:
    """Part 0 with the metadata of format 1, its receipt to match."""
    part = part_path(folder, 0)
    receipt = Receipt.load(folder, 0)
    table = pq.read_table(part)
    table = table.replace_schema_metadata({**table.schema.metadata, b"sra.format_version": b"1"})
    with pa.OSFile(str(part), "wb") as sink, pq.ParquetWriter(sink, table.schema) as writer:
        start = 0
        for count in receipt.row_groups:
            writer.write_table(table.slice(start, count), row_group_size=count)
            start += count
    dataclasses.replace(receipt, footer=footer_hash(part), bytes=part.stat().st_size).save(folder)
    shards, section = folder.parent.parent, f"{folder.parent.name}/{folder.name}"
    seal_of_folder = read_metadata(folder).seal | {"facts": "0" * 64}  # writing puts the facts' own there
    num_bytes = sum(path.stat().st_size for path in folder.glob("part-*.parquet"))
    record(shards, section, seal=seal_of_folder, num_bytes=num_bytes)


def refuses(version: object) -> Any:
    """The one line, whole."""
    return pytest.raises(ShardError, match=re.escape(REFUSED.format(version=version)) + "$")


def test_this_build_writes_format_2(shards: Path) -> None:
    assert FORMAT_VERSION == 2
    for name in ("manifest.json", "corpus/plan.json"):
        assert json.loads((shards / name).read_text())["format_version"] == 2
    assert pq.read_schema(part_path(shards / TEACHER, 0)).metadata[b"sra.format_version"] == b"2"


@pytest.mark.parametrize("version", [1, None, "one"])
def test_a_manifest_of_another_format_is_refused_and_nothing_is_written(version: object, shards: Path) -> None:
    set_version(shards / "manifest.json", version)
    before = {path: path.read_bytes() for path in shards.rglob("*") if path.is_file()}
    for step in (
        lambda: ShardSet.open(shards),
        lambda: record(shards, "corpus", root=None),
        lambda: record_pairs(shards, [PAIR]),
        lambda: begin(shards, "sides/new-00000000", FINGERPRINT, lambda: make_units(30, 12)),
        lambda: begin(shards, "corpus", FINGERPRINT, lambda: make_units(30, 12)),
        lambda: seal(shards, "corpus"),
        lambda: state_of(shards, "corpus"),
    ):
        with refuses(version):
            step()
    assert {path: path.read_bytes() for path in shards.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("section", ["corpus", STUDENT_SIDE, TEACHER])
def test_a_plan_of_format_1_is_refused(section: str, shards: Path) -> None:
    set_version(shards / section / "plan.json", 1)
    with refuses(1):
        Plan.load(shards / section)
    with refuses(1):
        begin(shards, section, FINGERPRINT, list)
    with refuses(1):
        seal(shards, section)


def test_a_part_of_format_1_is_refused(shards: Path) -> None:
    make_part_of_format_1(shards / STUDENT_SIDE)
    with ShardSet.open(shards) as opened, refuses(1):
        opened.side(LEFT).read([0])
    with refuses(1):
        read_part(shards / STUDENT_SIDE, make_units(30, 12)[0])
    with refuses(1):
        seal(shards, STUDENT_SIDE)


def test_a_newer_format_asks_for_a_newer_package(shards: Path) -> None:
    set_version(shards / "manifest.json", 99)
    said = f"manifest.json: shard format 99, this build reads 2; update this package, or {ANEW}"
    with pytest.raises(ShardError, match=re.escape(said) + "$"):
        Manifest.load(shards)


def test_no_shards_at_all_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match=r"manifest.json: missing; no shards here; run `sra-data align` first"):
        ShardSet.open(tmp_path)
