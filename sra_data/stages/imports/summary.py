"""What `import` says at its end, and what the manifest keeps: both from the receipts of the parts."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sra_data.captures.distillkit import DistillkitCapture
from sra_data.endings import Ending, Grid, Told
from sra_data.shards.store import Manifest, Plan, notes_of, state_of
from sra_data.stages.cache.reach import reach_from
from sra_data.stages.cache.summary import facts_at_beginning
from sra_data.stages.imports.run import ImportRun
from sra_data.terminal import bytes_in_words


@dataclass(frozen=True)
class ImportSummary(Told):
    """What was done.

    Attributes:
        shards: the folder.
        format: of the capture.
        teacher: the teacher's name.
        section: "teachers/<name>", where its pages are.
        side: name of the side it read.
        root: the sealed root, None while units are missing.
        num_units, num_done, num_missing: of the plan; done now; still missing.
        num_captured: rows of the capture.
        num_examples, num_positions: in the pages, those that failed among them.
        num_failed: examples that the capture does not hold, or whose numbers are not finite.
        num_bytes: of the teacher's folder.
        num_rescaled, largest_sum, num_repeated: see `captures/distributions.py`.
        layers: kept; none of a DistillKit capture.
        top_k: 0 where none is kept; `exact_k` of them were stored as they were, None where they are computed here.
        reach: see `cache/reach.py`, of each student, where there is a head.
    """

    shards: str
    format: str
    teacher: str
    section: str
    side: str
    root: str | None
    num_units: int
    num_done: int
    num_missing: int
    num_captured: int
    num_examples: int
    num_positions: int
    num_failed: int
    num_bytes: int
    num_rescaled: int
    largest_sum: float
    num_repeated: int
    layers: list[int]
    top_k: int
    exact_k: int | None
    reach: list[dict[str, Any]] = field(default_factory=list)

    def ending(self) -> Ending:
        """It in words."""
        kept = [f"layers {', '.join(map(str, self.layers))}, the last behind its norm"] if self.layers else []
        fitted = self.exact_k is not None and self.exact_k < self.top_k
        kept += [f"top {self.top_k}{f', from {self.exact_k} on by a fit' if fitted else ''}"] if self.top_k else []
        rescaled = f"{self.num_rescaled:,} positions, up to {self.largest_sum:.4g}" if self.num_rescaled else ""
        facts = Grid.of_facts(
            ("positions", f"{self.num_positions:,}"),
            ("kept", "; ".join(kept)),
            ("on disk", bytes_in_words(self.num_bytes)),
            ("units", f"{self.num_done} done now, {self.num_missing} missing, of {self.num_units}"),
            ("not in the capture's rows", f"{self.num_failed:,} examples" if self.num_failed else ""),
            ("sums above 1, scaled down", rescaled),
            ("ids twice at a position", f"{self.num_repeated:,}, counted once" if self.num_repeated else ""),
        )
        shards, section = shlex.quote(self.shards), shlex.quote(self.section.partition("/")[2])
        remarks = [
            "nothing was compared with the live teacher: "
            f"sra-data verify {shards} --deep --teacher {section}, where its weights are"
        ]
        if self.root is None:
            remarks = ["unfinished: run the same command again for the missing units"]
        chosen = "" if self.layers else " --method boundary --set method.kd_source=top_k"
        return Ending(
            f"{self.shards}/{self.section}: {self.num_examples - self.num_failed:,} examples of {self.teacher}, from "
            f"{self.num_captured:,} rows of {self.format}",
            (facts,),
            (*remarks, *(reach_from(one).line for one in self.reach)),
            next=f"sra-train run {shards} --teacher {section}{chosen or ' --method boundary'}" if self.root else None,
        )


def summarise(run: ImportRun, plan: Plan, *, num_done: int) -> ImportSummary:
    """The numbers of the whole folder."""
    notes, state = notes_of(run.folder, plan), state_of(run.shards.path, run.section)
    section = Manifest.load(run.shards.path).section(run.section) or {}
    capture = run.settings.capture
    counts = counted(notes)
    return ImportSummary(
        shards=str(run.shards.path),
        format=run.capture.format,
        teacher=run.identity.name,
        section=run.section,
        side=run.settings.side,
        root=section.get("root"),
        num_units=state.num_units,
        num_done=num_done,
        num_missing=state.num_units - state.num_done,
        num_captured=run.matches.num_captured,
        num_examples=sum(note["examples"] for note in notes),
        num_positions=sum(note["positions"] for note in notes),
        num_failed=sum(len(note["failed"]) for note in notes),
        num_bytes=state.num_bytes,
        num_rescaled=counts["rescaled"],
        largest_sum=counts["largest_sum"],
        num_repeated=counts["repeated"],
        layers=list(capture.layer_numbers) if capture.keeps_states else [],
        top_k=capture.top_k,
        exact_k=run.capture.form.exact_k if isinstance(run.capture, DistillkitCapture) else None,
        reach=section.get("reach", []) if section.get("root") else [],
    )


def counted(notes: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What did not add up, over all units."""
    return {
        "rescaled": sum(note.get("rescaled", 0) for note in notes),
        "repeated": sum(note.get("repeated", 0) for note in notes),
        "largest_sum": max((note.get("largest_sum", 1.0) for note in notes), default=1.0),
    }


def facts_of_import(run: ImportRun) -> dict[str, Any]:
    """What the manifest says of the pages from the beginning on: where they come from, too."""
    return {**facts_at_beginning(run), "imported": origin(run)}


def _named(folder: Path) -> str:
    """A folder's name, in letters that a manifest holds."""
    name = "".join(letter if letter.isprintable() and letter != "\\" else "_" for letter in folder.resolve().name)
    return name or "capture"


def origin(run: ImportRun, **counts: Any) -> dict[str, Any]:
    """From which capture; of its place the folder's name alone, because the manifest travels."""
    return {
        "format": run.capture.format,
        "capture": _named(Path(run.capture.folder)),
        "files": len(run.capture.files),
        "rows": run.matches.num_captured,
        "layers": list(run.layers),
        "exact_k": run.capture.form.exact_k if isinstance(run.capture, DistillkitCapture) else None,
        **counts,
    }
