"""`sra-train report`: what runs recorded, on one page to look at."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sra_data.endings import Ending, Grid, Told
from sra_data.errors import ConfigError, TrainingError
from sra_data.terminal import Reporter
from sra_train.report.charts import charts_of
from sra_train.report.page import page
from sra_train.report.records import read_runs
from sra_train.report.samples import samples_of


@dataclass(frozen=True)
class RunReportOptions:
    """What to show.

    Attributes:
        runs: folders that `sra-train run` wrote, at least one; several stand side by side.
        out: the page.
        samples: prompts that every finished student answers; 0 for none, and no model is loaded.
        device: where they answer; a GPU where there is one.
    """

    runs: tuple[str, ...]
    out: str = "run-report.html"
    samples: int = 3
    device: str | None = None


@dataclass(frozen=True)
class RunReportSummary(Told):
    """What was drawn.

    Attributes:
        page: the file.
        runs: their names on it, and steps done.
        num_charts: curves; `num_samples` prompts answered.
        missing: what could not be shown, a sentence each.
    """

    page: str
    runs: dict[str, int]
    num_charts: int
    num_samples: int
    missing: tuple[str, ...] = ()

    def ending(self) -> Ending:
        """It in words."""
        steps = ", ".join(f"{name} ({steps:,} steps)" for name, steps in self.runs.items())
        shown = f"{self.num_charts} charts, {self.num_samples} samples"
        facts = Grid.of_facts(("page", self.page), ("runs", steps), ("on it", shown))
        return Ending("", (facts,), self.missing)


def report(options: RunReportOptions, reporter: Reporter) -> RunReportSummary:
    """Draw the page.

    Raises:
        ConfigError: For options that cannot be carried out.
        TrainingError: If a folder is no run's, has no steps, is damaged, or the page cannot be written.
    """
    if not options.runs:
        raise ConfigError("report: no run given; name at least one folder that `sra-train run` wrote")
    if options.samples < 0:
        raise ConfigError(f"--samples {options.samples}: must be at least 0")
    runs = read_runs(options.runs)
    samples, missing = (
        samples_of(runs, options.samples, device=options.device, reporter=reporter) if options.samples else ([], [])
    )
    charts, out = charts_of(runs), Path(options.out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(page(runs, charts, samples, missing), encoding="utf-8")
    except OSError as error:
        raise TrainingError(f"{out}: cannot be written ({error.strerror}); name another file with --out") from error
    steps = {run.name: int(run.steps[-1]["step"]) for run in runs}
    return RunReportSummary(str(out), steps, len(charts), len(samples), tuple(missing))
