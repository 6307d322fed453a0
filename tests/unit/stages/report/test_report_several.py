"""Several sides, alignments and teachers on one page: all of them, or the chosen ones."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from sra_data.errors import ShardError
from sra_data.shards.store import Manifest, ShardSet, record
from sra_data.stages.report.plots import charts_of
from sra_data.stages.report.sample import PLACES
from sra_data.stages.report.stage import ReportOptions, report
from sra_data.terminal import Reporter
from tests.integration.command_lines import sra_data
from tests.unit.stages.report.reading import Nesting, gathered


@pytest.fixture(scope="module")
def several(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A second student, a second way to align the first, and the student's pages as another teacher."""
    copy = Path(shutil.copytree(shards, tmp_path_factory.mktemp("several") / "shards"))
    teacher, student = shards.parent / "teacher", shards.parent / "student"
    common = ("--data", shards.parent / "<b>train.jsonl", "--dev-share", 0.2, "--overlong", "skip", "--out", copy)
    for arguments in (
        ("--teacher", teacher, "--teacher", student, "--student", teacher),
        ("--teacher", teacher, "--student", student, "--boundaries", "word"),
    ):
        answer = sra_data("align", *arguments, *common)
        assert answer.exit_code == 0, answer.error
    answer = sra_data("cache-teacher", copy, "--teacher", student, "--top-k", 4, "--device", "cpu")
    assert answer.exit_code == 0, answer.error
    return copy


def test_every_alignment_and_every_teacher_has_a_section(several: Path, tmp_path: Path) -> None:
    facts = gathered(several)
    with ShardSet.open(several) as opened:
        teachers, sides = opened.manifest.names("teachers"), opened.manifest.names("sides")
    assert [pages.name for pages in facts.pages] == teachers
    assert {side.name for side in facts.sides} == set(sides)
    assert len(facts.alignments) == len({alignment.title for alignment in facts.alignments}) == 4
    assert [len(teachers), len(sides)] == [2, 2]
    summary = report(ReportOptions(str(several), str(tmp_path / "report.html")), Reporter())
    assert summary.num_sampled == 2 * 28
    assert len(summary.pictures) == len(set(summary.pictures)) == len(charts_of(facts)) == 2 + 2 * 4 + 2 * 6
    text = Path(summary.page).read_text()
    found = Nesting()
    found.feed(text)
    assert (found.wrong, found.open) == ([], [])
    assert len(found.ids) == len(set(found.ids))
    assert set(found.addresses) <= {f"#{name}" for name in found.ids}
    assert set(re.findall(r"url\(#([^)]+)\)", text)) <= set(found.ids)
    for name in (*teachers, *sides, *(alignment.title for alignment in facts.alignments)):
        assert name in text


