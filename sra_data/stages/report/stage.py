"""`sra-data report`: what the shards hold, on one page to look at, with the pictures beside it."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from sra_data.endings import Ending, Grid, Told
from sra_data.errors import ConfigError, ShardError
from sra_data.shards.store import ShardSet
from sra_data.stages.report.facts import gather
from sra_data.stages.report.page import page
from sra_data.stages.report.plots import charts_of
from sra_data.terminal import Reporter


@dataclass(frozen=True)
class ReportOptions:
    """What to draw.

    Attributes:
        shards: the folder.
        out: the page; its pictures go into a folder beside it, named after it.
        teacher: only this teacher, or all of this side: a name, the start of one, or a model; all where None.
        student: only the alignments of this side, likewise.
        sample: examples whose teacher's pages are read.
    """

    shards: str = "shards"
    out: str = "report.html"
    teacher: str | None = None
    student: str | None = None
    sample: int = 2000


@dataclass(frozen=True)
class ReportSummary(Told):
    """What was drawn.

    Attributes:
        page: the page; `pictures` the PNG files.
        num_sampled: examples whose teacher's pages were read, of all teachers together.
        missing: what is not there yet, a sentence each.
        shards: the folder.
    """

    page: str
    pictures: tuple[str, ...]
    num_sampled: int
    missing: tuple[str, ...]
    shards: str = "shards"

    def ending(self) -> Ending:
        """It in words."""
        folder = Path(self.pictures[0]).parent if self.pictures else None
        beside = "" if folder is None else f"{len(self.pictures)} in {folder}"
        facts = Grid.of_facts(("page", self.page), ("pictures", beside))
        following = f"sra-data inspect 0 --shards {shlex.quote(self.shards)} --html example.html"
        return Ending("", (facts,), self.missing, next=following)


def report(options: ReportOptions, reporter: Reporter) -> ReportSummary:
    """Draw the page and its pictures; works before the teacher's pages exist, and says what is missing.

    Raises:
        ConfigError: For options that cannot be carried out.
        ShardError: If there is no sealed corpus, a name that fits nothing or several, or something is damaged.
    """
    if options.sample < 1:
        raise ConfigError(f"--sample {options.sample}: must be at least 1")
    with ShardSet.open(options.shards) as shards:
        facts = gather(
            shards, teacher=options.teacher, student=options.student, sample=options.sample, reporter=reporter
        )
    out = Path(options.out)
    folder = out.with_name(f"{out.stem}-pictures")
    charts = charts_of(facts)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        pictures = tuple(str(chart.save_png(folder)) for chart in charts)
        out.write_text(page(facts, charts), encoding="utf-8")
    except OSError as error:
        raise ShardError(f"{out}: cannot be written ({error.strerror}); name another file with --out") from error
    num_sampled = sum(pages.sample.num_examples for pages in facts.pages)
    return ReportSummary(str(out), pictures, num_sampled, tuple(facts.missing), options.shards)
