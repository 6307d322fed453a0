"""Where a run goes on: the last checkpoint that is whole, of this run or of the finished one that it extends.

A damaged checkpoint costs the steps behind the one before it and no more: they are done again, to the same numbers.

A run that has done all its steps (or has stopped early) may be given more, by more epochs or a larger max_steps. It
goes on from its last checkpoint, with the learning rates that a run of the new length has at the steps still to come,
and with its patience as new. Only a finished run may: in the middle of one another length is a slip, or another run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from sra_data.errors import DamagedError, TrainingError
from sra_train.config import differences
from sra_train.record.checkpoint import Checkpoints, Progress, is_finished
from sra_train.record.identity import TOTAL


@dataclass(frozen=True)
class Resume:
    """Where to go on.

    Attributes:
        step: of the checkpoint.
        state: its state.json.
        damaged: newer checkpoints that are not whole, and what is wrong with each.
        length_before: steps of the finished run that is extended; None where none is.
    """

    step: int
    state: dict[str, Any]
    damaged: dict[int, str] = field(default_factory=dict)
    length_before: int | None = None

    @property
    def extended_at(self) -> list[int]:
        """Steps at which a finished run was given more, this time included."""
        now = [] if self.length_before is None else [self.step]
        return [*self.state["progress"]["extended_at"], *now]

    def progress(self, kept: Progress) -> Progress:
        """What the run goes on with, from what the checkpoint has kept."""
        if self.length_before is None:
            return kept
        return replace(kept, extended_at=self.extended_at, stopped_early=False, evaluations_without_better=0)

    def lines(self, total_steps: int) -> list[str]:
        """What is said aloud: what was damaged, that a run is extended."""
        said = [f"{what}; going on from step {self.step}, the last that is whole" for what in self.damaged.values()]
        if self.length_before is not None:
            said.append(
                f"a finished run of {self.length_before:,} steps is given {total_steps:,}: from step"
                f" {self.step + 1:,} on its learning rates are those of a run of {total_steps:,}"
            )
        return said


def where_to_resume(checkpoints: Checkpoints, known: Mapping[str, Any] | None) -> Resume | None:
    """The newest whole checkpoint of a run's folder; None where there is none at all. Every process gets the same.

    Args:
        checkpoints: Of the run that is asked for.
        known: The identity that the folder has on record; None where it has none.

    Raises:
        TrainingError: If none of several is whole, they are another run's, or of one of another length that is not
            finished.
    """
    damaged: dict[int, str] = {}
    for step in reversed(checkpoints.steps()):
        try:
            state = checkpoints.read_whole_state(step)
        except DamagedError as error:
            damaged[step] = error.what
            continue
        refuse_unfinished(checkpoints, known or checkpoints.identity, state["progress"])
        length = state["identity"].get(TOTAL)
        return Resume(step, state, damaged, None if length == checkpoints.identity.get(TOTAL) else length)
    if damaged:
        newest, *others = damaged.values()
        more = f", nor is any of the {len(others)} before it" if others else ""
        raise TrainingError(
            f"{newest}{more}; no checkpoint is left to go on from: delete {checkpoints.folder} to begin again, or give"
            " another --output-dir"
        )
    refuse_unfinished(checkpoints, known or checkpoints.identity, {"step": 0, "stopped_early": False})
    return None


def refuse_unfinished(checkpoints: Checkpoints, before: Mapping[str, Any], progress: Mapping[str, Any]) -> None:
    """A run of another length than `before` is its extension, or none of its business.

    Raises:
        TrainingError: If `before` is of another length and not finished.
    """
    changed = differences(before, checkpoints.identity)
    if changed and not is_finished(progress, before):
        raise TrainingError(
            f"{checkpoints.folder.parent}: holds another run: {'; '.join(changed)}; give the old values or another"
            " --output-dir: a run is given more epochs or steps when it has done those it has"
        )
