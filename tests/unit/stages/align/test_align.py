"""The stage: what it writes is right, the same whoever runs it, and used again where it is there."""

import hashlib
import json
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sra_data.corpus.token_offsets import TokenReader
from sra_data.corpus.tokenization import SideTokenizer
from sra_data.errors import ShardError, TokenizerError
from sra_data.shards.store import ShardSet, load_vocabulary, sides_of
from sra_data.stages.align import batches as align_batches
from sra_data.stages.align import cutting as align_cutting
from sra_data.stages.align import pairs as align_pairs
from sra_data.stages.align import parts as align_parts
from sra_data.stages.align import plan as align_plan
from sra_data.stages.align import units as align_units
from sra_data.stages.align.cutting import threads
from sra_data.stages.align.options import AlignOptions
from sra_data.stages.align.stage import align, align_with
from sra_data.terminal import Reporter
from tests.unit.stages.align_worlds import rows, write_jsonl


def test_every_row_is_there_with_spans_that_cover_the_same_characters(options, read_all):
    summary = align(options, Reporter())
    found = read_all(options.out)
    ids = [row["id"] for row in rows(150)]
    assert [row.id for row in found.examples] == [row.id for row in found.teacher] == ids
    assert [row.id for row in found.spans] == [row.id for row in found.student] == ids
    teacher, student = SideTokenizer.load(options.teachers[0]), SideTokenizer.load(options.students[0])
    spans = 0
    for number, source in enumerate(rows(150)):
        example, left, right, pair = (
            column[number] for column in (found.examples, found.teacher, found.student, found.spans)
        )
        text = source["prompt"] + source["response"]
        assert (example.prompt, example.response, example.chat) == (source["prompt"], source["response"], None)
        assert example.num_bytes == len(source["response"].encode())
        assert left.text is right.text is None
        assert left.response_ranges.tolist() == right.response_ranges.tolist() == [[len(source["prompt"]), len(text)]]
        assert teacher.tokenizer.decode(left.ids).startswith(text)
        assert student.tokenizer.decode(right.ids, skip_special_tokens=True) == text
        for side, tokenizer in ((left, teacher), (right, student)):
            assert side.ids[-1] == tokenizer.eos_id
            assert side.label_spans[-1][1] == len(side.ids)
            assert (side.kinds == 2).tolist() == [token in tokenizer.tokenizer.all_special_ids for token in side.ids]
        ends = left.ends[pair.teacher_spans[:, 1] - 1]
        assert np.array_equal(ends, right.ends[pair.student_spans[:, 1] - 1])
        assert np.all(np.diff(ends) > 0)
        assert ends[-1] == len(text)
        spans += len(ends)
    assert summary.pairs[0].num_spans == spans
    assert summary.pairs[0].statuses == {"ok": 150}
    assert summary.units > 3
    assert 0.95 < summary.pairs[0].covered <= 1.0


def test_the_split_is_by_prompt_and_dev_data_overrules_it(options, read_all, tmp_path):
    summary = align(options, Reporter())
    examples = read_all(options.out).examples
    assert 10 < sum(row.split == "dev" for row in examples) == summary.num_dev < 60
    dev = write_jsonl(tmp_path / "dev.jsonl", [{"prompt": "p", "response": "r"}, {"prompt": "q", "response": "s"}])
    align(replace(options, dev_data=str(dev), out=str(tmp_path / "other")), Reporter())
    examples = read_all(str(tmp_path / "other")).examples
    assert [row.id for row in examples if row.split == "dev"] == ["00000150", "00000151"]
    assert len(examples) == 152


def test_any_number_of_workers_writes_the_same_bytes(options, tmp_path, contents):
    align(options, Reporter())
    several = replace(options, num_workers=2, out=str(tmp_path / "several"))
    align(several, Reporter())
    assert contents(options.out) == contents(several.out)


def test_batches_do_not_change_what_is_written(options, tmp_path, monkeypatch, contents):
    align(options, Reporter())
    monkeypatch.setattr(align_batches, "ROWS_PER_BATCH", 7)
    align(replace(options, out=str(tmp_path / "other")), Reporter())
    assert contents(options.out) == contents(tmp_path / "other")


