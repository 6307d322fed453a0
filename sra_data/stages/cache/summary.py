"""What `cache-teacher` says at its end, and what the manifest keeps: both from the receipts of the parts."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from typing import Any

from sra_data.endings import Ending, Grid, Told
from sra_data.options import recorded
from sra_data.shards.store import Manifest, Plan, notes_of, state_of
from sra_data.stages.cache.faithfulness import describe as describe_faithfulness
from sra_data.stages.cache.reach import reach_from
from sra_data.stages.cache.run import CacheRun
from sra_data.teacher.provenance import describe as describe_environments
from sra_data.teacher.provenance import environments_in
from sra_data.terminal import bytes_in_words


@dataclass(frozen=True)
class CacheSummary(Told):
    """What was done.

    Attributes:
        shards: the folder.
        teacher: the teacher's name.
        section: "teachers/<name>", where its pages are.
        side: name of the side it read.
        root: the sealed root, None while units are missing.
        num_units, num_done, num_missing: of the plan; done now; still missing.
        num_examples, num_tokens, num_positions: cached in all; by span, positions are spans.
        granularity: "token" or "span".
        num_bytes: of the teacher's folder; `bytes_per_position` of its parts alone.
        num_failed, num_splits: examples with numbers that are not finite; batches that had to be split.
        environments: that its units were made in; see `provenance.py`.
        faithfulness: see `faithfulness.py`; empty while units are missing. `reach` see `reach.py`, of each student.
    """

    shards: str
    teacher: str
    section: str
    side: str
    root: str | None
    num_units: int
    num_done: int
    num_missing: int
    num_examples: int
    num_tokens: int
    num_positions: int
    num_bytes: int
    bytes_per_position: float
    num_failed: int
    num_splits: int
    granularity: str = "token"
    environments: list[dict[str, str]] = field(default_factory=list)
    faithfulness: dict[str, Any] = field(default_factory=dict)
    reach: list[dict[str, Any]] = field(default_factory=list)

    def ending(self) -> Ending:
        """It in words."""
        row = "span" if self.granularity == "span" else "position"
        failed = f"{self.num_failed} examples" if self.num_failed or self.num_splits else ""
        facts = Grid.of_facts(
            (f"{row}s", f"{self.num_positions:,}"),
            ("on disk", f"{bytes_in_words(self.num_bytes)}, {self.bytes_per_position:,.0f} bytes a {row}"),
            ("units", f"{self.num_done} done now, {self.num_missing} missing, of {self.num_units}"),
            ("with NaN or infinity", failed),
            ("batches split for memory", f"{self.num_splits}" if failed else ""),
        )
        shards = shlex.quote(self.shards)
        is_whole = self.root is not None
        unfinished = () if is_whole else ("unfinished: run the same command again for the missing units",)
        return Ending(
            f"{self.shards}/{self.section}: {self.num_examples:,} examples of {self.teacher}",
            (facts, *describe_faithfulness(self.faithfulness)),
            (*unfinished, *describe_environments(self.environments), *(reach_from(one).line for one in self.reach)),
            next=f"sra-train run {shards}" if is_whole else f"sra-data cache-teacher {shards}",
        )


def summarise(run: CacheRun, plan: Plan, *, num_done: int) -> CacheSummary:
    """The numbers of the whole folder."""
    notes, state = notes_of(run.folder, plan), state_of(run.shards.path, run.section)
    section = Manifest.load(run.shards.path).section(run.section) or {}
    positions = sum(note["positions"] for note in notes)
    return CacheSummary(
        shards=str(run.shards.path),
        teacher=run.identity.name,
        section=run.section,
        side=run.settings.side,
        root=section.get("root"),
        num_units=state.num_units,
        num_done=num_done,
        num_missing=state.num_units - state.num_done,
        num_examples=sum(note["examples"] for note in notes),
        num_tokens=sum(note["tokens"] for note in notes),
        num_positions=positions,
        num_bytes=state.num_bytes,
        bytes_per_position=state.num_part_bytes / max(positions, 1),
        num_failed=sum(len(note["failed"]) for note in notes),
        num_splits=sum(note["splits"] for note in notes),
        granularity=run.settings.capture.granularity,
        environments=environments_in(notes),
        faithfulness=section.get("faithfulness", {}) if section.get("root") else {},
        reach=section.get("reach", []) if section.get("root") else [],
    )


def facts_at_beginning(run: CacheRun) -> dict[str, Any]:
    """What the manifest says of the teacher from the beginning on."""
    settings = run.settings
    kept = recorded(settings.capture)
    del kept["granularity"]  # sealing says it
    return {
        "name": run.identity.name,
        "revision": run.identity.revision,
        "adapter": settings.teacher.adapter,
        "side": settings.side,
        "alignment": None if settings.alignment is None else f"alignments/{settings.alignment}",
        "num_layers": run.identity.num_layers,
        "hidden_size": settings.hidden_size,
        "vocabulary_size": settings.vocabulary_size,
        **kept,
    }


def facts_at_end(run: CacheRun, plan: Plan) -> dict[str, Any]:
    """What is known of the teacher's pages once all are there."""
    notes = notes_of(run.folder, plan)
    return {
        "failed_examples": [name for note in notes for name in note["failed"]],
        "num_splits": sum(note["splits"] for note in notes),
        "environments": environments_in(notes),
    }
