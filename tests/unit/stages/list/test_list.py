"""What a folder holds, from its plans and receipts: sealed or not, in words, in tables and for machines."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from rich.cells import cell_len
from rich.console import Console

from sra_data.errors import ShardError
from sra_data.shards.codecs import encode_float32
from sra_data.shards.schema import TeacherRow
from sra_data.shards.store import (
    Plan,
    ShardSet,
    begin,
    cut_row_groups,
    missing_units,
    record,
    save_embeddings,
    save_head,
    seal,
    teacher_schema,
    write_part,
)
from sra_data.stages.align import plan as align_plan
from sra_data.stages.align.options import AlignOptions
from sra_data.stages.align.stage import align
from sra_data.stages.list import Listing, list_shards
from sra_data.terminal import Reporter, bytes_in_words
from tests.integration.command_lines import sra_data
from tests.unit.stages.align_worlds import rows, save_byte_level, save_unigram, write_jsonl

NUM_ROWS = 60
WIDTH = 4


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("list")
    save_byte_level(folder / "bytes")
    save_byte_level(folder / "more [bytes]", vocab_size=450)
    save_unigram(folder / "pieces")
    write_jsonl(folder / "data.jsonl", rows(NUM_ROWS))
    return folder


@pytest.fixture
def options(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AlignOptions:
    """Several units; some examples too long for the teacher."""
    monkeypatch.setattr(align_plan, "RESPONSE_BYTES_PER_PART", 2000)
    return AlignOptions(
        teachers=(str(world / "bytes"),),
        students=(str(world / "pieces"),),
        data=str(world / "data.jsonl"),
        out=str(tmp_path / "shards"),
        teacher_max_length=90,
        overlong="skip",
        num_workers=1,
    )


def cache(shards: Path, *, num_units: int | None = None) -> str:
    """Pages as a teacher might have written them, sealed once every unit is there; the name of their folder."""
    name, section = "bytes-00000000", "teachers/bytes-00000000"
    with ShardSet.open(shards) as opened:
        side = opened.choose_teacher_side()
        counts, ids = opened.side(side).index.num_positions, [row.id for row in opened.corpus.read(range(NUM_ROWS))]
    schema = teacher_schema(hidden={2: WIDTH}, attention=[2])
    inputs = {"layers": [2], "hidden_dtype": "bf16", "hidden_size": WIDTH, "top_k": 0, "granularity": "token"}
    files = ("head.safetensors", "embeddings.safetensors")
    units = Plan.load(shards / "corpus").units
    plan = begin(shards, section, inputs, lambda: units, files=files, made_from=(f"sides/{side}",))
    for unit in missing_units(shards / section, plan)[:num_units]:
        said = [page(ids[row], int(counts[row])) for row in range(unit.start, unit.stop)]
        here = counts[unit.start : unit.stop].tolist()
        notes = {"positions": sum(here)}
        write_part(shards / section, schema, unit, said, cut_row_groups(here), notes=notes)
    weight = encode_float32(np.ones((3, WIDTH), np.float32), "bf16")
    save_head(shards / section, {"weight": weight}, {})
    save_embeddings(shards / section, np.array([1], np.int32), None, {})
    if num_units is None:
        facts = {"name": "org/teacher", "revision": "abc", "adapter": None, "side": side, "num_layers": 4}
        said = {key: value for key, value in inputs.items() if key != "granularity"}
        seal(shards, section, {**said, **facts, "attention": True, "temperatures": []})
    return name


def page(name: str, count: int) -> TeacherRow:
    hidden = encode_float32(np.ones((count, WIDTH), np.float32), "bf16")
    ones = np.ones(count, np.float32)
    return TeacherRow(name, hidden={2: hidden}, attention={2: ones}, next_log_prob=-ones)


def drawn(listing: Listing, width: int) -> str:
    console = Console(file=io.StringIO(), width=width, record=True, color_system=None)
    listing.show(console)
    return console.export_text()


def without_space(text: str) -> str:
    return "".join(text.split())


def test_a_whole_folder_is_listed_with_the_numbers_of_its_rows(options: AlignOptions) -> None:
    align(options, Reporter())
    cache(Path(options.out))
    found = list_shards(options.out).as_dict()
    with ShardSet.open(options.out) as shards:
        corpus, pair = shards.corpus.index, shards.choose_pair()
        sides = {name: shards.side(name).index for name in shards.manifest.names("sides")}
        positions = int(shards.teacher("bytes-00000000").index.num_positions.sum())
    assert (found["corpus"]["train"], found["corpus"]["dev"]) == tuple(
        int(corpus.in_split(split).sum()) for split in ("train", "dev")
    )
    assert found["corpus"]["source"] == [f"{options.data} (1 file)"]
    assert {side["name"]: side["ok"] for side in found["sides"]} == {
        name: int(index.is_ok.sum()) for name, index in sides.items()
    }
    assert {side["name"]: side["tokens"] for side in found["sides"]} == {
        name: int(index.num_tokens.sum()) for name, index in sides.items()
    }
    taught = next(side for side in found["sides"] if side["name"] == pair.teacher)
    assert (taught["tokenizer"], taught["max_length"], taught["overlong"]) == (options.teachers[0], 90, "skip")
    assert taught["skipped"] == {"overlong": NUM_ROWS - taught["ok"]}
    assert taught["skipped"]["overlong"] > 0
    (alignment,) = found["alignments"]
    assert {alignment["left"], alignment["right"]} == set(sides)
    assert alignment["options"] == {"boundaries": "token", "max_spans": 1024, "vocabulary_match": "bytes"}
    assert alignment["spans"] == int(pair.index.num_spans.sum())
    assert 0.9 < alignment["covered"] <= 1
    (words,) = (entry.words for entry in list_shards(options.out).of("alignments"))
    assert (
        f"{taught['skipped']['overlong']} skipped ({taught['skipped']['overlong']} overlong in {pair.teacher})"
        in (words[1])
    )
    (teacher,) = found["teachers"]
    assert (teacher["model"], teacher["side"], teacher["layers"]) == ("org/teacher", pair.teacher, [2])
    assert (teacher["hidden_dtype"], teacher["top_k"], teacher["positions"]) == ("bf16", 0, positions)
    parts = sum(path.stat().st_size for path in (Path(options.out) / "teachers").rglob("part-*.parquet"))
    assert teacher["bytes_per_position"] == parts / positions
    assert [one["state"] for one in (found["corpus"], *found["sides"], alignment, teacher)] == ["sealed"] * 5
    assert all(one["go_on"] is None for one in (found["corpus"], *found["sides"], alignment, teacher))
    assert [pair["alignment"] for pair in found["pairs"]] == [alignment["name"]]


def test_sizes_are_those_of_the_files(options: AlignOptions) -> None:
    align(options, Reporter())
    cache(Path(options.out))
    found = list_shards(options.out)
    for entry in found.entries:
        files = [*(Path(options.out) / entry.section).glob("part-*.parquet")]
        files += (Path(options.out) / entry.section).glob("*.safetensors")
        assert entry.num_bytes == sum(path.stat().st_size for path in files)
    assert found.num_bytes == sum(entry.num_bytes for entry in found.entries)


def test_an_unfinished_alignment_says_how_far_it_is_and_what_goes_on(options: AlignOptions) -> None:
    align(AlignOptions(**{**vars(options), "units": "0:2"}), Reporter())
    found = list_shards(options.out)
    num_units = found.of("corpus")[0].num_units
    assert num_units > 3
    assert {entry.state for entry in found.entries} == {f"2 of {num_units} units"}
    assert found.as_dict()["corpus"]["examples"] == NUM_ROWS
    num_dev = found.as_dict()["corpus"]["dev"]
    tokenizers = {side["name"]: side["tokenizer"] for side in found.as_dict()["sides"]}
    assert set(tokenizers.values()) == {options.teachers[0], options.students[0]}
    (step,) = found.lines()[-1:]
    assert all(entry.section in step for entry in found.entries)
    command = f"sra-data align --teacher {options.teachers[0]} --student {options.students[0]} --out {options.out}"
    assert f"run `{command}` with the same data and options" in step
    align(options, Reporter())
    whole = list_shards(options.out)
    assert {entry.state for entry in whole.entries} == {"sealed"}
    assert whole.as_dict()["corpus"]["dev"] == num_dev


def test_what_goes_on_with_a_folder_names_the_models_it_was_asked_for(options: AlignOptions, world: Path) -> None:
    align(options, Reporter())
    other = str(world / "more [bytes]")
    align(AlignOptions(**{**vars(options), "teachers": (other,), "units": "0:2"}), Reporter())
    unfinished = [entry for entry in list_shards(options.out).entries if not entry.is_sealed]
    assert [entry.section.partition("/")[0] for entry in unfinished] == ["sides", "alignments"]
    command = f"sra-data align --teacher '{other}' --student {options.students[0]} --out {options.out}"
    assert all(entry.go_on == f"run `{command}` with the same data and options" for entry in unfinished)


def test_unfinished_pages_say_how_far_they_are_and_what_goes_on(options: AlignOptions) -> None:
    align(options, Reporter())
    cache(Path(options.out), num_units=2)
    (teacher,) = list_shards(options.out).of("teachers")
    assert teacher.state == f"2 of {teacher.num_units} units"
    with ShardSet.open(options.out) as shards:
        side, stop = shards.choose_teacher_side(), Plan.load(shards.path / "corpus").units[1].stop
        positions = int(shards.side(side).index.num_positions[:stop].sum())
    known = {"side": side, "layers": [2], "hidden_dtype": "bf16", "positions": positions, "is_sealed": False}
    assert known.items() <= teacher.as_dict().items()
    assert teacher.go_on == f"run `sra-data cache-teacher {options.out}` with the same options"
    assert list_shards(options.out).lines()[-1].startswith("teachers/bytes-00000000: run `sra-data cache-teacher")


def test_a_folder_with_all_units_that_was_not_sealed_is_unfinished(options: AlignOptions) -> None:
    align(options, Reporter())
    cache(Path(options.out))
    record(Path(options.out), "teachers/bytes-00000000", root=None)
    (teacher,) = list_shards(options.out).of("teachers")
    assert teacher.state == "not sealed"
    assert teacher.go_on == f"run `sra-data cache-teacher {options.out} --teacher org/teacher` with the same options"


def test_a_folder_that_is_gone_does_not_hide_the_others(options: AlignOptions) -> None:
    align(options, Reporter())
    (alignment,) = list_shards(options.out).of("alignments")
    shutil.rmtree(Path(options.out) / alignment.section)
    found = list_shards(options.out)
    (gone,) = found.of("alignments")
    assert gone.state == "unreadable"
    assert "plan.json: missing" in found.lines()[-1]
    assert [entry.state for entry in found.entries if entry != gone] == ["sealed"] * 3


def test_several_sides_and_alignments_of_a_pair_are_told_apart(options: AlignOptions, world: Path) -> None:
    everything = {**vars(options), "teachers": (*options.teachers, str(world / "more [bytes]"))}
    align(AlignOptions(**everything), Reporter())
    align(AlignOptions(**{**vars(options), "boundaries": "word"}), Reporter())
    found = list_shards(options.out)
    assert len(found.of("sides")) == 3
    assert [entry.facts["options"]["boundaries"] for entry in found.of("alignments")].count("word") == 1
    assert len(found.pairs) == 3
    assert any("word boundaries" in line for line in found.lines())


@pytest.mark.parametrize("width", [40, 60, 100, 200])
def test_tables_fold_and_lose_nothing(options: AlignOptions, world: Path, width: int) -> None:
    everything = {**vars(options), "teachers": (*options.teachers, str(world / "more [bytes]")), "units": "0:1"}
    align(AlignOptions(**everything), Reporter())
    found = list_shards(options.out)
    text = drawn(found, width)
    assert all(cell_len(line) <= width for line in text.splitlines())
    assert "…" not in text
    for entry in found.entries:
        assert bytes_in_words(entry.num_bytes) in text
        assert entry.state in text
    steps = without_space(text[text.index("to go on") :])
    assert all(without_space(step) in steps for step in found._next_steps())


def test_in_a_narrow_table_every_word_of_a_folder_is_there(options: AlignOptions) -> None:
    align(options, Reporter())
    found = list_shards(options.out)
    words = {word for entry in found.entries for line in entry.words for word in line.split() if len(word) < 12}
    narrow = drawn(found, 60)
    assert words <= set(narrow.split())
    assert all(side in narrow for entry in found.entries for side in entry.name.split("~"))


def test_the_command_prints_plain_lines_in_a_log_and_one_object_for_machines(options: AlignOptions) -> None:
    align(options, Reporter())
    answer = sra_data("list", options.out)
    assert answer.exit_code == 0
    assert answer.output.splitlines() == list_shards(options.out).lines()
    assert json.loads(sra_data("list", options.out, "--json").output) == list_shards(options.out).as_dict()


def test_other_formats_and_other_folders_are_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "manifest.json").write_text('{"format_version": 1, "corpus": {}, "teacher": {}}')
    with pytest.raises(ShardError, match="shard format 1, this build reads 2; make it anew: sra-data align") as refused:
        list_shards(tmp_path / "old")
    assert "\n" not in str(refused.value)
    with pytest.raises(ShardError, match="no shards here; run `sra-data align` first"):
        list_shards(tmp_path)


def test_no_name_steers_the_terminal() -> None:
    model = {"name": "a\x1b[2J\x9b1A", "revision": None}
    pair = {"teacher": model, "student": model, "teacher_side": "x", "student_side": "y", "alignment": "x~y"}
    console = Console(file=io.StringIO(), width=100, color_system=None)
    listing = Listing("shards\x1b", (), (pair,))
    listing.show(console)
    said = console.file.getvalue()
    assert not {"\x1b", "\x9b"} & set(said)
    assert r"a\x1b[2J\x9b1A" in said