@pytest.mark.parametrize(("rows_per_cut", "text_per_cut"), [(1, 10**9), (45, 10**9), (10**9, 3_000), (10**9, 10**9)])
def test_how_many_texts_are_cut_at_once_does_not_change_what_is_written(
    options, rows_per_cut, text_per_cut, tmp_path, monkeypatch, contents
):
    align(options, Reporter())
    monkeypatch.setattr(align_cutting, "ROWS_PER_CUT", rows_per_cut)
    monkeypatch.setattr(align_cutting, "TEXT_BYTES_PER_CUT", text_per_cut)
    align(replace(options, out=str(tmp_path / "other")), Reporter())
    assert contents(options.out) == contents(tmp_path / "other")


def test_rows_kept_from_the_scan_are_those_that_would_be_read_again(options, tmp_path, monkeypatch, contents):
    align(options, Reporter())
    monkeypatch.setattr(align_plan, "KEPT_TEXT_BYTES", 0)
    align(replace(options, out=str(tmp_path / "other")), Reporter())
    assert contents(options.out) == contents(tmp_path / "other")


@pytest.fixture
def written(monkeypatch) -> list[tuple[str, int]]:
    """(folder, part) of every part that is written."""
    done = []
    original = align_units.write_columns

    def write(folder, unit, *rest, notes):
        done.append((folder.name, unit.part))
        return original(folder, unit, *rest, notes=notes)

    monkeypatch.setattr(align_units, "write_columns", write)
    return done


def test_a_rerun_does_exactly_what_is_missing(options, contents, written):
    align(options, Reporter())
    before = contents(options.out)
    out = Path(options.out)
    alignment = next((out / "alignments").iterdir())
    side = sorted((out / "sides").iterdir())[0]
    (alignment / "part-00001.receipt.json").unlink()
    (out / "corpus" / "part-00002.parquet").unlink()
    (side / "part-00001.parquet").unlink()
    (side / "part-00003.receipt.json").unlink()
    written.clear()
    summary = align(options, Reporter())
    assert sorted(written) == sorted([("corpus", 2), (alignment.name, 1), (side.name, 1), (side.name, 3)])
    assert contents(options.out) == before
    assert summary.pairs[0].num_spans > 0
    written.clear()
    assert align(options, Reporter()).lines()[-1] == "nothing was left to do"
    assert written == []


def test_units_of_an_array_of_jobs_add_up_to_the_same_folder(options, tmp_path, read_all, contents):
    align(options, Reporter())
    array = replace(options, out=str(tmp_path / "array"))
    first = align(replace(array, units="0:2"), Reporter())
    assert first.units_missing == first.units - 2
    assert "still missing" in first.lines()[-1]
    with pytest.raises(ShardError, match="unfinished"):
        read_all(array.out)
    last = align(replace(array, units="2:"), Reporter())
    assert last.units_missing == 0
    assert contents(options.out) == contents(array.out)


def without_manifest(files: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in files.items() if name != "manifest.json"}


def test_a_second_student_adds_a_side_and_an_alignment_and_changes_nothing_else(options, world, contents, written):
    align(options, Reporter())
    before = without_manifest(contents(options.out))
    written.clear()
    summary = align(replace(options, students=(str(world / "chatty"),)), Reporter())
    after = without_manifest(contents(options.out))
    assert {name: after[name] for name in before} == before
    added = {str(Path(name).parent) for name in after if name not in before}
    pair = summary.pairs[0]
    assert added == {f"sides/{pair.student}", f"alignments/{pair.alignment}"}
    assert {folder for folder, _ in written} == {pair.student, pair.alignment}
    with ShardSet.open(options.out) as shards:
        assert [name.rpartition("-")[0] for name in shards.manifest.names("sides")] == ["bytes", "chatty", "pieces"]
        assert len(shards.manifest.pairs) == 2
        with pytest.raises(
            ShardError, match=r"2 students \(there are pieces-.*, chatty-.*\); choose one with --student"
        ):
            shards.choose_student()
        assert shards.choose_student("chatty") == shards.choose_student(str(world / "chatty")) == pair.student


def test_several_teachers_and_students_at_once_write_what_one_after_the_other_does(options, world, tmp_path, contents):
    both = replace(options, teachers=(str(world / "bytes"), str(world / "chatty")), out=str(tmp_path / "both"))
    summary = align(both, Reporter())
    assert [pair.teacher.rpartition("-")[0] for pair in summary.pairs] == ["bytes", "chatty"]
    assert len({pair.student for pair in summary.pairs}) == 1
    for teacher in both.teachers:
        align(replace(options, teachers=(teacher,)), Reporter())
    assert contents(both.out).keys() == contents(options.out).keys()
    assert without_manifest(contents(both.out)) == without_manifest(contents(options.out))


