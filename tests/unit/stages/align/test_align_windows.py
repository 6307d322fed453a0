"""Long texts as windows: every byte learnt once, on every side whole, the same rows for whoever comes later."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sra_data.corpus.tokenization import SideTokenizer
from sra_data.errors import ConfigError, ShardError
from sra_data.shards.schema import SPECIAL
from sra_data.shards.store import Plan, ShardSet, Unit
from sra_data.stages.align import batches as align_batches
from sra_data.stages.align import plan as align_plan
from sra_data.stages.align.stage import align
from sra_data.stages.list import list_shards
from sra_data.terminal import Reporter
from tests.unit.stages.align_worlds import TEXTS, save_byte_level, write_jsonl

WINDOW = re.compile(r"(?P<row>.*)\[(?P<start>\d+):(?P<stop>\d+)\]")
LONGEST = {"teacher": 60, "student": 48}


def document(number: int, length: int) -> str:
    """Every script in turn, in lines and in one."""
    words = (f"{TEXTS[(number * 3 + place) % len(TEXTS)]} {place}" for place in range(length))
    return ("\n" if number % 2 else " ").join(words)


def corpus(folder: Path) -> Path:
    rows: list[dict] = [{"id": f"doc-{number}", "text": document(number, 1 + 4 * number)} for number in range(8)]
    rows.insert(2, {"id": "no-room", "prompt": document(1, 9), "response": document(3, 5)})
    rows.insert(5, {"id": "asked", "prompt": "Tell me:\n", "response": document(5, 20)})
    rows += [{"id": "short", "prompt": "Name it.\n", "response": "A fox."}]
    rows += [{"id": "no-room-either", "prompt": document(2, 9), "response": "So."}]
    turns = [("user", "Hi"), ("assistant", document(2, 12))]
    rows += [{"id": "chat", "messages": [{"role": role, "content": content} for role, content in turns]}]
    return write_jsonl(folder / "long.jsonl", rows)


@pytest.fixture
def windowed(options, tmp_path, monkeypatch):
    monkeypatch.setattr(align_plan, "RESPONSE_BYTES_PER_PART", 1500)
    lengths = {f"{role}_max_length": length for role, length in LONGEST.items()}
    return replace(options, data=str(corpus(tmp_path)), overlong="window", dev_share=0.3, **lengths)


def responses(data: str) -> dict[str, str]:
    """The plain rows of a file."""
    rows = [json.loads(line) for line in Path(data).read_text("utf-8").splitlines()]
    return {row["id"]: row.get("text") or row.get("response") for row in rows if "messages" not in row}


@pytest.mark.parametrize("overlap", [None, 0, 12])
def test_every_byte_of_a_response_is_labelled_once_over_its_windows(windowed, read_all, overlap) -> None:
    given = replace(windowed, window_overlap=overlap)
    summary = align(given, Reporter())
    found = read_all(given.out)
    said = responses(given.data)
    sides = {"teacher": SideTokenizer.load(given.teachers[0]), "student": SideTokenizer.load(given.students[0])}
    learnt: dict[tuple[str, str], bytes] = {}
    places: dict[str, int] = {}
    num_windows = 0
    for row, example in enumerate(found.examples):
        if example.chat is not None:
            continue
        match = WINDOW.fullmatch(example.id)
        name, start, stop = (match["row"], int(match["start"]), int(match["stop"])) if match else (example.id, 0, None)
        num_windows += match is not None
        assert example.response == said[name][start:stop]
        assert start == places.get(name, 0)  # one behind the other, from the first character on
        places[name] = start + len(example.response)
        is_end = places[name] == len(said[name])
        asked = "Tell me:\n" if name == "asked" else "Name it.\n" if name == "short" else ""
        assert example.prompt.startswith(asked)
        context = example.prompt.removeprefix(asked)
        assert said[name][:start].endswith(context)
        for role, side in sides.items():
            read = getattr(found, role)[row]
            assert read.status == "ok"
            assert len(read.ids) <= LONGEST[role]
            ((first, last),) = read.label_spans.tolist()
            assert (read.ids[-1] == side.eos_id) == is_end, "only the end of the text is an end"
            inside = [token for token in range(first, last) if read.kinds[token] != SPECIAL]
            covered = sorted({place for token in inside for place in range(read.starts[token], read.ends[token])})
            assert covered == [*range(len(example.prompt), len(example.prompt + example.response))]
            pieces = [side.vocabulary.byte_strings[read.ids[token]] for token in inside]
            assert None not in pieces
            learnt[role, name] = learnt.get((role, name), b"") + b"".join(pieces)
            limit = min(64, 48 // 8) if overlap is None else overlap
            of_context = (read.kinds != SPECIAL) & (read.starts >= len(asked)) & (read.ends <= len(example.prompt))
            assert of_context.sum() <= limit + 1 if context else True
        spans = found.spans[row]
        ends = (
            found.teacher[row].ends[spans.teacher_spans[:, 1] - 1],
            found.student[row].ends[spans.student_spans[:, 1] - 1],
        )
        assert np.array_equal(*ends)
        assert len(ends[0])
        assert ends[0][-1] == len(example.prompt + example.response)
    assert set(places) == set(said) - {"no-room", "no-room-either"}
    for name, length in places.items():
        assert length == len(said[name])
        assert learnt["teacher", name] == said[name].encode()
    assert summary.left_out == {"prompt_too_long_for_windows": 2}
    assert summary.windows["windows"] == num_windows > 40
    assert 5 <= summary.windows["texts"] < len(said)
    assert f"long texts: {summary.windows['texts']} into {num_windows} windows" in "\n".join(summary.lines())
    assert {side.cut.get("overlong_truncated") for side in summary.sides} == {1}  # the chat


def test_windows_are_nearly_as_long_as_they_may_be(windowed, read_all) -> None:
    align(windowed, Reporter())
    found = read_all(windowed.out)
    said = responses(windowed.data)
    fill = [
        max(len(getattr(found, role)[row].ids) / longest for role, longest in LONGEST.items())
        for row, example in enumerate(found.examples)
        if (match := WINDOW.fullmatch(example.id)) and int(match["stop"]) < len(said[match["row"]])
    ]
    assert np.mean(fill) > 0.75


def test_all_windows_of_a_text_are_in_one_split(windowed, read_all) -> None:
    summary = align(windowed, Reporter())
    splits: dict[str, set[str]] = {}
    for example in read_all(windowed.out).examples:
        splits.setdefault(example.id.partition("[")[0], set()).add(example.split)
    assert all(len(found) == 1 for found in splits.values())
    assert 0 < summary.num_dev < summary.num_examples


def test_texts_of_one_folder_are_windows_of_no_more_than_a_part(windowed, read_all) -> None:
    """A text of many windows is spread over parts."""
    align(windowed, Reporter())
    with ShardSet.open(windowed.out) as shards:
        index = shards.corpus.index
        names = np.array([example.id.partition("[")[0] for example in shards.corpus.read(range(len(shards.corpus)))])
        sizes = np.bincount(index.part, index.num_bytes)
    assert sizes.max() <= 1500
    assert any(len(set(index.part[names == name].tolist())) > 1 for name in set(names.tolist()))


@pytest.mark.parametrize(
    ("module", "name", "value", "workers"),
    [
        (align_plan, "KEPT_TEXT_BYTES", 0, 1),
        (align_plan, "KEPT_TEXT_BYTES", 0, 2),
        (align_batches, "ROWS_PER_BATCH", 5, 1),
    ],
)
def test_whoever_cuts_the_windows_and_whatever_is_kept_the_bytes_are_the_same(
    windowed, tmp_path, monkeypatch, contents, module, name, value, workers
) -> None:
    align(windowed, Reporter())
    monkeypatch.setattr(module, name, value)
    align(replace(windowed, out=str(tmp_path / "other"), num_workers=workers), Reporter())
    assert contents(windowed.out) == contents(tmp_path / "other")


@pytest.mark.parametrize("overlong", ["window", "truncate"])
def test_a_second_student_reads_the_windows_that_are_there(
    windowed, world, tmp_path, contents, read_all, overlong, monkeypatch
) -> None:
    align(windowed, Reporter())
    before = contents(windowed.out)
    save_byte_level(tmp_path / "third", vocab_size=300)
    # Nobody has to be asked again where to cut: no tokenizer sees a text before the units are done.
    monkeypatch.setattr("sra_data.corpus.windows.Windower.__call__", None)
    second = replace(windowed, students=(str(tmp_path / "third"),), student_max_length=80, overlong=overlong)
    summary = align(second, Reporter())
    after = contents(windowed.out)
    assert all(after[name] == value for name, value in before.items() if name != "manifest.json")
    assert summary.windows["windows"] > 40
    found = read_all(windowed.out, teacher=summary.pairs[0].teacher, student=summary.pairs[0].student)
    eos_id = SideTokenizer.load(second.students[0]).eos_id
    said = responses(windowed.data)
    for example, read in zip(found.examples, found.student, strict=True):
        if match := WINDOW.fullmatch(example.id):
            assert (read.ids[-1] == eos_id) == (int(match["stop"]) == len(said[match["row"]]))


def test_alignments_made_again_from_the_corpus_on_disk_are_the_same(windowed, contents) -> None:
    summary = align(windowed, Reporter())
    before = contents(windowed.out)
    for folder in ("alignments", "sides"):
        name = summary.pairs[0].alignment if folder == "alignments" else summary.pairs[0].student
        for path in Path(windowed.out, folder, name).glob("part-*"):
            path.unlink()
    align(windowed, Reporter())
    assert contents(windowed.out) == before


def test_who_goes_on_with_a_folder_finds_the_windows_in_its_plan(windowed, tmp_path, monkeypatch, contents) -> None:
    summary = align(windowed, Reporter())
    other = replace(windowed, out=str(tmp_path / "other"))
    assert align(replace(other, units="1:3"), Reporter()).units_missing == summary.units - 2
    monkeypatch.setattr("sra_data.corpus.windows.Windower.__call__", None)
    again = align(other, Reporter())
    assert (again.windows, again.left_out) == (summary.windows, summary.left_out)
    assert contents(other.out) == contents(windowed.out)
    found = list_shards(other.out).as_dict()["corpus"]
    assert found["windows"] == summary.windows
    words = "\n".join(list_shards(other.out).of("corpus")[0].words)
    assert f"long texts as {summary.windows['windows']} windows" in words


def test_a_student_with_a_shorter_reach_is_cut_and_counted(windowed, tmp_path) -> None:
    align(windowed, Reporter())
    save_byte_level(tmp_path / "third", vocab_size=300)
    summary = align(replace(windowed, students=(str(tmp_path / "third"),), student_max_length=30), Reporter())
    by_name = {side.side: side for side in summary.sides}
    assert by_name[summary.pairs[0].student].cut["overlong_truncated"] > 20


def test_windows_that_cannot_be_are_refused_in_one_line(windowed, tmp_path, contents) -> None:
    with pytest.raises(
        ConfigError, match=r"--window-overlap 13: more than a quarter of the shortest maximum length \(48"
    ):
        align(replace(windowed, window_overlap=13), Reporter())
    with pytest.raises(ConfigError, match=r"--window-overlap -1: must be at least 0"):
        align(replace(windowed, window_overlap=-1), Reporter())
    assert not Path(windowed.out).exists()
    align(windowed, Reporter())
    with pytest.raises(ShardError, match=r"its windows overlap by 6 tokens, --window-overlap 3 would be others"):
        align(replace(windowed, window_overlap=3), Reporter())
    whole = replace(windowed, overlong="truncate", out=str(tmp_path / "whole"))
    align(whole, Reporter())
    before = contents(whole.out)
    with pytest.raises(ShardError, match=r"its corpus was begun without --overlong window, .*choose another folder"):
        align(replace(whole, overlong="window"), Reporter())
    assert contents(whole.out) == before


def test_a_plan_that_lost_its_windows_is_made_whole_by_the_first_call_alone(windowed, tmp_path) -> None:
    align(windowed, Reporter())
    folder = Path(windowed.out, "corpus")
    plan = Plan.load(folder)
    replace(plan, units=tuple(Unit(unit.part, unit.start, unit.stop) for unit in plan.units)).save(folder)
    again = align(windowed, Reporter())
    assert again.units_missing == 0
    save_byte_level(tmp_path / "third", vocab_size=300)
    other = replace(windowed, students=(str(tmp_path / "third"),), overlong="truncate")
    with pytest.raises(ShardError, match=r"has lost the places of its windows; run the `sra-data align` it was begun"):
        align(other, Reporter())
