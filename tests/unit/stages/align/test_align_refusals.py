"""What `align` refuses, in one line, leaving nothing behind."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from sra_data.errors import ConfigError, ShardError, SourceError, TokenizerError
from sra_data.stages.align.options import select_units
from sra_data.stages.align.stage import align
from sra_data.terminal import Reporter
from tests.unit.stages.align_worlds import rows, save_byte_level, write_jsonl


@pytest.mark.parametrize("change", [{"data": "other.jsonl"}, {"dev_share": 0.5}])
def test_another_corpus_in_one_folder_is_refused_field_by_field(options, world, change, contents):
    write_jsonl(world / "other.jsonl", rows(150)[::-1])
    align(options, Reporter())
    before = contents(options.out)
    value = {name: str(world / item) if name == "data" else item for name, item in change.items()}
    with pytest.raises(ShardError, match=r"corpus: made from other inputs \(corpus: had .*, got ") as caught:
        align(replace(options, **value), Reporter())
    assert "\n" not in str(caught.value)
    assert contents(options.out) == before


@pytest.mark.parametrize(
    ("version", "remedy"),
    [
        (1, "make it anew: sra-data align --teacher X --student Y"),
        (3, "update this package, or make it anew: sra-data align"),
    ],
)
def test_a_folder_of_another_format_is_refused_with_the_command_that_makes_it_anew(options, version, remedy, contents):
    align(options, Reporter())
    path = Path(options.out, "manifest.json")
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps({**manifest, "format_version": version}))
    before = contents(options.out)
    with pytest.raises(ShardError, match=f"shard format {version}, this build reads 2; {remedy}") as caught:
        align(options, Reporter())
    assert "\n" not in str(caught.value)
    assert contents(options.out) == before


BAD = {
    "invalid JSON": ('{"prompt": "a", "response": "b"}\n{"pro', r"bad\.jsonl:2: invalid JSON"),
    "empty file": ("", r"bad\.jsonl: no rows in this file"),
    "empty response": ('{"prompt": "a", "response": ""}', r"bad\.jsonl:1: the response is empty"),
    "missing columns": ('{"a": "b"}', r"bad\.jsonl:1: no usual columns .* among a; name them"),
    "equal ids": (
        '{"id": "x", "text": "a"}\n{"id": "y", "text": "b"}\n{"id": "x", "text": "c"}\n',
        r"bad\.jsonl:3: the id 'x' was used before at .*bad\.jsonl:1; give every row its own id, or number the rows",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_data_is_one_line_and_nothing_is_written(options, tmp_path, case):
    content, message = BAD[case]
    (tmp_path / "bad.jsonl").write_text(content)
    with pytest.raises(SourceError, match=message) as caught:
        align(replace(options, data=str(tmp_path / "bad.jsonl")), Reporter())
    assert "\n" not in str(caught.value)
    assert not Path(options.out).exists()


def test_nothing_but_rows_marked_test_is_refused(options, tmp_path):
    only = write_jsonl(tmp_path / "only.jsonl", [{**row, "split": "test"} for row in rows(10)])
    with pytest.raises(SourceError, match=r"no example is left to align \(10 test split; rows marked test are never"):
        align(replace(options, data=str(only)), Reporter())
    assert not Path(options.out).exists()


def test_bad_rows_can_be_skipped_and_are_counted(options, tmp_path, read_all):
    data = tmp_path / "bad.jsonl"
    data.write_text(
        '{"prompt": "a", "response": ""}\n{"prompt": "a", "resp\n' + '{"prompt": "a\\ud800", "response": "b c"}\n' * 3
    )
    summary = align(replace(options, data=str(data), on_invalid="skip"), Reporter())
    assert summary.num_examples == 3
    assert summary.left_out == {"empty_response": 1, "invalid_json": 1, "lone_surrogates": 3}
    assert [row.id for row in read_all(options.out).examples] == ["00000002", "00000003", "00000004"]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"boundaries": "letter"}, ConfigError, "--boundaries letter: not known; use one of token, word"),
        ({"on_invalid": "x"}, ConfigError, "--on-invalid x: not known"),
        ({"dev_share": 1.0}, ConfigError, r"--dev-share 1.0: must be at least 0 and below 1"),
        ({"num_workers": 0}, ConfigError, "--workers 0: must be at least 1"),
        ({"student_max_length": 1}, ConfigError, "--student-max-length 1: must be at least 2"),
        ({"units": "3"}, ConfigError, "--units 3: not of the form a:b"),
        ({"teachers": ("x", "x")}, ConfigError, "--teacher x: named twice; name it once"),
        ({"students": ()}, ConfigError, "--student: none given; name a Hub id or a folder"),
        ({"teachers": ("./nowhere",)}, TokenizerError, "nowhere"),
        ({"data": "./nowhere.jsonl"}, SourceError, "no such file"),
    ],
)
def test_options_that_cannot_be_are_refused_before_anything_is_written(options, change, error, message):
    with pytest.raises(error, match=message):
        align(replace(options, **change), Reporter())
    assert not Path(options.out).exists()


def test_a_folder_that_cannot_be_written_is_refused_at_once(options, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(ShardError, match=r"file is a file, not a folder; name another folder with --out"):
        align(replace(options, out=str(tmp_path / "file" / "shards")), Reporter())
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(ShardError, match=r"may not be written; name another folder with --out"):
        align(options, Reporter())


def test_units_are_selected_half_open():
    assert select_units([*range(5)], "1:3") == [1, 2]
    assert select_units([*range(5)], None) == [*range(5)]


def test_the_columns_that_were_chosen_are_said_each_kind_once(options, tmp_path):
    rows = [
        {"instruction": "a", "context": "", "response": "b"},
        {"question": "c", "answer": "d"},
        {"instruction": "e", "context": "f", "response": "g"},
    ]
    data = write_jsonl(tmp_path / "mixed.jsonl", rows)
    summary = align(replace(options, data=str(data)), Reporter())
    assert summary.columns == {
        "instruction=instruction, input=context, response=response": str(data),
        "question=question, response=answer": str(data),
    }
    assert [f"columns of {data}: {words}" for words in summary.columns] == summary.lines()[1:3]


@pytest.mark.parametrize(
    ("refused", "reason"),
    [({"chat_template": "{{ raise_exception('never') }}"}, "150 left template refused"), ({}, "150 left overlong")],
)
def test_data_of_which_a_pair_can_use_nothing_is_no_success(options, tmp_path, refused, reason):
    """Nobody caches a teacher for a night over it; what was written stays for other pairs, and says so again."""
    chats = [{"messages": [{"role": role, "content": row[name]} for role, name in TURNS]} for row in rows(150)]
    data = write_jsonl(tmp_path / "rows.jsonl", chats if refused else rows(150))
    teacher = save_byte_level(tmp_path / "bytes", **refused)
    useless = replace(options, data=str(data), teachers=(str(teacher),), teacher_max_length=None if refused else 2)
    useless = replace(useless, overlong="skip")
    for _ in range(2):
        with pytest.raises(SourceError, match=f"no example is of use to .* \\({reason}\\); mend the data") as caught:
            align(useless, Reporter())
        assert "\n" not in str(caught.value)


TURNS = (("user", "prompt"), ("assistant", "response"))
