"""`sra-data list`: what a folder of shards holds, how far each part of it is, and the command that goes on.

Reads the manifest, plans and receipts alone, so it answers at once and for folders that are unfinished too.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sra_data.errors import ShardError, one_line
from sra_data.shards.schema import OK
from sra_data.shards.store import BETWEEN_SIDES, Manifest, Plan, command_for, folder_of, notes_of, sides_of, state_of
from sra_data.stages.align.counts import PairCounts, SideCounts
from sra_data.terminal import bytes_in_words, printable

WIDEST = 110  # of a table: a line longer than this is hard to follow
SIDE_OPTIONS = ("tokenizer_name", "revision", "max_length", "overlong")
PAIR_OPTIONS = ("boundaries", "max_spans", "vocabulary_match")
TEACHER_OPTIONS = ("layers", "num_layers", "hidden_size", "hidden_dtype", "attention", "top_k", "temperatures")


@dataclass(frozen=True)
class Entry:
    """One folder.

    Attributes:
        section: "corpus", "sides/<name>", "alignments/<name>" or "teachers/<name>".
        num_units: of its plan; `num_done` of them are there.
        num_bytes: on disk.
        is_sealed: whether nothing is missing.
        problem: why it could not be looked at, or None.
        go_on: what makes what is missing; None where nothing is.
        facts: what it holds, by name.
        words: the same in words.
    """

    section: str
    num_units: int
    num_done: int
    num_bytes: int
    is_sealed: bool
    problem: str | None
    go_on: str | None
    facts: dict[str, Any]
    words: tuple[str, ...]

    @property
    def name(self) -> str:
        """Of the folder."""
        return self.section.rpartition("/")[2]

    @property
    def state(self) -> str:
        """In words."""
        if self.problem is not None:
            return "unreadable"
        if self.is_sealed:
            return "sealed"
        return f"{self.num_done:,} of {self.num_units:,} units" if self.num_done < self.num_units else "not sealed"

    def as_dict(self) -> dict[str, Any]:
        """For machines."""
        about = {name: value for name, value in asdict(self).items() if name not in ("section", "facts", "words")}
        return {"name": self.name, **self.facts, **about, "state": self.state}


@dataclass(frozen=True)
class Listing:
    """What a folder holds.

    Attributes:
        entries: folders, in the order in which one is made from another.
        pairs: which teacher was asked to teach which student, as in the manifest.
    """

    shards: str
    entries: tuple[Entry, ...]
    pairs: tuple[dict[str, Any], ...]

    @property
    def num_bytes(self) -> int:
        """Of all folders."""
        return sum(entry.num_bytes for entry in self.entries)

    def of(self, group: str) -> list[Entry]:
        """The folders of a group: corpus, sides, alignments or teachers."""
        return [entry for entry in self.entries if entry.section.partition("/")[0] == group]

    def as_dict(self) -> dict[str, Any]:
        """For machines."""
        corpus = [entry.as_dict() for entry in self.of("corpus")]
        groups = {group: [entry.as_dict() for entry in self.of(group)] for group in ("sides", "alignments", "teachers")}
        return {
            "shards": self.shards,
            "num_bytes": self.num_bytes,
            "corpus": corpus[0] if corpus else None,
            **groups,
            "pairs": list(self.pairs),
        }

    def lines(self) -> list[str]:
        """For logs: a line for each folder, pair and command."""
        lines = [f"{self.shards}: {bytes_in_words(self.num_bytes)}"]
        for entry in self.entries:
            lines.append(" · ".join((entry.section, *entry.words, bytes_in_words(entry.num_bytes), entry.state)))
        for pair in self.pairs:
            lines.append(f"{_named(pair['teacher'])} teaches {_named(pair['student'])} by {pair['alignment']}")
        return [*lines, *self._next_steps()]

    def following(self) -> str | None:
        """The command that comes next where nothing is unfinished."""
        if self._next_steps():
            return None
        command = "sra-train run" if self.of("teachers") else "sra-data cache-teacher"
        return f"{command} {shlex.quote(self.shards)}"

    def show(self, console: Console) -> None:
        """For a terminal of any width: a table for each group, names and facts folded where it is narrow."""
        console.print(_text(f"{self.shards} · {bytes_in_words(self.num_bytes)}", style="bold"))
        for group in ("corpus", "sides", "alignments", "teachers"):
            if entries := self.of(group):
                console.print()
                console.print(_table(group, entries, width=min(console.width, WIDEST)))
        if self.pairs:
            console.print()
            console.print(_table_of_pairs(self.pairs, width=min(console.width, WIDEST)))
        if steps := self._next_steps():
            console.print()
            console.print(Text("to go on", style="bold"))
            for step in steps:
                console.print(_text(step), overflow="fold")
        if (following := self.following()) is not None:
            console.print()
            console.print(Text.assemble(("next  ", "bold"), printable(following)))

    def _next_steps(self) -> list[str]:
        """What to do, each once, and for which folders."""
        steps: dict[str, list[str]] = {}
        for entry in self.entries:
            if entry.go_on is not None:
                steps.setdefault(entry.go_on, []).append(entry.section)
        return [f"{', '.join(sections)}: {step}" for step, sections in steps.items()]


def list_shards(path: str | Path) -> Listing:
    """Look at a folder.

    Raises:
        ShardError: If there are no shards, or of another format.
    """
    manifest = Manifest.load(folder_of(path, whole=True))
    return Listing(str(path), tuple(_entry(manifest, section) for section in manifest.sections), tuple(manifest.pairs))


# --------------------------------------------------------------------------- one folder


def _entry(manifest: Manifest, section: str) -> Entry:
    try:
        state = state_of(manifest.shards, section)
        plan = Plan.load(manifest.shards / section)
        facts, words = _READ[section.partition("/")[0]](manifest, section, plan)
    except ShardError as error:
        return Entry(section, 0, 0, 0, False, str(error), str(error), {}, ())
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        # options and notes are a stage's own JSON, which no type of the shards' describes
        said = one_line(error)
        problem = f"{manifest.shards / section}: its options or notes are not those of this version ({said})"
        remedy = command_for(section, manifest.shards)
        return Entry(section, 0, 0, 0, False, f"{problem}; {remedy}", f"{problem}; {remedy}", {}, ())
    return Entry(
        section,
        state.num_units,
        state.num_done,
        state.num_bytes,
        state.is_sealed,
        None,
        None if state.is_sealed else go_on(manifest, section),
        facts,
        tuple(words),
    )


def go_on(manifest: Manifest, section: str) -> str:
    """The command that makes what is missing of an unfinished folder."""
    group, _, name = section.partition("/")
    shards = shlex.quote(str(manifest.shards))
    if group == "teachers":
        facts = manifest.section(section) or {}
        model, origin = facts.get("name"), facts.get("imported")
        named = f" --teacher {shlex.quote(str(model))}" if model else ""
        if origin:
            captured = f"{origin['format']} {shlex.quote(origin['capture'])}"
            return f"run `sra-data import {captured} {shards}{named}` with that capture's place and the same options"
        return f"run `sra-data cache-teacher {shards}{named}` with the same options"
    for pair in manifest.pairs:
        if group == "corpus" or name in (pair["teacher_side"], pair["student_side"], pair["alignment"]):
            models = " ".join(f"--{role} {shlex.quote(_named(pair[role]))}" for role in ("teacher", "student"))
            return f"run `sra-data align {models} --out {shards}` with the same data and options"
    return command_for(section, manifest.shards)


def _known(manifest: Manifest, section: str, names: Iterable[str]) -> dict[str, Any]:
    """What the manifest says under these names; of an unfinished folder, what its inputs say."""
    found = manifest.section(section) or {}
    return {name: found.get(name, found.get("fingerprint", {}).get(name)) for name in names}


def _corpus(manifest: Manifest, section: str, plan: Plan) -> tuple[dict[str, Any], Iterable[str]]:
    known = _known(manifest, section, ("source", "num_dev", "left_out", "windows"))
    examples = plan.units[-1].stop if plan.units else 0
    dev = known["num_dev"]
    facts = {"examples": examples, "train": None if dev is None else examples - dev, "dev": dev}
    split = "" if dev is None else f" ({examples - dev:,} train, {dev:,} dev)"
    words = [f"{examples:,} examples{split}"]
    if known["source"]:
        words.append(f"from {'; '.join(known['source'])}")
    if left_out := _listed(known["left_out"] or {}):
        words.append(f"left out: {left_out}")
    windows = known["windows"] or {}
    if windows.get("texts"):
        words.append(f"{windows['texts']:,} long texts as {windows['windows']:,} windows")
    return {**facts, "source": known["source"], "left_out": known["left_out"], "windows": windows}, words


def _side(manifest: Manifest, section: str, plan: Plan) -> tuple[dict[str, Any], Iterable[str]]:
    counts = SideCounts.total(notes_of(manifest.shards / section, plan))
    known = _known(manifest, section, SIDE_OPTIONS)
    tokenizer = {"name": known.pop("tokenizer_name"), "revision": known.pop("revision")}
    if tokenizer["name"] is None:  # unfinished: the first model it was asked for
        tokenizer = next(_models_of(manifest, section.partition("/")[2]), tokenizer)
    longest = "no limit of tokens" if known["max_length"] is None else f"{known['max_length']:,} tokens at most"
    words = [
        f"{_named(tokenizer)}, {longest}",
        _statuses(counts.statuses),
        f"{counts.tokens:,} tokens, {counts.response_tokens:,} of responses",
    ]
    facts = {"tokenizer": tokenizer["name"], "revision": tokenizer["revision"], **known, **_counted(counts.statuses)}
    return {**facts, "tokens": counts.tokens, "response_tokens": counts.response_tokens, "labels": counts.labels}, words


def _alignment(manifest: Manifest, section: str, plan: Plan) -> tuple[dict[str, Any], Iterable[str]]:
    counts = PairCounts.total(notes_of(manifest.shards / section, plan))
    left, right = sides_of(section.partition("/")[2])
    found = manifest.section(section) or {}
    options = found.get("options") or {name: found.get("fingerprint", {}).get(name) for name in PAIR_OPTIONS}
    covered = counts.covered / counts.characters if counts.characters else None
    share = "" if covered is None else f", {covered:.2%} of the responses' characters"
    words = [
        f"{options['boundaries']} boundaries, {options['max_spans']:,} spans at most, vocabulary by "
        f"{options['vocabulary_match']}",
        _statuses(counts.statuses, left=left, right=right),
        f"{counts.spans:,} spans{share}",
    ]
    facts = {"left": left, "right": right, "options": options, **_counted(counts.statuses)}
    return {**facts, "spans": counts.spans, "covered": covered, "shared_ids": found.get("shared_ids")}, words


def _teacher(manifest: Manifest, section: str, plan: Plan) -> tuple[dict[str, Any], Iterable[str]]:
    known = _known(manifest, section, ("name", "revision", "adapter", *TEACHER_OPTIONS))
    found = manifest.section(section) or {}
    granularity = found.get("fingerprint", {}).get("granularity") or found.get("granularity") or "token"
    side = found.get("side") or next((base.partition("/")[2] for base in plan.made_from if "sides/" in base), None)
    positions = sum(int(note.get("positions", 0)) for note in notes_of(manifest.shards / section, plan))
    each = state_of(manifest.shards, section).num_part_bytes / positions if positions else None
    row = "span" if granularity == "span" else "position"
    words = [
        _named({"name": known["name"], "revision": known["revision"]}) + _if(known["adapter"], " with {}"),
        f"reads {side}",
        f"layers {', '.join(map(str, known['layers'] or [])) or 'none'}{_if(known['num_layers'], ' of {}')}, "
        f"{known['hidden_dtype']}{_if(known['top_k'], ', top {}')}",
        f"{positions:,} {row}s{'' if each is None else f', {each:,.0f} bytes each'}",
    ]
    imported = (found.get("imported") or {}).get("format")
    words += [f"imported from {found['imported']['rows']:,} rows of {imported}"] if imported else []
    facts = {"model": known.pop("name"), **known, "side": side, "granularity": granularity, "imported": imported}
    return {**facts, "positions": positions, "bytes_per_position": each}, words


_READ = {"corpus": _corpus, "sides": _side, "alignments": _alignment, "teachers": _teacher}


def _models_of(manifest: Manifest, side: str) -> Iterator[dict[str, Any]]:
    for pair in manifest.pairs:
        for role in ("teacher", "student"):
            if pair[f"{role}_side"] == side:
                yield pair[role]


# --------------------------------------------------------------------------- words


def _named(model: Mapping[str, Any]) -> str:
    if model["name"] is None:
        return "a model not recorded yet"
    return f"{model['name']}@{model['revision']}" if model["revision"] else str(model["name"])


def _if(value: Any, words: str) -> str:
    return words.format(value) if value else ""


def _listed(counts: Mapping[str, int]) -> str:
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{count:,} {name.removeprefix('skipped:').replace('_', ' ')}" for name, count in ordered if count)


def _counted(statuses: Mapping[str, int]) -> dict[str, Any]:
    skipped = {name.removeprefix("skipped:"): count for name, count in sorted(statuses.items()) if name != OK}
    return {"ok": statuses.get(OK, 0), "skipped": skipped}


def _statuses(statuses: Mapping[str, int], **sides: str) -> str:
    """How many are ok and why the others are not; `sides` are the names of left and right."""
    skipped = {name: count for name, count in statuses.items() if name != OK}
    for place, side in sides.items():
        start = f"skipped:{place}_"
        skipped = {
            f"{name.removeprefix(start)} in {side}" if name.startswith(start) else name: count
            for name, count in skipped.items()
        }
    reasons = f" ({_listed(skipped)})" if skipped else ""
    return f"{statuses.get(OK, 0):,} ok, {sum(skipped.values()):,} skipped{reasons}"


def _table(group: str, entries: Iterable[Entry], *, width: int) -> Table:
    """Name, what it holds, size and state of some folders."""
    table = _empty_table(width)
    table.add_column(group, ratio=2, overflow="fold")
    table.add_column("holds", ratio=3, overflow="fold")
    table.add_column("on disk", justify="right", no_wrap=True)
    for entry in entries:
        state = Text(entry.state, style="dim" if entry.is_sealed else "yellow")
        size = Text("\n").join([Text(bytes_in_words(entry.num_bytes)), state])
        table.add_row(_folded(entry.name), _text("\n".join(entry.words)), size)
    return table


def _table_of_pairs(pairs: Iterable[Mapping[str, Any]], *, width: int) -> Table:
    table = _empty_table(width)
    for name in ("teacher", "student", "aligned by"):
        table.add_column(name, ratio=1, overflow="fold")
    for pair in pairs:
        table.add_row(_text(_named(pair["teacher"])), _text(_named(pair["student"])), _folded(pair["alignment"]))
    return table


def _empty_table(width: int) -> Table:
    return Table(box=None, width=width, padding=(0, 2, 0, 0), header_style="bold", pad_edge=False)


def _folded(name: str) -> Text:
    """The name of a folder, an alignment's on a line for each side."""
    return _text(name.replace(BETWEEN_SIDES, f"\n{BETWEEN_SIDES}"))


def _text(words: str, style: str = "") -> Text:
    """Words as they are, but for what would steer the terminal."""
    return Text(printable(words), style=style)
