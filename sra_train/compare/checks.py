"""What is refused before any run starts, and whose comparison a folder is.

Every method is put together as its run would do it, up to the first step: a cache without its columns, a student of
another tokenizer, a batch larger than the corpus are found here, and not after an hour of other methods' runs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sra_data.errors import TrainingError
from sra_data.models.output_head import OutputHead
from sra_data.shards.schema import TeacherRow
from sra_data.shards.store import FolderReader, PairSpans, ShardSet
from sra_data.terminal import Reporter
from sra_train.compare.records import read_json
from sra_train.config import TrainConfig, differences
from sra_train.contract import CacheNeeds, ModelShape, SpanChoice
from sra_train.data.aligned_rows import rows_of
from sra_train.data.examples import TeacherPart
from sra_train.data.reader import ALIGNED_COLUMNS, RowReader
from sra_train.data.sources import TeacherSource
from sra_train.parallel import make_accelerator
from sra_train.record.run_folder import write_text
from sra_train.run import Run, resolve
from sra_train.student import model_shape

COMPARISON = "comparison.json"
ROWS_AT_ONCE = 4096


@dataclass(frozen=True)
class Checked:
    """What is known of the methods before they run.

    Attributes:
        roots: section -> seal, of every folder any of them reads.
        covered: method -> share of the teachers' response tokens it hears; None without a teacher.
        total_steps: of a whole run.
        student: Hub id or folder.
    """

    roots: dict[str, str]
    covered: dict[str, float | None]
    total_steps: int
    student: str


def check_all(shards: ShardSet, configs: Mapping[str, TrainConfig]) -> Checked:
    """Refuse what any of the methods' runs would refuse.

    Args:
        shards: the folder all of them read.
        configs: method -> its configuration.

    Raises:
        SRAError: As the run would.
    """
    roots: dict[str, str] = {}
    covered: dict[str, float | None] = {}
    known: dict[tuple[Any, ...], float] = {}
    student: tuple[ModelShape, OutputHead] | None = None
    for name, config in configs.items():
        run = Run(resolve(config), make_accelerator(config.training), Reporter(), shards)
        if student is None:  # the same for all of them
            model = run.build_student().model
            student = model_shape(model), OutputHead.from_model(model)
        needs = run.build_method(*student).needs
        RowReader(run.sources, needs)
        roots |= run.sources.roots()
        ends_only = hears_ends_only(config)
        read = zip(run.sources.teachers, needs, strict=True)
        key = tuple((one.name, own.aligned, own.spans, ends_only) for one, own in read)
        if key and key not in known:
            known[key] = sum(
                one.weight * covered_share(one, run.sources.side, own, run.table.is_train, ends_only=ends_only)
                for one, own in zip(run.sources.teachers, needs, strict=True)
            )
        covered[name] = known.get(key)
    return Checked(roots, covered, run.total_steps, run.student_name)


def hears_ends_only(config: TrainConfig) -> bool:
    """Whether a method with options of SRA reads of a span its last token alone."""
    options = config.method.options
    pools = any(getattr(options, name, False) for name in ("cos", "geo"))
    return not pools and getattr(options, "kd_position", None) == "boundary"


def covered_share(
    teacher: TeacherSource, student: FolderReader, needs: CacheNeeds, is_train: Any, *, ends_only: bool
) -> float:
    """Share of a teacher's response tokens that a method hears, over the rows that are trained on.

    A method that lays rows beside each other hears those; any other, the tokens in spans, or their last ones.

    Args:
        teacher: one of a run.
        student: the student's side.
        needs: what the method reads of this teacher.
        is_train: bool [rows].
        ends_only: whether a span counts as one token.
    """
    rows = np.flatnonzero(is_train & teacher.side.index.is_ok)
    heard = tokens = 0
    end_of_sequence = teacher.pair.vocabulary().end_of_sequence
    nearest = teacher.pair.nearest() if needs.aligned == "edited" else None
    for start in range(0, len(rows), ROWS_AT_ONCE):
        chunk = rows[start : start + ROWS_AT_ONCE]
        for side in teacher.side.read(chunk, ["response_spans"]):
            tokens += int(np.diff(side.response_spans).sum())
            tokens += len(side.response_spans) if needs.aligned else 0  # rows beside each other teach the end too
        there = chunk[teacher.has_row[chunk]]
        pairs = teacher.pair.read(there)
        if needs.aligned is None:
            chosen = [spans_of(pair, needs.spans) for pair in pairs]
            heard += sum(len(spans) if ends_only else int(np.diff(spans).sum()) for spans in chosen)
            continue
        columns = [*ALIGNED_COLUMNS, "label_spans"]
        sides = teacher.side.read(there, columns), student.read(there, columns)
        for pair, theirs, ours in zip(pairs, *sides, strict=True):
            part = TeacherPart(pair, theirs, TeacherRow(id=theirs.id))
            heard += len(rows_of(needs.aligned, ours, part, part.positions, end_of_sequence, nearest))
    return heard / max(tokens, 1)


def spans_of(pair: PairSpans, which: SpanChoice) -> NDArray[np.int32]:
    """[K, 2] the teacher's spans that a method pools."""
    if which == "all":
        return pair.teacher_spans
    both = np.stack([pair.student_spans, pair.teacher_spans])
    return pair.teacher_spans[(both[:, :, 1] - both[:, :, 0] == 1).all(axis=0)]


def claim_folder(
    folder: Path, *, roots: Mapping[str, str], settings: Mapping[str, Any], test: Mapping[str, Any]
) -> None:
    """Make sure that `folder` is free or this comparison's, and remember whose it is.

    A method that reads further folders may join later; what is known of a folder must stay.

    Args:
        folder: of the comparison.
        roots: section -> seal.
        settings: common to all methods, by dotted name.
        test: what decides the reported numbers.

    Raises:
        TrainingError: If it belongs to another comparison, naming what differs, or holds something else.
    """
    path = folder / COMPARISON
    now: dict[str, Any] = {
        "roots": dict(roots),
        "settings": json.loads(json.dumps(settings)),
        "test": json.loads(json.dumps(test)),
    }
    known = read_json(path)
    if known is None:
        refuse_other_contents(folder)
    else:
        shared = known["roots"].keys() & now["roots"].keys()
        changed = differences(_flat(known, shared), _flat(now, shared))
        if changed:
            raise TrainingError(
                f"{folder}: holds another comparison: {'; '.join(changed)}; give the old values or another --output-dir"
            )
        now["roots"] = {**known["roots"], **now["roots"]}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(now, indent=1, ensure_ascii=False))
    except OSError as error:
        raise TrainingError(f"{folder}: cannot be written ({error.strerror}); give another --output-dir") from None


def _flat(record: Mapping[str, Any], sections: Any) -> dict[str, Any]:
    roots = {f"root.{name}": root for name, root in record["roots"].items() if name in sections}
    return roots | dict(record["settings"]) | {f"test.{name}": value for name, value in record["test"].items()}


def refuse_other_contents(folder: Path) -> None:
    """A new comparison begins in an empty folder.

    Raises:
        TrainingError: If it is not.
    """
    if folder.is_file():
        raise TrainingError(f"{folder}: a file; give another --output-dir")
    if folder.is_dir() and any(folder.iterdir()):
        raise TrainingError(f"{folder}: not empty and not the folder of a comparison; give another --output-dir")
