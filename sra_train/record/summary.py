"""What a run came to, for people, for machines and for the Python API."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sra_data.endings import Ending, Grid, Told
from sra_data.terminal import clock


@dataclass(frozen=True)
class RunSummary(Told):
    """What a run came to.

    Attributes:
        output_dir: Everything of the run.
        model_folder: The exported student; None on every process but the first.
        steps: Steps done in all.
        total_steps: Planned.
        stopped_early: Whether patience ran out before.
        exported_step: Whose weights the model has.
        metrics: The last development measurement, or the last step's losses without one.
        seconds: Of training, resumes included.
        hub: Address, where the model was pushed.
    """

    output_dir: str
    model_folder: str | None
    steps: int
    total_steps: int
    stopped_early: bool
    exported_step: int
    metrics: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    hub: str | None = None

    def ending(self) -> Ending:
        """It in words."""
        early = ", stopped early" if self.stopped_early else ""
        numbers = ((name.replace("_", " "), f"{value:.4g}") for name, value in self.metrics.items())
        facts = Grid.of_facts(
            *numbers,
            (f"model of step {self.exported_step:,}", self.model_folder or ""),
            ("pushed to", self.hub or ""),
        )
        return Ending(
            f"{self.steps:,} of {self.total_steps:,} steps{early} in {clock(self.seconds)}",
            (facts,),
            next=f"sra-train report {shlex.quote(self.output_dir)}",
        )


def last_numbers(records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The last evaluation's numbers, or the last step's where there was none."""
    for kind in ("evaluation", "step"):
        found = [record for record in records if record["kind"] == kind]
        if found:
            return {name: value for name, value in found[-1].items() if isinstance(value, int | float)}
    return {}