def test_swapping_teacher_and_student_makes_nothing_and_swaps_the_pairs(options, contents, written, read_all):
    align(options, Reporter())
    before = without_manifest(contents(options.out))
    straight = read_all(options.out).spans
    written.clear()
    lengths = {"teacher_max_length": options.student_max_length, "student_max_length": options.teacher_max_length}
    swapped = align(replace(options, teachers=options.students, students=options.teachers, **lengths), Reporter())
    assert written == []
    assert without_manifest(contents(options.out)) == before
    back = read_all(options.out, teacher="pieces", student="bytes").spans
    for one, other in zip(straight, back, strict=True):
        assert np.array_equal(one.student_spans, other.teacher_spans)
        assert np.array_equal(one.teacher_spans, other.student_spans)
    assert swapped.pairs[0].teacher_tokens_per_span > 0


def test_another_model_with_a_known_tokenizer_finds_its_side(options, world, tmp_path, contents, written):
    align(options, Reporter())
    before = without_manifest(contents(options.out))
    written.clear()
    (tmp_path / "larger").mkdir()
    for file in (world / "bytes").iterdir():
        (tmp_path / "larger" / file.name).write_bytes(file.read_bytes())
    summary = align(replace(options, teachers=(str(tmp_path / "larger"),)), Reporter())
    assert written == []
    assert without_manifest(contents(options.out)) == before
    assert summary.pairs[0].teacher.startswith("bytes-")
    with ShardSet.open(options.out) as shards:
        models = [model["name"] for model in shards.models_of(summary.pairs[0].teacher, "teacher")]
        assert models == [str(world / "bytes"), str(tmp_path / "larger")]
        assert shards.choose_teacher_side(str(tmp_path / "larger")) == summary.pairs[0].teacher


def test_a_tokenizer_aligned_with_itself_is_one_side_and_one_span_per_closing_token(options, read_all):
    align(replace(options, students=options.teachers), Reporter())
    with ShardSet.open(options.out) as shards:
        (side,) = shards.manifest.names("sides")
        assert sides_of(shards.manifest.names("alignments")[0]) == (side, side)
    found = read_all(options.out)
    for side_row, pair in zip(found.teacher, found.spans, strict=True):
        assert np.array_equal(pair.student_spans, pair.teacher_spans)
        (start, stop), closes = side_row.response_spans[0], side_row.kinds == 1
        inside = np.flatnonzero(closes[start:stop]) + start
        first_shared = inside[side_row.ends[inside] > side_row.response_ranges[0, 0]]
        assert len(pair.student_spans) >= len(first_shared) - 1
        assert (pair.student_spans[:, 1] - 1).tolist() == first_shared.tolist()[-len(pair.student_spans) :]


def test_alignments_with_other_options_stand_beside_the_first(options, written):
    first = align(options, Reporter()).pairs[0]
    written.clear()
    word = align(replace(options, boundaries="word", max_spans=8), Reporter()).pairs[0]
    assert word.alignment == f"{first.alignment}~word-max-spans-8"
    assert {folder for folder, _ in written} == {word.alignment}
    assert word.num_spans < first.num_spans
    with ShardSet.open(options.out) as shards:
        assert shards.pair(student=first.student, teacher=first.teacher).name == first.alignment
        named = shards.pair(student=first.student, teacher=first.teacher, name=word.alignment)
        assert named.name == word.alignment


def test_the_same_rows_in_another_file_go_on_in_the_same_folder(options, tmp_path, read_all):
    align(replace(options, units="0:1"), Reporter())
    (tmp_path / "moved.json").write_text(json.dumps(rows(150), indent=1))
    summary = align(replace(options, data=str(tmp_path / "moved.json")), Reporter())
    assert summary.units_missing == 0
    found = read_all(options.out)
    assert [found.text(row) for row in range(150)] == [row["prompt"] + row["response"] for row in rows(150)]


