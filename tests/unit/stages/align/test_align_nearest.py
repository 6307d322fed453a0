"""`align --edit-distance`: a map beside the alignment, in both directions, that changes nothing else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sra_data.corpus.tokenization import SideTokenizer
from sra_data.errors import ShardError
from sra_data.shards.nearest import NEAREST
from sra_data.shards.store import Manifest, ShardSet
from sra_data.stages.align.stage import align
from sra_data.stages.verify import VerifyOptions, verify
from sra_data.terminal import Reporter
from tests.reference import edit_distance as slow


def alignment_root(folder: str) -> str:
    manifest = Manifest.load(Path(folder))
    (name,) = manifest.names("alignments")
    return str(manifest.section(f"alignments/{name}")["root"])


def test_the_map_is_added_to_an_alignment_that_is_there_and_its_root_stays(options) -> None:
    pair = align(options, Reporter()).pairs[0]
    with ShardSet.open(options.out) as shards:
        reader = shards.pair(student=pair.student, teacher=pair.teacher)
        with pytest.raises(ShardError, match="run the `sra-data align` that made it again with --edit-distance"):
            reader.nearest()
    before = alignment_root(options.out)
    align(replace(options, edit_distance=True), Reporter())
    assert alignment_root(options.out) == before
    teacher, student = SideTokenizer.load(options.teachers[0]), SideTokenizer.load(options.students[0])
    of_teacher, of_student = teacher.vocabulary.byte_strings, student.vocabulary.byte_strings
    with ShardSet.open(options.out) as shards:
        found = shards.pair(student=pair.student, teacher=pair.teacher).nearest()
        back = shards.pair(student=pair.teacher, teacher=pair.student).nearest()
    assert found.teacher_pieces == back.student_pieces == [piece or b"" for piece in of_teacher]
    assert found.student_pieces == back.teacher_pieces == [piece or b"" for piece in of_student]
    some = np.random.default_rng(0).integers(0, len(of_teacher), 25).tolist()
    expected = slow.nearest([of_teacher[one] for one in some], of_student)
    assert found.student_of_teacher[some].tolist() == expected
    assert len(back.student_of_teacher) == len(of_student)


def test_verify_reads_the_file_where_it_is(options) -> None:
    align(replace(options, edit_distance=True), Reporter())
    assert not verify(VerifyOptions(Path(options.out)), Reporter()).problems
    (path,) = Path(options.out).glob(f"alignments/*/{NEAREST}")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    problems = verify(VerifyOptions(Path(options.out)), Reporter()).problems
    assert any(NEAREST in problem for problem in problems)
