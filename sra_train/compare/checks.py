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

from sra_data.errors import TrainingError
from sra_data.models.output_head import OutputHead
from sra_data.shards.store import ShardSet
from sra_data.terminal import Reporter
from sra_train.compare.records import read_json
from sra_train.config import TrainConfig, differences
from sra_train.contract import ModelShape
from sra_train.data.reader import RowReader
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
    known: dict[tuple[bool, tuple[str, ...]], float] = {}
    student: tuple[ModelShape, OutputHead] | None = None
    for name, config in configs.items():
        run = Run(resolve(config), make_accelerator(config.training), Reporter(), shards)
        if student is None:  # the same for all of them
            model = run.build_student().model
            student = model_shape(model), OutputHead.from_model(model)
        RowReader(run.sources, run.build_method(*student).needs)
        roots |= run.sources.roots()
        key = hears_ends_only(config), tuple(teacher.name for teacher in run.sources.teachers)
        if run.sources.teachers and key not in known:
            shares = [covered_share(one, run.table.is_train, ends_only=key[0]) for one in run.sources.teachers]
            known[key] = sum(one.weight * share for one, share in zip(run.sources.teachers, shares, strict=True))
        covered[name] = known.get(key)
    return Checked(roots, covered, run.total_steps, run.student_name)


def hears_ends_only(config: TrainConfig) -> bool:
    """Whether a method reads of a span its last token alone."""
    options = config.method.options
    pools = any(getattr(options, name, False) for name in ("cos", "geo"))
    return not pools and getattr(options, "kd_position", None) == "boundary"


def covered_share(teacher: TeacherSource, is_train: Any, *, ends_only: bool) -> float:
    """Share of a teacher's response tokens in spans, or at their ends, over the rows that are trained on.

    Args:
        teacher: one of a run.
        is_train: bool [rows].
        ends_only: whether a span counts as one token.
    """
    rows = np.flatnonzero(is_train & teacher.side.index.is_ok)
    heard = tokens = 0
    for start in range(0, len(rows), ROWS_AT_ONCE):
        chunk = rows[start : start + ROWS_AT_ONCE]
        for side in teacher.side.read(chunk, ["response_spans"]):
            tokens += int(np.diff(side.response_spans).sum())
        there = chunk[teacher.has_row[chunk]]
        if ends_only:
            heard += int(teacher.num_spans[there].sum())
        else:
            heard += sum(int(np.diff(pair.teacher_spans).sum()) for pair in teacher.pair.read(there))
    return heard / max(tokens, 1)


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