def test_the_shared_vocabulary_is_stored_for_training(options):
    summary = align(options, Reporter())
    pair = summary.pairs[0]
    stored = load_vocabulary(Path(options.out, "alignments", pair.alignment))
    teacher, student = SideTokenizer.load(options.teachers[0]), SideTokenizer.load(options.students[0])
    sides = (teacher, student) if pair.teacher < pair.student else (student, teacher)
    assert stored.end_of_sequence == tuple(side.eos_id for side in sides)
    assert len(stored.left_ids) == pair.shared_ids > 50
    for left, right in zip(stored.left_ids.tolist(), stored.right_ids.tolist(), strict=True):
        assert sides[0].vocabulary.byte_strings[left] == sides[1].vocabulary.byte_strings[right]
        assert stored.left_of_right[right] == left
        assert stored.right_of_left[left] == right
    with ShardSet.open(options.out) as shards:
        seen = shards.pair(student=pair.student, teacher=pair.teacher).vocabulary()
    assert seen.end_of_sequence == (student.eos_id, teacher.eos_id)
    for student_id, teacher_id in zip(seen.student_ids.tolist(), seen.teacher_ids.tolist(), strict=True):
        assert student.vocabulary.byte_strings[student_id] == teacher.vocabulary.byte_strings[teacher_id]


def test_where_ids_go_among_the_other_sides_is_stored_for_both_directions(options):
    pair = align(options, Reporter()).pairs[0]
    teacher, student = SideTokenizer.load(options.teachers[0]), SideTokenizer.load(options.students[0])
    with ShardSet.open(options.out) as shards:
        images = shards.pair(student=pair.student, teacher=pair.teacher).images()
        back = shards.pair(student=pair.teacher, teacher=pair.student).images()
    of_teacher, of_student = teacher.vocabulary.byte_strings, student.vocabulary.byte_strings
    assert len(images.byte_prefix) == len(images.first_piece) == len(of_teacher)
    assert len(back.byte_prefix) == len(of_student)
    for piece, prefix, first, byte in zip(
        of_teacher, images.byte_prefix, images.first_piece, images.teacher_first_byte, strict=True
    ):
        for image in (prefix, first):
            assert image == -1 or piece.startswith(of_student[image])
        assert byte == (piece[0] if piece else -1)
    assert (images.byte_prefix >= 0).mean() > 0.9  # a student with byte fallback has every byte
    assert np.array_equal(images.student_first_byte, back.teacher_first_byte)


def chats(folder: Path) -> Path:
    turns = [("user", "Hi"), ("assistant", " Hello 😀 "), ("user", "And?"), ("assistant", "Bye.")]
    messages = [{"role": role, "content": content} for role, content in turns]
    special = [{"role": "user", "content": "<|turn|>"}, {"role": "assistant", "content": "x"}]
    return write_jsonl(
        folder / "chat.jsonl", [{"messages": messages}, {"messages": special}, {"prompt": "a", "response": "b"}]
    )


def test_chats_are_rendered_by_each_side_and_every_turn_is_aligned(options, world, tmp_path, read_all):
    given = replace(options, teachers=(str(world / "chatty"),), data=str(chats(tmp_path)))
    summary = align(given, Reporter())
    found = read_all(options.out)
    assert json.loads(found.examples[0].chat)["messages"][1] == {"role": "assistant", "content": " Hello 😀 "}
    assert found.examples[0].num_bytes == len(" Hello 😀 Bye.".encode())
    teacher_text, student_text = found.text(0), found.text(0, "student")
    assert teacher_text.startswith("<|turn|>user\nHi<|end|>\n<|turn|>assistant\nHello 😀<|end|>")
    assert student_text.startswith("### User:\nHi\n\n### Assistant:\n Hello 😀 </s>")
    assert [teacher_text[a:b] for a, b in found.teacher[0].response_ranges] == ["Hello 😀", "Bye."]
    assert found.teacher[0].response_turns.tolist() == found.student[0].response_turns.tolist() == [1, 3]
    assert len(found.student[0].label_spans) == 2
    pair = found.spans[0]
    assert len(pair.teacher_spans) > 2
    for (_, stop), (_, student_stop) in zip(pair.teacher_spans, pair.student_spans, strict=True):
        teacher_end, student_end = found.teacher[0].ends[stop - 1], found.student[0].ends[student_stop - 1]
        assert teacher_text[teacher_end - 1] == student_text[student_end - 1]
    assert found.student[1].status == "ok"  # to that tokenizer it is text
    skipped = found.teacher[1]
    assert skipped.status == "skipped:special_token_text"
    assert len(skipped.ids) == len(found.spans[1].student_spans) == 0
    assert found.spans[1].status.endswith("special_token_text")
    assert summary.pairs[0].statuses == {"ok": 2, found.spans[1].status: 1}
    assert found.student[2].text is None


