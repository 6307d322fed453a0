"""The stage: what it writes is right and the same whoever runs it; bad input leaves nothing behind."""

import hashlib
import json
import os
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sra_data.corpus.token_offsets import TokenReader
from sra_data.corpus.tokenization import SideTokenizer
from sra_data.errors import ConfigError, ShardError, SourceError, TokenizerError
from sra_data.shards.store import ShardSet
from sra_data.shards.vocabulary import load_vocabulary
from sra_data.stages.align import plan as align_plan
from sra_data.stages.align import units as align_units
from sra_data.stages.align.stage import AlignOptions, TokenizerPair, align, align_with, select_units
from sra_data.terminal import Reporter
from tests.unit.stages.align_worlds import CHAT_TEMPLATE, rows, save_byte_level, save_unigram, write_jsonl


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    save_byte_level(folder / "bytes")
    save_byte_level(folder / "chatty", vocab_size=450, chat_template=CHAT_TEMPLATE)
    save_unigram(folder / "pieces")
    write_jsonl(folder / "data.jsonl", rows(150))
    return folder


@pytest.fixture
def options(world, tmp_path, monkeypatch) -> AlignOptions:
    monkeypatch.setattr(align_plan, "POSITIONS_PER_PART", 1500)
    monkeypatch.setattr(align_units, "ROWS_PER_BATCH", 16)
    return AlignOptions(
        teacher=str(world / "bytes"),
        student=str(world / "pieces"),
        data=str(world / "data.jsonl"),
        out=str(tmp_path / "shards"),
        dev_share=0.2,
        num_workers=1,
    )


