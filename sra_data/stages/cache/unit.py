"""One unit of `cache-teacher`: a part of a side goes through the teacher and becomes a part of its pages.

Batches are cut by lengths and the plan's token budget inside the unit, so the same unit gives the same bytes whoever
does it, and however often.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sra_data.engines import Advance, Work
from sra_data.stages.cache.parts import PartsWorker, UnitSettings
from sra_data.teacher.batching import plan_batches
from sra_data.teacher.capture import Captured, Example, TeacherCapture
from sra_data.teacher.loading import LoadedTeacher, check_vocabulary, load
from sra_data.teacher.provenance import environment_of


class CacheWorker(PartsWorker):
    """Makes parts, one after the other, with a teacher loaded once."""

    def __init__(self, settings: UnitSettings, teacher: LoadedTeacher, *, waits: bool = False) -> None:
        super().__init__(settings, environment=environment_of(teacher), waits=waits)
        self.teacher = teacher
        self.capture = self.make_capture()
        self.writes_beside = self.capture.device.type != "cpu"
        self.num_splits = 0  # of the unit that was said last

    def make_capture(self) -> TeacherCapture:
        """What asks the teacher."""
        return TeacherCapture(self.teacher.model, self.settings.capture, self.settings.scales)

    def close(self) -> None:
        """Give the teacher back as it was."""
        self.capture.close()
        super().close()

    def remarks(self) -> dict[str, Any]:
        """How often memory ran out."""
        return {"splits": self.num_splits}

    def said_about(self, examples: Sequence[Example], advance: Advance) -> dict[int, Captured]:
        """All examples that have positions, through the teacher; by number within those given."""
        splits_before = self.capture.num_splits
        numbers = [number for number, example in enumerate(examples) if example.num_rows]
        chosen = [examples[number] for number in numbers]
        if chosen:
            largest = max(int(example.ids.max()) for example in chosen)
            check_vocabulary(self.teacher, largest, tokenizer=f"of {self.settings.side}")
        captured: dict[int, Captured] = {}
        for batch in plan_batches([len(example.ids) for example in chosen], self.settings.batch_tokens):
            for index, one in zip(batch, self.capture([chosen[index] for index in batch]), strict=True):
                captured[numbers[index]] = one
            advance(sum(len(chosen[index].ids) for index in batch))
        self.num_splits = self.capture.num_splits - splits_before
        return captured


@dataclass(frozen=True)
class MakeWorker:
    """Makes a worker in another process, where the teacher has to be loaded again."""

    settings: UnitSettings
    num_threads: int
    waits: bool

    def __call__(self) -> Work:
        import torch

        torch.set_num_threads(self.num_threads)
        return CacheWorker(self.settings, load(self.settings.teacher), waits=self.waits).run
