"""What the tests of the report read: its facts, and a page's tags."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

from sra_data.shards.store import ShardSet
from sra_data.stages.report.facts import AlignmentFacts, PagesFacts, ReportFacts, gather
from sra_data.terminal import Reporter

NASTY = '<script>alert("1")</script>&'
VOID = {"meta", "br", "link", "img", "input"}


def gathered(
    shards: Path, *, sample: int = 2000, teacher: str | None = None, student: str | None = None
) -> ReportFacts:
    with ShardSet.open(shards) as opened:
        return gather(opened, teacher=teacher, student=student, sample=sample, reporter=Reporter())


def pages_of(facts: ReportFacts) -> PagesFacts:
    (pages,) = facts.pages
    return pages


def alignment_of(facts: ReportFacts) -> AlignmentFacts:
    (alignment,) = facts.alignments
    return alignment


class Nesting(HTMLParser):
    """Collects ids, addresses and tags that are not closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.wrong: list[str] = []
        self.ids: list[str] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(str(value))
            elif name in ("src", "href", "xlink:href", "action", "srcset"):
                self.addresses.append(str(value))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)
