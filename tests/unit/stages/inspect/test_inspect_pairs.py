"""Which pair of sides is shown where there are several."""

from dataclasses import replace
from pathlib import Path

import pytest

from sra_data.errors import ShardError
from sra_data.shards.store import ShardSet
from sra_data.stages.align.options import AlignOptions
from sra_data.stages.align.stage import align
from sra_data.stages.inspect.stage import InspectOptions, inspect
from sra_data.terminal import Reporter
from tests.unit.stages.align_worlds import rows, save_byte_level, save_unigram, write_jsonl


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two teachers of one student, one of them aligned by words too, and that pair the other way round."""
    folder = tmp_path_factory.mktemp("pairs")
    small = str(save_byte_level(folder / "small"))
    large = str(save_byte_level(folder / "large", vocab_size=450))
    pieces = str(save_unigram(folder / "pieces"))
    data = str(write_jsonl(folder / "data.jsonl", rows(7)))
    options = AlignOptions((small, large), (pieces,), data, out=str(folder / "shards"), dev_share=0.0, num_workers=1)
    align(options, Reporter())
    align(replace(options, teachers=(large,), boundaries="word"), Reporter())
    align(replace(options, teachers=(small,), teacher_max_length=60), Reporter())
    align(replace(options, teachers=(pieces,), students=(large,)), Reporter())
    skipping = replace(options, teachers=(small,), teacher_max_length=60, overlong="skip", out=str(folder / "skipping"))
    align(skipping, Reporter())
    return folder


def shown(world: Path, **chosen: str | None) -> tuple[str, str, str]:
    """Stems of the teacher's and the student's side, and the options their alignment was made with."""
    found = inspect(InspectOptions("3", str(world / "shards"), **chosen), Reporter())
    _, _, *options = found.alignment.split("~")
    return found.teacher.partition("-")[0], found.student.partition("-")[0], "".join(options)


def test_a_side_that_is_not_named_is_the_only_one_aligned_with_the_other(world: Path) -> None:
    assert shown(world, teacher="large") == ("large", "pieces", "")
    assert shown(world, student="large") == ("pieces", "large", "")
    assert shown(world, teacher=str(world / "pieces")) == ("pieces", "large", "")


def test_a_pair_that_was_aligned_in_several_ways_is_named_or_the_usual_one(world: Path) -> None:
    assert shown(world, teacher="large", student="pieces") == ("large", "pieces", "")
    assert shown(world, teacher="large", student="pieces", alignment="word") == ("large", "pieces", "word")
    with pytest.raises(ShardError, match=r"no alignment exact \(there are large.*~pieces.*; choose one with --align"):
        shown(world, teacher="large", student="pieces", alignment="exact")


def test_several_that_fit_are_listed(world: Path) -> None:
    with pytest.raises(ShardError, match=r"4 teachers \(there are small-.*, large-.*\); choose one with --teacher"):
        shown(world)
    with pytest.raises(ShardError, match=r"2 teachers small \(there are small-.*, small-.*\); choose one with --tea"):
        shown(world, teacher="small")
    with pytest.raises(ShardError, match=r"3 teachers \(there are small-.*, large-.*\); choose one with --teacher"):
        shown(world, student="pieces")


def test_any_two_sides_that_were_aligned_may_be_shown_in_either_direction(world: Path) -> None:
    with ShardSet.open(world / "skipping") as shards:
        pair = shards.choose_pair()
        row = int((~shards.side(pair.teacher).index.is_ok).argmax())
    there, back = (
        [
            inspect(InspectOptions(str(row), str(world / "skipping"), teacher=teacher, student=student), Reporter())
            for row in range(7)
        ]
        for teacher, student in ((pair.teacher, pair.student), (pair.student, pair.teacher))
    )
    assert [one.num_spans for one in there] == [one.num_spans for one in back]
    assert there[row].status == "skipped:teacher_overlong"
    assert back[row].status == "skipped:student_overlong"
    assert not any(column.teacher for turn in there[row].turns for column in turn)
    assert any(column.student for turn in there[row].turns for column in turn)


def test_sides_that_were_never_aligned_are_refused_with_the_command(world: Path) -> None:
    with ShardSet.open(world / "shards") as shards:
        small, large = (next(n for n in shards.manifest.names("sides") if n.startswith(s)) for s in ("small", "large"))
    with pytest.raises(ShardError, match=r"are not aligned; run `sra-data align --teacher .*small --student .*large"):
        shown(world, teacher=small, student=large)