def test_chats_are_aligned_from_sides_on_disk_as_from_sides_cut_now(options, world, tmp_path, contents):
    given = replace(options, teachers=(str(world / "chatty"),), data=str(chats(tmp_path)))
    summary = align(given, Reporter())
    before = contents(options.out)
    folder = Path(options.out, "alignments", summary.pairs[0].alignment)
    for path in folder.glob("part-*"):
        path.unlink()
    align(given, Reporter())
    assert contents(options.out) == before


def test_what_is_cut_or_skipped_is_counted(options, tmp_path, read_all):
    cut = align(replace(options, teacher_max_length=60, student_max_length=90), Reporter())
    by_name = {side.side: side for side in cut.sides}
    assert by_name[cut.pairs[0].teacher].cut["overlong_truncated"] > 20
    assert "overlong truncated" in "\n".join(cut.lines())
    found = read_all(options.out)
    assert max(len(row.ids) for row in found.teacher) == 60
    assert max(len(row.ids) for row in found.student) == 90
    skipped = align(replace(options, teacher_max_length=60, overlong="skip", out=str(tmp_path / "skip")), Reporter())
    found = read_all(str(tmp_path / "skip"))
    lost = sum(row.status == "skipped:overlong" for row in found.teacher)
    assert lost > 20
    which = "left" if skipped.pairs[0].teacher < skipped.pairs[0].student else "right"
    assert skipped.pairs[0].statuses[f"skipped:{which}_overlong"] == lost
    assert [row.status == "ok" for row in found.spans] == [row.status == "ok" for row in found.teacher]


def test_a_tokenizers_limit_changes_neither_corpus_nor_the_other_side_nor_any_border(options, tmp_path, contents):
    whole = align(options, Reporter())
    short = align(replace(options, student_max_length=40, out=str(tmp_path / "short")), Reporter())
    for folder in ("corpus", f"sides/{whole.pairs[0].teacher}"):
        assert contents(Path(options.out, folder)) == contents(tmp_path / "short" / folder)
    with ShardSet.open(options.out) as one, ShardSet.open(tmp_path / "short") as other:
        had, got = (shards.side(summary.pairs[0].student).index for shards, summary in ((one, whole), (other, short)))
        assert had.part.tolist() == got.part.tolist()
        assert had.row_group.tolist() == got.row_group.tolist()


def test_an_example_of_a_million_characters_is_cut_and_aligned(options, world, tmp_path, read_all):
    data = write_jsonl(tmp_path / "long.jsonl", [{"prompt": "p\n", "response": "word 😀 " * 140_000}, *rows(3)])
    summary = align(replace(options, students=(str(world / "chatty"),), data=str(data)), Reporter())
    assert summary.pairs[0].statuses == {"ok": 4}
    assert [side.cut for side in summary.sides] == [{"overlong_truncated": 1}] * 2
    found = read_all(options.out)
    assert len(found.text(0)) == 980_002
    assert len(found.spans[0].student_spans) > 300


def test_rows_marked_test_are_left_out_and_counted(options, tmp_path):
    marked = [{**row, "split": ("train", "test", "validation")[number % 3]} for number, row in enumerate(rows(30))]
    data = write_jsonl(tmp_path / "marked.jsonl", marked)
    summary = align(replace(options, data=str(data)), Reporter())
    assert (summary.num_examples, summary.num_dev, summary.left_out) == (20, 10, {"test_split": 10})


def test_the_built_in_corpus_is_the_default(options, monkeypatch):
    splits = ["train"] * 6 + ["dev", "test"]
    records = [{**row, "split": splits[number % 8]} for number, row in enumerate(rows(40))]
    monkeypatch.setattr("sra_data.corpus.sources.builtin_records", lambda split: records)
    assert AlignOptions(("t",), ("s",)).data == "builtin"
    summary = align(replace(options, data="builtin"), Reporter())
    assert (summary.num_examples, summary.num_dev, summary.left_out) == (35, 5, {"test_split": 5})


def test_a_failing_unit_publishes_nothing_of_itself_and_the_rerun_goes_on(options, monkeypatch):
    original = align_pairs.segments_for
    calls = []

    def fails_later(**arguments):
        calls.append(1)
        if len(calls) > 4:
            raise ShardError("the disk is full; free some")
        return original(**arguments)

    monkeypatch.setattr(align_pairs, "segments_for", fails_later)
    with pytest.raises(ShardError, match="the disk is full"):
        align(options, Reporter())
    monkeypatch.setattr(align_pairs, "segments_for", original)
    assert not list(Path(options.out).rglob("*.tmp"))
    assert align(options, Reporter()).units_missing == 0