def contents(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def read_all(out: str, name: str | None = None):
    with ShardSet.open(out, need_teacher=False) as shards:
        everything = range(len(shards.corpus))
        return shards.corpus.read(everything), shards.alignment(name).read(everything)


def test_every_row_is_there_with_spans_that_cover_the_same_characters(options):
    summary = align(options, Reporter())
    corpus, alignments = read_all(options.out)
    assert [row.id for row in corpus] == [row.id for row in alignments] == [row["id"] for row in rows(150)]
    teacher, student = SideTokenizer.load(options.teacher), SideTokenizer.load(options.student)
    spans = 0
    for source, page, alignment in zip(rows(150), corpus, alignments, strict=True):
        assert page.text == source["prompt"] + source["response"]
        assert page.response_ranges.tolist() == [[len(source["prompt"]), len(page.text)]]
        assert teacher.tokenizer.decode(page.teacher_ids).startswith(page.text)
        assert student.tokenizer.decode(alignment.student_ids, skip_special_tokens=True) == page.text
        assert page.teacher_ids[-1] == teacher.eos_id
        assert alignment.student_ids[-1] == student.eos_id
        assert alignment.label_spans[-1][1] == len(alignment.student_ids)
        ends = page.teacher_ends[alignment.teacher_spans[:, 1] - 1]
        assert np.array_equal(ends, alignment.student_ends[alignment.student_spans[:, 1] - 1])
        assert np.all(np.diff(ends) > 0)
        assert ends[-1] == len(page.text)
        spans += len(ends)
    assert summary.num_spans == spans
    assert summary.statuses == {"ok": 150}
    assert summary.units > 3
    assert 0.95 < summary.covered <= 1.0


def test_the_split_is_by_prompt_and_dev_data_overrules_it(options, world, tmp_path):
    summary = align(options, Reporter())
    corpus, _ = read_all(options.out)
    assert 10 < sum(row.split == "dev" for row in corpus) == summary.num_dev < 60
    dev = write_jsonl(tmp_path / "dev.jsonl", [{"prompt": "p", "response": "r"}, {"prompt": "q", "response": "s"}])
    align(replace(options, dev_data=str(dev), out=str(tmp_path / "other")), Reporter())
    corpus, _ = read_all(str(tmp_path / "other"))
    assert [row.id for row in corpus if row.split == "dev"] == ["00000150", "00000151"]
    assert len(corpus) == 152


def test_any_number_of_workers_writes_the_same_bytes(options, tmp_path):
    align(options, Reporter())
    several = replace(options, num_workers=2, out=str(tmp_path / "several"))
    align(several, Reporter())
    assert contents(Path(options.out)) == contents(Path(several.out))


def test_batches_do_not_change_what_is_written(options, tmp_path, monkeypatch):
    align(options, Reporter())
    monkeypatch.setattr(align_units, "ROWS_PER_BATCH", 7)
    align(replace(options, out=str(tmp_path / "other")), Reporter())
    assert contents(Path(options.out)) == contents(tmp_path / "other")


def test_a_rerun_does_exactly_what_is_missing(options, monkeypatch):
    align(options, Reporter())
    before = contents(Path(options.out))
    alignment = next(Path(options.out, "alignments").iterdir())
    (alignment / "part-00001.receipt.json").unlink()
    (Path(options.out) / "corpus" / "part-00002.parquet").unlink()
    done = []
    original = align_units.write_columns

    def write(folder, unit, *rest, notes):
        done.append((folder.name, unit.part))
        return original(folder, unit, *rest, notes=notes)

    monkeypatch.setattr(align_units, "write_columns", write)
    summary = align(options, Reporter())
    assert sorted(done) == [("corpus", 2), (alignment.name, 1)]
    assert contents(Path(options.out)) == before
    assert summary.num_spans > 0
    done.clear()
    assert align(options, Reporter()).lines()[-1] == "nothing was left to do"
    assert done == []


def test_units_of_an_array_of_jobs_add_up_to_the_same_folder(options, tmp_path):
    align(options, Reporter())
    array = replace(options, out=str(tmp_path / "array"))
    first = align(replace(array, units="0:2"), Reporter())
    assert first.units_missing == first.units - 2
    assert "still missing" in first.lines()[-1]
    with pytest.raises(ShardError, match="unfinished"):
        read_all(array.out)
    last = align(replace(array, units="2:"), Reporter())
    assert last.units_missing == 0
    assert contents(Path(options.out)) == contents(Path(array.out))


def test_a_second_student_adds_a_folder_and_changes_nothing_else(options, world):
    align(options, Reporter())
    before = contents(Path(options.out))
    summary = align(replace(options, student=str(world / "chatty")), Reporter())
    after = contents(Path(options.out))
    assert {name: after[name] for name in before if name != "manifest.json"} == {
        name: value for name, value in before.items() if name != "manifest.json"
    }
    assert summary.alignment.startswith("alignments/chatty-")
    with ShardSet.open(options.out, need_teacher=False) as shards:
        assert [name.rpartition("-")[0] for name in shards.alignments] == ["chatty", "pieces"]
        assert shards.alignment("pieces").root != shards.alignment("chatty").root


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"teacher": "chatty"}, "teacher tokenizer and template: had"),
        ({"data": "other.jsonl"}, "corpus: had"),
        ({"teacher_max_length": 100}, "teacher max length: had 512, got 100"),
        ({"overlong": "skip"}, "overlong: had truncate, got skip"),
        ({"dev_share": 0.5}, "corpus: had"),
    ],
)
def test_other_inputs_in_one_folder_are_refused_field_by_field(options, world, change, named):
    write_jsonl(world / "other.jsonl", rows(150)[::-1])
    align(options, Reporter())
    before = contents(Path(options.out))
    value = {name: str(world / item) if name in ("teacher", "data") else item for name, item in change.items()}
    with pytest.raises(ShardError, match=named) as caught:
        align(replace(options, **value), Reporter())
    assert "\n" not in str(caught.value)
    assert contents(Path(options.out)) == before


def test_the_same_rows_in_another_file_go_on_in_the_same_folder(options, world, tmp_path):
    align(replace(options, units="0:1"), Reporter())
    (tmp_path / "moved.json").write_text(json.dumps(rows(150), indent=1))
    summary = align(replace(options, data=str(tmp_path / "moved.json")), Reporter())
    assert summary.units_missing == 0
    assert [row.text for row in read_all(options.out)[0]] == [row["prompt"] + row["response"] for row in rows(150)]


