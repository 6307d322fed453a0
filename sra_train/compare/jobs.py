"""What one process of a comparison is asked to do, and whether it has been done."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from sra_data.errors import TrainingError
from sra_train.compare.records import CONFIG, JOB, read_json, read_tested, read_trained
from sra_train.config import TrainConfig, differences, load_config
from sra_train.record.run_folder import write_text

Kind = Literal["run", "untrained", "teacher"]


@dataclass(frozen=True)
class HeldOut:
    """On what a model is measured; `data` is None for the development split.

    Attributes:
        data, columns, split, max_examples, max_length: as `EvaluateOptions` has them.
        digest: of the rows, so that a file that was changed is known.
        rouge: seeds of the generation; empty for none.
        max_new_tokens: to generate.
    """

    data: str | None
    digest: str
    columns: str | None = None
    split: str | None = None
    max_examples: int | None = None
    max_length: int | None = None
    rouge: tuple[int, ...] = ()
    max_new_tokens: int = 512

    @property
    def identity(self) -> dict[str, Any]:
        """What must not change between a comparison and its continuation; Rouge-L may be asked for later."""
        return {"digest": self.digest, "max_length": self.max_length}

    @property
    def asked(self) -> dict[str, Any]:
        """What decides the numbers; where a file lies does not."""
        found = {name: value for name, value in asdict(self).items() if name not in ("data", "columns", "split")}
        return found if self.rouge else {name: value for name, value in found.items() if name != "max_new_tokens"}


@dataclass(frozen=True)
class Job:
    """One process.

    Attributes:
        folder: its own.
        title: for people.
        kind: a run of `config`, or its student before the first step, or another model.
        config: of the run; of the student's where nothing is trained.
        test: what is measured after the development split; None for nothing.
        model: Hub id or folder of the teacher.
    """

    folder: Path
    title: str
    kind: Kind
    config: TrainConfig = field(hash=False)
    test: HeldOut | None = None
    model: str | None = None

    def is_done(self) -> bool:
        """Whether all of it is on disk.

        Raises:
            TrainingError: If the folder holds another run, or a file is damaged.
        """
        refuse_another_run(self.folder, self.config)
        trained = read_trained(self.folder)
        if trained is None:
            return False
        return (
            trained.status == "diverged" or self.test is None or read_tested(self.folder, self.test.asked) is not None
        )

    def write(self) -> None:
        """Tell the process what to do.

        Raises:
            TrainingError: If the folder cannot be written.
        """
        record = {
            "title": self.title,
            "kind": self.kind,
            "model": self.model,
            "test": None if self.test is None else asdict(self.test),
        }
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_text(self.folder / CONFIG, self.config.to_yaml())
            write_text(self.folder / JOB, json.dumps(record, indent=1, ensure_ascii=False))
        except OSError as error:
            raise TrainingError(
                f"{self.folder}: cannot be written ({error.strerror}); give another --output-dir"
            ) from None

    @classmethod
    def read(cls, folder: Path) -> Job:
        """What `write` left."""
        found = read_json(folder / JOB)
        assert found is not None, f"{folder} has no {JOB}"
        return cls(
            folder=folder,
            title=found["title"],
            kind=found["kind"],
            config=load_config(folder / CONFIG),
            test=None if found["test"] is None else _held_out(found["test"]),
            model=found["model"],
        )


def _held_out(record: Mapping[str, Any]) -> HeldOut:
    return HeldOut(**{**record, "rouge": tuple(record["rouge"])})


def refuse_another_run(folder: Path, config: TrainConfig) -> None:
    """A folder keeps the configuration it began with.

    Raises:
        TrainingError: If it began with another, naming what differs: a preset that was changed since, say.
    """
    path = folder / CONFIG
    if not path.is_file():
        return
    try:
        then = load_config(path).identity()
    except (OSError, yaml.YAMLError) as error:
        raise TrainingError(f"{path}: damaged ({error}); delete {folder} and run again") from None
    changed = differences(then, config.identity())
    if changed:
        raise TrainingError(f"{folder}: holds another run: {'; '.join(changed)}; give another --output-dir")
