"""How far a folder is, and that it is made of rows that match what it was made from."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from sra_data.errors import ShardError
from sra_data.shards import manifest
from sra_data.shards.durable import write_sealed
from sra_data.shards.manifest import Manifest, Plan
from sra_data.shards.store import (
    VOCABULARY,
    begin,
    corpus_schema,
    has_file,
    is_done,
    notes_of,
    record,
    save_vocabulary,
    seal,
    seal_all,
    state_of,
    write_part,
)
from tests.unit.shards.builders import (
    ALIGNMENT,
    FACTS,
    FINGERPRINT,
    MADE_FROM,
    SECTIONS,
    STUDENT_SIDE,
    TEACHER,
    TEACHER_SIDE,
    cut_groups,
    full_teacher_schema,
    make_rows,
    make_units,
    schema_of,
    vocabulary,
    write_section,
)

UNITS = make_units(12, 4)


@pytest.mark.parametrize("section", SECTIONS)
def test_the_state_of_a_sealed_folder_is_what_the_manifest_says(
    section: str, sealed_set: tuple[Path, dict[str, list[Any]]]
) -> None:
    state, sealed = state_of(sealed_set[0], section), Manifest.load(sealed_set[0]).sealed(section)
    assert (state.section, state.num_units, state.num_done, state.is_sealed) == (section, 3, 3, True)
    assert state.num_bytes == sealed["num_bytes"]
    beside = {TEACHER: ("head.safetensors", "embeddings.safetensors"), ALIGNMENT: (VOCABULARY,)}.get(section, ())
    sizes = [(sealed_set[0] / section / name).stat().st_size for name in beside]
    assert state.num_bytes - state.num_part_bytes == sum(sizes)
    assert sealed["made_from"].keys() == set(MADE_FROM[section]) if section != "corpus" else "made_from" not in sealed
    assert all(
        sealed["made_from"][base] == Manifest.load(sealed_set[0]).sealed(base)["root"] for base in MADE_FROM[section]
    )
    assert FACTS.get(section, {}).items() <= sealed.items()


def test_a_folder_is_counted_part_by_part(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match=r"plan.json: missing; run the command that makes corpus again"):
        state_of(tmp_path, "corpus")
    rows = make_rows(12, full_teacher_schema())["corpus"]
    plan = begin(tmp_path, "corpus", FINGERPRINT, lambda: UNITS)
    num_bytes = 0
    for number, unit in enumerate(UNITS):
        state = state_of(tmp_path, "corpus")
        assert (state.num_units, state.num_done, state.is_sealed) == (3, number, False)
        assert (state.num_bytes, state.num_part_bytes) == (num_bytes, num_bytes)
        rows_of_unit = rows[unit.start : unit.stop]
        receipt = write_part(tmp_path / "corpus", corpus_schema(), unit, rows_of_unit, [4], notes={"seen": number})
        num_bytes += receipt.bytes
        assert is_done(tmp_path / "corpus", unit)
    assert state_of(tmp_path, "corpus").num_done == 3
    assert not state_of(tmp_path, "corpus").is_sealed
    assert seal(tmp_path, "corpus").notes == [{"seen": 0}, {"seen": 1}, {"seen": 2}]
    assert state_of(tmp_path, "corpus").is_sealed
    (tmp_path / "corpus" / "part-00001.parquet").unlink()
    state = state_of(tmp_path, "corpus")
    assert (state.num_done, state.is_sealed) == (2, False)
    assert notes_of(tmp_path / "corpus", plan) == [{"seen": 0}, {"seen": 2}]


@pytest.mark.parametrize("section", SECTIONS)
def test_going_on_with_a_sealed_folder_leaves_the_manifest_as_it_is(section: str, shards: Path) -> None:
    before = (shards / "manifest.json").read_bytes()

    def never() -> list[Any]:
        raise AssertionError("its units are known")

    plan = begin(shards, section, FINGERPRINT, never, made_from=MADE_FROM[section], facts={"source": "elsewhere"})
    assert plan == Plan.load(shards / section)
    assert (shards / "manifest.json").read_bytes() == before
    assert state_of(shards, section).is_sealed


def test_what_is_said_at_the_beginning_stands_in_the_manifest_at_once_and_sealing_adds_to_it(tmp_path: Path) -> None:
    rows = make_rows(12, full_teacher_schema())["corpus"]
    begin(tmp_path, "corpus", FINGERPRINT, lambda: UNITS, facts={"source": ["a file"], "num_dev": 3})
    begun = {"fingerprint": FINGERPRINT, "root": None, "source": ["a file"], "num_dev": 3}
    assert Manifest.load(tmp_path).section("corpus") == begun
    for unit in UNITS:
        write_part(tmp_path / "corpus", corpus_schema(), unit, rows[unit.start : unit.stop], [4])
    root = seal(tmp_path, "corpus", {"num_dev": 4}).root
    assert {**begun, "root": root, "num_dev": 4}.items() <= Manifest.load(tmp_path).sealed("corpus").items()


def test_a_file_beside_the_parts_counts_once_it_is_there(shards: Path) -> None:
    before = state_of(shards, ALIGNMENT)
    assert has_file(shards / ALIGNMENT, VOCABULARY)
    (shards / ALIGNMENT / VOCABULARY).unlink()
    state = state_of(shards, ALIGNMENT)
    assert (state.num_done, state.is_sealed, state.num_bytes) == (3, False, before.num_part_bytes)
    (shards / ALIGNMENT / "vocabulary.receipt.json").unlink()
    assert not has_file(shards / ALIGNMENT, VOCABULARY)
    save_vocabulary(shards / ALIGNMENT, vocabulary())
    assert has_file(shards / ALIGNMENT, VOCABULARY)
    assert state_of(shards, ALIGNMENT) == before


def test_a_folder_begun_again_from_other_inputs_is_not_sealed(shards: Path) -> None:
    record(shards, TEACHER, fingerprint={"source": "other"})
    begin(shards, TEACHER, FINGERPRINT, list, made_from=MADE_FROM[TEACHER])
    assert not state_of(shards, TEACHER).is_sealed
    seal(shards, TEACHER)
    assert state_of(shards, TEACHER).is_sealed


def test_sections_come_in_the_order_in_which_one_is_made_from_another(shards: Path) -> None:
    manifest = Manifest.load(shards)
    assert manifest.sections == list(SECTIONS)
    assert manifest.names("sides") == ["student-00000000", "teacher-00000000"]
    assert manifest.section("sides/nobody") is manifest.section("teachers/nobody") is None
    assert Plan.load(shards / ALIGNMENT).made_from == (STUDENT_SIDE, TEACHER_SIDE)
    assert Plan.load(shards / "corpus").made_from == ()


# --------------------------------------------------------------------------- rows that must match


CHANGES: list[tuple[str, dict[str, Any], str]] = [
    (STUDENT_SIDE, {"id": "id-x"}, r"row 5, id: corpus has id-5, this folder id-x"),
    (ALIGNMENT, {"id": "id-x"}, rf"row 5, id: {STUDENT_SIDE} has id-5, this folder id-x"),
    (TEACHER, {"id": "id-x"}, rf"row 5, id: {TEACHER_SIDE} has id-5, this folder id-x"),
]


@pytest.mark.parametrize(("section", "change", "said"), CHANGES)
def test_rows_that_are_not_those_of_the_base_are_not_sealed(
    section: str, change: dict[str, Any], said: str, tmp_path: Path
) -> None:
    rows = make_rows(12, full_teacher_schema())
    rows[section][5] = dataclasses.replace(rows[section][5], **change)
    with pytest.raises(ShardError, match=f"{section}: {said}; delete it and make it again"):
        _write_up_to(section, rows, tmp_path)
    assert Manifest.load(tmp_path).section(section)["root"] is None  # type: ignore[index]


def test_a_teacher_with_other_positions_than_its_side_is_not_sealed(tmp_path: Path) -> None:
    rows = make_rows(12, full_teacher_schema())
    rows[TEACHER][5] = dataclasses.replace(rows[TEACHER][6], id="id-5")
    had, got = rows[TEACHER_SIDE][5].num_positions, len(rows[TEACHER][6].positions)
    with pytest.raises(ShardError, match=f"row 5, num_positions: {TEACHER_SIDE} has {had}, this folder {got}"):
        _write_up_to(TEACHER, rows, tmp_path)


def test_other_parts_or_fewer_rows_than_the_base_are_not_sealed(tmp_path: Path) -> None:
    rows = make_rows(12, full_teacher_schema())
    write_section(tmp_path, "corpus", rows["corpus"], [[4], [4], [4]])
    with pytest.raises(ShardError, match="row 4, part: corpus has 1, this folder 0"):
        write_section(tmp_path, STUDENT_SIDE, rows[STUDENT_SIDE], [[6], [6]])
    with pytest.raises(ShardError, match="8 rows, corpus has 12; delete the folder and make it again"):
        write_section(tmp_path, TEACHER_SIDE, rows[TEACHER_SIDE][:8], [[4], [4]])


def test_text_is_not_sealed_twice_over(tmp_path: Path) -> None:
    """More rows than the base has."""
    rows = make_rows(12, full_teacher_schema())
    write_section(tmp_path, "corpus", rows["corpus"][:8], [[4], [4]])
    with pytest.raises(ShardError, match="12 rows, corpus has 8; delete the folder and make it again"):
        write_section(tmp_path, STUDENT_SIDE, rows[STUDENT_SIDE], [[4], [4], [4]])


def _write_up_to(section: str, rows: dict[str, list[Any]], shards: Path) -> None:
    for name in SECTIONS[: SECTIONS.index(section) + 1]:
        write_section(shards, name, rows[name], cut_groups(name, rows, UNITS), schema=schema_of(name))


def test_folders_sealed_together_are_as_those_sealed_one_by_one(shards: Path, monkeypatch) -> None:
    before = Manifest.load(shards).content
    order = Manifest.load(shards).sections
    for section in order:
        record(shards, section, root=None, index_sha256=None)
    writes: list[Path] = []
    monkeypatch.setattr(manifest, "write_sealed", lambda path, value: (writes.append(path), write_sealed(path, value)))
    seal_all(shards, order)
    assert Manifest.load(shards).content == before
    assert writes == [shards / "manifest.json"]


def test_the_manifest_is_plain_json(shards: Path) -> None:
    content = json.loads((shards / "manifest.json").read_text())
    assert list(content) == ["format_version", "corpus", "sides", "alignments", "teachers", "pairs", "seal"]
    assert set(content["teachers"]) == {"big-00000000"}