def test_the_shared_vocabulary_is_stored_for_training(options):
    summary = align(options, Reporter())
    folder = next(Path(options.out, "alignments").iterdir())
    stored = load_vocabulary(folder)
    teacher, student = SideTokenizer.load(options.teacher), SideTokenizer.load(options.student)
    assert stored.end_of_sequence == (student.eos_id, teacher.eos_id)
    assert len(stored.student_ids) == summary.shared_ids > 50
    for student_id, teacher_id in zip(stored.student_ids.tolist(), stored.teacher_ids.tolist(), strict=True):
        assert student.vocabulary.byte_strings[student_id] == teacher.vocabulary.byte_strings[teacher_id]
        assert stored.student_of_teacher[teacher_id] == student_id


def test_chats_are_rendered_by_each_side_and_every_turn_is_aligned(options, world, tmp_path):
    turns = [("user", "Hi"), ("assistant", " Hello 😀 "), ("user", "And?"), ("assistant", "Bye.")]
    messages = [{"role": role, "content": content} for role, content in turns]
    special = [{"role": "user", "content": "<|turn|>"}, {"role": "assistant", "content": "x"}]
    data = write_jsonl(
        tmp_path / "chat.jsonl", [{"messages": messages}, {"messages": special}, {"prompt": "a", "response": "b"}]
    )
    summary = align(replace(options, teacher=str(world / "chatty"), data=str(data)), Reporter())
    corpus, alignments = read_all(options.out)
    assert corpus[0].text.startswith("<|turn|>user\nHi<|end|>\n<|turn|>assistant\nHello 😀<|end|>")
    assert alignments[0].student_text.startswith("### User:\nHi\n\n### Assistant:\n Hello 😀 </s>")
    assert [corpus[0].text[a:b] for a, b in corpus[0].response_ranges] == ["Hello 😀", "Bye."]
    assert len(alignments[0].label_spans) == 2
    covered = [
        (corpus[0].teacher_ends[stop - 1], alignments[0].student_ends[student_stop - 1])
        for (_, stop), (_, student_stop) in zip(alignments[0].teacher_spans, alignments[0].student_spans, strict=True)
    ]
    for teacher_end, student_end in covered:
        assert corpus[0].text[teacher_end - 1] == alignments[0].student_text[student_end - 1]
    assert corpus[1].status == alignments[1].status == "skipped:special_token_text"
    assert len(corpus[1].teacher_ids) == len(alignments[1].student_ids) == 0
    assert summary.statuses == {"ok": 2, "skipped:special_token_text": 1}
    assert alignments[2].student_text is None


def test_what_is_cut_or_skipped_is_counted(options, tmp_path):
    cut = align(replace(options, teacher_max_length=60, student_max_length=90), Reporter())
    assert cut.cut["teacher_overlong_truncated"] > 20
    assert "teacher overlong truncated" in "\n".join(cut.lines())
    corpus, alignments = read_all(options.out)
    assert max(len(row.teacher_ids) for row in corpus) == 60
    assert max(len(row.student_ids) for row in alignments) == 90
    skipped = align(replace(options, teacher_max_length=60, overlong="skip", out=str(tmp_path / "skip")), Reporter())
    assert skipped.statuses["skipped:teacher_overlong"] > 20
    corpus, alignments = read_all(str(tmp_path / "skip"))
    assert [row.status for row in corpus] == [row.status for row in alignments]


def test_a_students_limit_changes_neither_corpus_nor_plan(options, tmp_path):
    align(options, Reporter())
    align(replace(options, student_max_length=40, out=str(tmp_path / "short")), Reporter())
    assert contents(Path(options.out, "corpus")) == contents(tmp_path / "short" / "corpus")


