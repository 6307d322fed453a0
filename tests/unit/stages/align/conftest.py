"""One small world of tokenizers and rows, and shards read back as a pair sees them."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from sra_data.shards.schema import ExampleRow, SideRow, side_text
from sra_data.shards.store import PairSpans, ShardSet
from sra_data.stages.align import batches, plan
from sra_data.stages.align.options import AlignOptions
from tests.unit.stages.align_worlds import CHAT_TEMPLATE, rows, save_byte_level, save_unigram, write_jsonl


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    save_byte_level(folder / "bytes")
    save_byte_level(folder / "chatty", vocab_size=450, chat_template=CHAT_TEMPLATE)
    save_unigram(folder / "pieces")
    write_jsonl(folder / "data.jsonl", rows(150))
    return folder


@pytest.fixture
def options(world, tmp_path, monkeypatch) -> AlignOptions:
    monkeypatch.setattr(plan, "RESPONSE_BYTES_PER_PART", 3000)
    monkeypatch.setattr(batches, "ROWS_PER_BATCH", 16)
    return AlignOptions(
        teachers=(str(world / "bytes"),),
        students=(str(world / "pieces"),),
        data=str(world / "data.jsonl"),
        out=str(tmp_path / "shards"),
        dev_share=0.2,
        num_workers=1,
    )


@dataclass(frozen=True)
class Read:
    """Everything of one teacher and one student, row by row."""

    examples: list[ExampleRow]
    teacher: list[SideRow]
    student: list[SideRow]
    spans: list[PairSpans]

    def text(self, row: int, side: str = "teacher") -> str:
        """What a side's characters count in."""
        return side_text(getattr(self, side)[row], self.examples[row])


@pytest.fixture
def read_all() -> Callable[..., Read]:
    def read(out: str, teacher: str | None = None, student: str | None = None) -> Read:
        with ShardSet.open(out) as shards:
            teacher_side, student_side = shards.choose_teacher_side(teacher), shards.choose_student(student)
            everything = range(len(shards.corpus))
            return Read(
                shards.corpus.read(everything),
                shards.side(teacher_side).read(everything),
                shards.side(student_side).read(everything),
                shards.pair(student=student_side, teacher=teacher_side).read(everything),
            )

    return read


@pytest.fixture
def contents() -> Callable[[Path | str], dict[str, str]]:
    def found(folder: Path | str) -> dict[str, str]:
        return {
            str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(Path(folder).rglob("*"))
            if path.is_file()
        }

    return found