def test_an_alignment_reads_the_same_from_both_ends(several: Path) -> None:
    """The numbers of a pair in one direction are those of the other with the two roles swapped."""
    by_pair = {(one.teacher, one.student): one for one in gathered(several).alignments if "~word" not in one.name}
    ((one, other),) = {tuple(sorted(pair)) for pair in by_pair if pair[0] != pair[1]}
    forth, back = by_pair[one, other], by_pair[other, one]
    assert forth.name == back.name
    assert (forth.student_tokens, forth.teacher_tokens) == (back.teacher_tokens, back.student_tokens)
    assert (forth.student_shared, forth.teacher_shared) == (back.teacher_shared, back.student_shared)
    assert {":".join(reversed(size.split(":"))): count for size, count in forth.sizes.items()} == back.sizes
    assert forth.sizes != back.sizes
    (same,) = (pair for ends, pair in by_pair.items() if ends[0] == ends[1])
    assert all(size[: len(size) // 2] == size[-(len(size) // 2) :] for size in same.sizes)


def test_the_numbers_of_an_alignment_are_those_of_its_two_sides(several: Path) -> None:
    with ShardSet.open(several) as opened:
        everything = range(len(opened.corpus))
        for shown in gathered(several).alignments:
            student, teacher = (opened.side(name).read(everything) for name in (shown.student, shown.teacher))
            pair = opened.pair(student=shown.student, teacher=shown.teacher, name=shown.name).read(everything)
            fine = [number for number in everything if pair[number].status == "ok"]
            tokens = [sum(int(np.diff(side[n].response_spans).sum()) for n in fine) for side in (student, teacher)]
            assert [shown.student_tokens, shown.teacher_tokens] == tokens
            spans = [len(pair[number].student_spans) for number in fine]
            labels = [int(np.diff(student[number].label_spans).sum()) for number in fine]
            positions = [teacher[number].num_positions for number in fine]
            np.testing.assert_allclose(shown.spans_per_student_token, np.divide(spans, labels))
            np.testing.assert_allclose(shown.spans_per_teacher_token, np.divide(spans, positions))


def test_attention_of_every_teacher_is_summed_over_spans_of_its_own_side(several: Path) -> None:
    facts = gathered(several)
    with ShardSet.open(several) as opened:
        everything = range(len(opened.corpus))
        for pages in facts.pages:
            first = next(one for one in facts.alignments if one.teacher == pages.facts["side"])
            assert pages.alignment == first.name
            pair = opened.pair(student=first.student, teacher=first.teacher, name=first.name)
            expected = np.zeros(PLACES)
            for said, spans in zip(opened.teacher(pages.name).read(everything), pair.read(everything), strict=True):
                (attention,) = said.attention.values()
                mass_of = dict(zip(said.positions.tolist(), attention.tolist(), strict=True))
                mass = [sum(mass_of[token] for token in range(a, b)) for a, b in spans.teacher_spans.tolist()]
                for place, one in enumerate(mass if len(mass) > 1 else ()):
                    expected[place * PLACES // len(mass)] += one / sum(mass) * len(mass)
            np.testing.assert_allclose(pages.sample.salience, expected, rtol=1e-6)


def test_a_teacher_or_a_student_may_be_chosen(several: Path, shards: Path) -> None:
    teacher, student = shards.parent / "teacher", shards.parent / "student"
    with ShardSet.open(several) as opened:
        names = {path: opened.choose_teacher(str(path)) for path in (teacher, student)}
        sides = {path: opened.choose_teacher_side(str(path)) for path in (teacher, student)}
    chosen = gathered(several, teacher=str(student))
    assert [pages.name for pages in chosen.pages] == [names[student]]
    assert {alignment.teacher for alignment in chosen.alignments} == {sides[student]}
    by_side = gathered(several, teacher=sides[student])
    assert [pages.name for pages in by_side.pages] == [names[student]]
    chosen = gathered(several, student=str(student))
    assert {alignment.student for alignment in chosen.alignments} == {sides[student]}
    assert [pages.name for pages in chosen.pages] == [names[teacher]]
    chosen = gathered(several, teacher=str(teacher), student=str(teacher))
    (alignment,) = chosen.alignments
    assert alignment.teacher == alignment.student == sides[teacher]
    assert [side.name for side in chosen.sides] == [sides[teacher]]
    for wanted in ({"teacher": "gpt5"}, {"student": "gpt5"}):
        with pytest.raises(ShardError, match=r"no (teacher|student) gpt5 \(there (is|are) .*\); choose one with --"):
            gathered(several, **wanted)


def test_two_sides_that_were_never_aligned_are_refused_with_the_command(several: Path, shards: Path) -> None:
    with ShardSet.open(several) as opened:
        side = opened.choose_teacher_side(str(shards.parent / "student"))
    with pytest.raises(ShardError, match="are not aligned; run `sra-data align --teacher"):
        gathered(several, teacher=side, student=side)


def test_an_unfinished_folder_is_said_to_be_missing_and_the_others_are_shown(several: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(several, tmp_path / "shards"))
    manifest = Manifest.load(copy)
    unsealed = [f"teachers/{manifest.names('teachers')[0]}", f"alignments/{manifest.names('alignments')[1]}"]
    for section in unsealed:
        record(copy, section, root=None)
    facts = gathered(copy)
    assert [len(facts.alignments), len(facts.pages)] == [3, 1]
    assert all(
        any(line.startswith(f"{section} is unfinished: run `") for line in facts.missing) for section in unsealed
    )