def test_an_example_of_a_million_characters_is_cut_and_aligned(options, world, tmp_path):
    data = write_jsonl(tmp_path / "long.jsonl", [{"prompt": "p\n", "response": "word 😀 " * 140_000}, *rows(3)])
    summary = align(replace(options, student=str(world / "chatty"), data=str(data)), Reporter())
    assert summary.statuses == {"ok": 4}
    assert summary.cut == {"student_overlong_truncated": 1, "teacher_overlong_truncated": 1}
    corpus, alignments = read_all(options.out)
    assert len(corpus[0].text) == 980_002
    assert len(alignments[0].student_spans) > 300


def test_rows_marked_test_are_left_out_and_counted(options, tmp_path):
    marked = [{**row, "split": ("train", "test", "validation")[number % 3]} for number, row in enumerate(rows(30))]
    data = write_jsonl(tmp_path / "marked.jsonl", marked)
    summary = align(replace(options, data=str(data)), Reporter())
    assert (summary.num_examples, summary.num_dev, summary.left_out) == (20, 10, {"test_split": 10})
    only = write_jsonl(tmp_path / "only.jsonl", [row for row in marked if row["split"] == "test"])
    with pytest.raises(SourceError, match=r"no example is left to align \(10 test split; rows marked test are never"):
        align(replace(options, data=str(only), out=str(tmp_path / "none")), Reporter())
    assert not (tmp_path / "none").exists()


def test_the_built_in_corpus_is_the_default(options, monkeypatch):
    splits = ["train"] * 6 + ["dev", "test"]
    records = [{**row, "split": splits[number % 8]} for number, row in enumerate(rows(40))]
    monkeypatch.setattr("sra_data.corpus.sources.builtin_records", lambda split: records)
    assert AlignOptions("t", "s").data == "builtin"
    summary = align(replace(options, data="builtin"), Reporter())
    assert (summary.num_examples, summary.num_dev, summary.left_out) == (35, 5, {"test_split": 5})


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


def test_bad_rows_can_be_skipped_and_are_counted(options, tmp_path):
    data = tmp_path / "bad.jsonl"
    data.write_text(
        '{"prompt": "a", "response": ""}\n{"prompt": "a", "resp\n' + '{"prompt": "a\\ud800", "response": "b c"}\n' * 3
    )
    summary = align(replace(options, data=str(data), on_invalid="skip"), Reporter())
    assert summary.num_examples == 3
    assert summary.left_out == {"empty_response": 1, "invalid_json": 1, "lone_surrogates": 3}
    assert [row.id for row in read_all(options.out)[0]] == ["00000002", "00000003", "00000004"]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"boundaries": "letter"}, ConfigError, "--boundaries letter: not known; use one of token, word"),
        ({"on_invalid": "x"}, ConfigError, "--on-invalid x: not known"),
        ({"dev_share": 1.0}, ConfigError, r"--dev-share 1.0: must be at least 0 and below 1"),
        ({"num_workers": 0}, ConfigError, "--workers 0: must be at least 1"),
        ({"student_max_length": 1}, ConfigError, "--student-max-length 1: must be at least 2"),
        ({"units": "3"}, ConfigError, "--units 3: not of the form a:b"),
        ({"teacher": "./nowhere"}, TokenizerError, "nowhere"),
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


def test_a_failing_unit_publishes_nothing_of_itself_and_the_rerun_goes_on(options, monkeypatch):
    original = align_units.segments_for
    calls = []

    def fails_later(**arguments):
        calls.append(1)
        if len(calls) > 4:
            raise ShardError("the disk is full; free some")
        return original(**arguments)

    monkeypatch.setattr(align_units, "segments_for", fails_later)
    with pytest.raises(ShardError, match="the disk is full"):
        align(options, Reporter())
    monkeypatch.setattr(align_units, "segments_for", original)
    assert not list(Path(options.out).rglob("*.tmp"))
    assert align(options, Reporter()).units_missing == 0


