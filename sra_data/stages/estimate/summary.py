"""What `estimate` says: bytes, hours, and whether offline pays."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from sra_data.endings import Ending, Grid, Told
from sra_data.terminal import bytes_in_words, clock


@dataclass(frozen=True)
class Alternative:
    """The size with one option changed; the first in a summary is the chosen one, with no flags."""

    flags: str
    bytes_per_position: float
    num_bytes: int


@dataclass(frozen=True)
class Sample:
    """What was measured on a few examples.

    Attributes:
        num_examples, num_tokens, num_positions: of the sample; padded_tokens those of its batches.
        num_failed: of those examples, the ones with NaN or infinite activations.
        device: where the teacher ran.
        tokens_per_second: through the teacher, states and distributions kept.
        begin_seconds: until the first unit: the teacher loaded and admitted.
        write_seconds: the same sample encoded, compressed, checked and written.
        bytes_per_position: on disk, compressed; `compression` their share of what the arithmetic says.
        read_bytes_per_second: back from the page cache, every value checked.
    """

    num_examples: int
    num_tokens: int
    num_positions: int
    num_failed: int
    device: str
    tokens_per_second: float
    write_seconds: float
    bytes_per_position: float
    compression: float
    read_bytes_per_second: float
    padded_tokens: int = 0
    begin_seconds: float = 0.0


@dataclass(frozen=True)
class Fleet:
    """Many accelerators, or machines like this one.

    Attributes:
        gpus: how many; `gpus_per_teacher` hold one teacher, `teachers` work at once.
        hours: from the first unit to the last; `gpu_hours` of all accelerators, those that wait included.
        cost: of those, at `price` an hour; None where no price was given.
        store_needed: GB a second that are written meanwhile; `store_rate` what the store takes, None for no limit.
        model: of accelerator; None for machines like this one, of which the following is not known.
        parameters: the teacher's; `bytes_of_weights` in its dtype.
        operations: of all forwards; `teraflops` the accelerator's dense bf16 peak, `utilisation` the share assumed.
        forward_hours, write_hours: one after the other; `write_rate` GB a second that a process writes.
    """

    gpus: int
    teachers: int
    hours: float
    gpu_hours: float
    cost: float | None
    price: float | None
    store_rate: float | None
    store_needed: float
    gpus_per_teacher: int = 1
    model: str | None = None
    parameters: int | None = None
    bytes_of_weights: int | None = None
    operations: float | None = None
    teraflops: float | None = None
    utilisation: float | None = None
    forward_hours: float | None = None
    write_hours: float | None = None
    write_rate: float | None = None

    def facts(self) -> Grid:
        """It in words."""
        store = "" if self.store_rate is None else f", the store takes {self.store_rate:g}"
        return Grid.of_facts(
            *self._assumed(),
            ("hours", f"{self.hours:,.2f} for {self.gpus:,}: {self.gpu_hours:,.1f} in all"),
            ("written meanwhile", f"{self.store_needed:,.2f} GB/s{store}"),
            ("price", "" if self.cost is None else f"{self.cost:,.2f} at {self.price:g} an hour"),
            title=f"on {self.gpus:,} x {self.model or 'a machine like this one'}",
        )

    def _assumed(self) -> tuple[tuple[str, str], ...]:
        if self.parameters is None or self.bytes_of_weights is None or self.utilisation is None:
            return (("assumed", f"each as fast as was timed, {self.teachers:,} at once"),)
        return (
            (
                "a teacher",
                f"{self.parameters / 1e9:,.1f} billion parameters, {bytes_in_words(self.bytes_of_weights)}: on "
                f"{self.gpus_per_teacher}, {self.teachers:,} at once",
            ),
            (
                "forwards",
                f"{self.operations:.2g} operations at {self.utilisation:.0%} (assumed) of {self.teraflops:,.0f} "
                f"TFLOP/s: {self.forward_hours:,.2f} hours",
            ),
            ("writing", f"at {self.write_rate:.2g} GB/s a process: {self.write_hours:,.2f} hours"),
        )


@dataclass(frozen=True)
class EstimateSummary(Told):
    """Bytes, hours and the verdict.

    Attributes:
        shards, teacher, side: folder, teacher, and the side it would read.
        num_layers, hidden_size, vocabulary_size: the teacher's.
        num_examples, num_tokens, num_positions: the teacher would read and cache; by span, positions are spans.
        row: "position" or "span".
        bytes_per_position: before compression; `num_bytes` of the whole folder likewise: an upper bound.
        expected_bytes: of the whole folder, compressed as the sample was; None where nothing was timed.
        disk_free: bytes; `fits` whether cache-teacher would start.
        alternatives: the chosen options first.
        sample: what was timed, None without.
        cache_hours: of cache-teacher; `read_hours` of reading it in every epoch of every student; `online_hours` of
            running the teacher in every epoch of every student instead. None where nothing was timed.
        epochs, students: planned.
        online_passes: times the teacher reads the training examples online; offline it is one.
        cheaper: "offline", "online" or "equal": by hours, or by passes of the teacher where nothing was timed.
        num_units: of the plan: no more processes than that work at once.
        planned_examples: so many like the folder's are meant in all numbers; None for those themselves.
        fleet: on many accelerators; None where none were asked for.
    """

    shards: str
    teacher: str
    side: str
    num_layers: int
    hidden_size: int
    vocabulary_size: int
    num_examples: int
    num_tokens: int
    num_positions: int
    row: str
    bytes_per_position: float
    num_bytes: int
    expected_bytes: int | None
    disk_free: int
    fits: bool
    alternatives: tuple[Alternative, ...]
    sample: Sample | None
    cache_hours: float | None
    read_hours: float | None
    online_hours: float | None
    epochs: int
    students: int
    online_passes: int
    cheaper: str
    num_units: int
    planned_examples: int | None = None
    fleet: Fleet | None = None

    def ending(self) -> Ending:
        """It in words."""
        bytes_in_all, free = bytes_in_words(self.num_bytes), bytes_in_words(self.disk_free)
        verdict = "enough" if self.fits else "NOT enough: cache-teacher would refuse to start"
        facts = Grid.of_facts(
            (
                f"teacher {self.teacher}",
                f"{self.num_layers} layers, hidden size {self.hidden_size:,}, vocabulary {self.vocabulary_size:,}",
            ),
            (f"bytes a {self.row}", f"{self.bytes_per_position:,.0f} before compression"),
            ("in all", f"at most {bytes_in_all} with head and embeddings"),
            ("the disk has", f"{free} free: {verdict}"),
        )
        if self.planned_examples is not None:
            facts = Grid((("planned for", f"{self.planned_examples:,} examples like these"), *facts.rows))
        rows = tuple(
            (
                alternative.flags or "as chosen",
                f"{alternative.bytes_per_position:,.0f}",
                bytes_in_words(alternative.num_bytes),
                f"{alternative.num_bytes / max(self.num_bytes, 1):.0%}",
            )
            for alternative in self.alternatives
        )
        return Ending(
            f"{self.shards}: {self.num_examples:,} examples, {self.num_positions:,} {self.row}s to cache",
            (
                facts,
                Grid(rows, ("options", "bytes/row", "at most", "of chosen")),
                *(() if self.fleet is None else (self.fleet.facts(),)),
            ),
            (*self._timed(), *self._verdict()),
            next=f"sra-data cache-teacher {shlex.quote(self.shards)}" if self.fits else None,
        )

    def _timed(self) -> list[str]:
        if self.sample is None or self.cache_hours is None or self.expected_bytes is None:
            return ["hours: not timed (--no-time)"]
        sample = self.sample
        lines = [
            f"timed on {sample.num_examples} examples, {sample.num_tokens:,} tokens, on {sample.device}: "
            f"{sample.tokens_per_second:,.0f} tokens/s, {sample.bytes_per_position:,.0f} bytes a {self.row} on disk "
            f"once compressed, read back at {bytes_in_words(sample.read_bytes_per_second)}/s",
            f"cache-teacher takes about {clock(3600 * self.cache_hours)} and {bytes_in_words(self.expected_bytes)}",
        ]
        if sample.num_failed:
            lines.append(f"{sample.num_failed} of these examples give NaN or infinity: try --dtype bf16 or fp32")
        return lines

    def _verdict(self) -> list[str]:
        plan = f"{self.epochs} epochs x {self.students} student{'s' if self.students != 1 else ''}"
        passes = f"the teacher reads the training examples {self.online_passes:,} times online, once offline"
        word = {"equal": "no clear difference", "offline": "offline is cheaper", "online": "online is cheaper"}
        verdict = word[self.cheaper]
        if self.cache_hours is None or self.read_hours is None or self.online_hours is None:
            return [f"{plan}: {passes}: {verdict}"]
        offline = self.cache_hours + self.read_hours
        if self.cheaper != "equal":
            slow, fast = max(offline, self.online_hours), min(offline, self.online_hours)
            verdict += f", {slow / max(fast, 1e-9):.1f} times"
        return [
            f"{plan}: {passes}; online {clock(3600 * self.online_hours)} of teacher, offline "
            f"{clock(3600 * self.cache_hours)} + {clock(3600 * self.read_hours)} of reading: {verdict}"
        ]