def test_what_threads_have_not_begun_ends_with_the_block_and_errors_come_out():
    begun, go_on = threading.Event(), threading.Event()

    def wait():
        begun.set()
        go_on.wait()

    with threads("one", "other") as pools:
        pools["one"].submit(wait)
        assert begun.wait(10)
        never = pools["one"].submit(int)
        with pytest.raises(ZeroDivisionError):
            pools["other"].submit(divmod, 1, 0).result()
        threading.Timer(0.2, go_on.set).start()
    assert never.cancelled()


@pytest.mark.parametrize("lost_by", ["bytes", "pieces"])
def test_texts_that_cannot_be_located_are_refused_or_skipped_and_counted(options, lost_by, monkeypatch, read_all):
    locate = TokenReader._locate

    def fail(reader, encodings, found, ids, texts, recognise_special, located_by):
        failed = locate(reader, encodings, found, ids, texts, recognise_special, located_by)
        is_odd = reader._name.endswith(lost_by)
        return failed + [row for row, text in enumerate(texts) if is_odd and hash_of(text) % 7 == 0]

    def hash_of(text: str) -> int:
        return hashlib.sha256(text.encode()).digest()[0]

    monkeypatch.setattr(TokenReader, "_locate", fail)
    with pytest.raises(TokenizerError, match=f"{lost_by} cannot be matched to .*--on-invalid skip"):
        align(options, Reporter())
    summary = align(replace(options, on_invalid="skip"), Reporter())
    role, other = ("teacher", "student") if lost_by == "bytes" else ("student", "teacher")
    found = read_all(options.out)
    lost = [hash_of(found.text(row)) % 7 == 0 for row in range(150)]
    status = f"skipped:{'left' if lost_by == 'bytes' else 'right'}_unlocatable"  # bytes-... < pieces-...
    assert 0 < sum(lost) == summary.pairs[0].statuses[status]
    for row, is_lost in enumerate(lost):
        side = getattr(found, role)[row]
        assert side.status == ("skipped:unlocatable" if is_lost else "ok")
        assert (len(side.ids) == 0) == is_lost
        assert len(getattr(found, other)[row].ids) > 0
        assert found.spans[row].status == (status if is_lost else "ok")


def test_row_groups_of_text_hold_as_many_bytes_as_they_may_and_are_the_same_in_all_folders(options, monkeypatch):
    monkeypatch.setattr(align_parts, "TEXT_BYTES_PER_GROUP", 700)
    align(options, Reporter())
    with ShardSet.open(options.out) as shards:
        corpus = shards.corpus.index
        starts = corpus.group_starts
        for section in shards.manifest.sections[1:]:
            group, _, name = section.partition("/")
            reader = shards.side(name) if group == "sides" else shards.alignment(name)
            assert reader.index.group_starts.tolist() == starts.tolist()
        sizes = np.add.reduceat(corpus.num_bytes, starts[:-1])
        parts = corpus.part[starts[:-1]]
    assert sizes.max() <= 700
    first = corpus.num_bytes[starts[1:-1]]  # of the next group: it would not have fitted
    assert (sizes[:-1] + first > 700)[parts[:-1] == parts[1:]].all()
    assert len(sizes) > len(set(parts.tolist()))


def test_real_tokenizers_on_real_text(shared_folder, tmp_path):
    lines = (shared_folder / "data" / "dolly" / "train.jsonl").read_text("utf-8").splitlines(keepends=True)[:60]
    (tmp_path / "dolly.jsonl").write_text("".join(lines), "utf-8")
    names = {name: str(shared_folder / "tokenizers" / name) for name in ("gpt2", "qwen1.5-1.8b", "tinyllama-1.1b")}
    tokenizers = {name: SideTokenizer.load(name) for name in names.values()}
    given = AlignOptions(
        (names["qwen1.5-1.8b"], names["tinyllama-1.1b"]),
        (names["gpt2"],),
        str(tmp_path / "dolly.jsonl"),
        out=str(tmp_path / "shards"),
    )
    summary = align_with(given, Reporter(), tokenizers)
    for pair in summary.pairs:
        assert pair.statuses == {"ok": 60}
        assert pair.covered > 0.95
        assert pair.student_tokens_per_span < 1.1
    assert [pair.shared_ids for pair in summary.pairs] == [42_256, 18_207]