def test_what_threads_have_not_begun_ends_with_the_block_and_errors_come_out():
    begun, go_on = threading.Event(), threading.Event()

    def wait():
        begun.set()
        go_on.wait()

    with align_units.threads("one", "other") as (one, other):
        one.submit(wait)
        assert begun.wait(10)
        never = one.submit(int)
        with pytest.raises(ZeroDivisionError):
            other.submit(divmod, 1, 0).result()
        threading.Timer(0.2, go_on.set).start()
    assert never.cancelled()


@pytest.mark.parametrize("lost_by", ["bytes", "pieces"])
def test_texts_that_cannot_be_located_are_refused_or_skipped_and_counted(options, lost_by, monkeypatch):
    locate = TokenReader._locate

    def fail(reader, encodings, found, ids, texts, recognise_special):
        failed = locate(reader, encodings, found, ids, texts, recognise_special)
        is_odd = reader._name.endswith(lost_by)
        return failed + [row for row, text in enumerate(texts) if is_odd and hash_of(text) % 7 == 0]

    def hash_of(text: str) -> int:
        return hashlib.sha256(text.encode()).digest()[0]

    monkeypatch.setattr(TokenReader, "_locate", fail)
    with pytest.raises(TokenizerError, match=f"{lost_by} cannot be matched to .*--on-invalid skip"):
        align(options, Reporter())
    summary = align(replace(options, on_invalid="skip"), Reporter())
    side = "teacher" if lost_by == "bytes" else "student"
    corpus, alignments = read_all(options.out)
    lost = [hash_of(row.text) % 7 == 0 for row in corpus]
    assert 0 < sum(lost) == summary.statuses[f"skipped:{side}_unlocatable"]
    for is_lost, page, alignment in zip(lost, corpus, alignments, strict=True):
        assert alignment.status == (f"skipped:{side}_unlocatable" if is_lost else "ok")
        assert (len(alignment.student_ids) == 0) == is_lost
        assert (len(page.teacher_ids) == 0) == (is_lost and side == "teacher")


def test_row_groups_of_text_hold_as_many_positions_as_they_may_in_both_folders(options, monkeypatch):
    monkeypatch.setattr(align_units, "TEXT_POSITIONS_PER_GROUP", 300)
    align(options, Reporter())
    with ShardSet.open(options.out, need_teacher=False) as shards:
        corpus, alignment = shards.corpus.index, shards.alignment().index
        starts = corpus.group_starts
        assert alignment.group_starts.tolist() == starts.tolist()
        positions = np.add.reduceat(corpus.num_positions, starts[:-1])
        parts = corpus.part[starts[:-1]]
    assert positions.max() <= 300
    first = corpus.num_positions[starts[1:-1]]  # of the next group: it would not have fitted
    assert (positions[:-1] + first > 300)[parts[:-1] == parts[1:]].all()
    assert len(positions) > len(set(parts.tolist()))


def test_units_are_selected_half_open():
    assert select_units([*range(5)], "1:3") == [1, 2]
    assert select_units([*range(5)], None) == [*range(5)]


def test_real_tokenizers_on_real_text(shared_folder, tmp_path):
    lines = (shared_folder / "data" / "dolly" / "train.jsonl").read_text("utf-8").splitlines(keepends=True)[:60]
    (tmp_path / "dolly.jsonl").write_text("".join(lines), "utf-8")
    tokenizers = shared_folder / "tokenizers"
    student = SideTokenizer.load(str(tokenizers / "gpt2"))
    shared = {}
    for name in ("qwen1.5-1.8b", "tinyllama-1.1b"):
        teacher = SideTokenizer.load(str(tokenizers / name))
        given = AlignOptions(teacher.name, student.name, str(tmp_path / "dolly.jsonl"), out=str(tmp_path / name))
        summary = align_with(given, Reporter(), TokenizerPair.of(teacher=teacher, student=student, match="bytes"))
        shared[name] = summary.shared_ids
        assert summary.statuses == {"ok": 60}
        assert summary.covered > 0.95
        assert summary.student_tokens_per_span < 1.1
    assert shared["tinyllama-1.1b"] == 18_207
