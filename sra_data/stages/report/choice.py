"""Which sides, alignments and teachers a report shows, and what is not there yet to be shown."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sra_data.errors import ShardError
from sra_data.shards.choosing import model_name, names_of_model
from sra_data.shards.store import Plan, ShardSet, command_for


@dataclass(frozen=True)
class ShownPair:
    """An alignment in one direction: its name, its sides', and the (teacher, student) models it was made for."""

    name: str
    teacher: str
    student: str
    models: list[tuple[str, str]]


@dataclass(frozen=True)
class Shown:
    """What is shown, by name, all of it sealed; `missing` says in a sentence each what is not."""

    sides: list[str]
    pairs: list[ShownPair]
    teachers: list[str]
    missing: list[str]


def choose(shards: ShardSet, *, teacher: str | None, student: str | None) -> Shown:
    """Everything, or what has to do with one teacher (or its side) or student.

    Raises:
        ShardError: If `teacher` or `student` names nothing or several, or the two were never aligned.
    """
    sides, pairs, teachers = shards.manifest.names("sides"), pairs_of(shards), shards.manifest.names("teachers")
    wanted: set[str] = set()
    if student is not None:
        side = shards.choose_student(student)
        pairs, wanted = [pair for pair in pairs if pair.student == side], {side}
        teachers = [name for name in teachers if _side_of(shards, name) in {pair.teacher for pair in pairs}]
    if teacher is not None:
        teachers, side = _teachers(shards, teacher)
        pairs = [pair for pair in pairs if pair.teacher == side]
        if student is not None and not pairs:  # asked for in the other direction, or refused
            found = shards.pair(student=shards.choose_student(student), teacher=side)
            pairs = [ShownPair(found.name, found.teacher, found.student, [])]
        wanted |= {side}
    if wanted:
        wanted |= {side for pair in pairs for side in (pair.teacher, pair.student)}
        sides = [name for name in sides if name in wanted]
    return _sealed(shards, sides, pairs, teachers)


def pairs_of(shards: ShardSet) -> list[ShownPair]:
    """The alignments that were asked for, in both directions where both were, each once."""
    found: dict[tuple[str, str, str], list[tuple[str, str]]] = {}
    for pair in shards.manifest.pairs:
        key = (pair["alignment"], pair["teacher_side"], pair["student_side"])
        found.setdefault(key, []).append((pair["teacher"]["name"], pair["student"]["name"]))
    return [ShownPair(*key, models) for key, models in found.items()]


def _teachers(shards: ShardSet, wanted: str) -> tuple[list[str], str]:
    """The teachers' folders that are meant, and their side: one teacher, or all of a side."""
    known = shards.manifest.names("teachers")
    try:
        name = shards.choose_teacher(wanted)
    except ShardError as error:
        try:
            side = shards.choose_teacher_side(wanted)
        except ShardError as other:
            raise (error if known else other) from None
        of_side = [name for name in known if _side_of(shards, name) == side]
        return of_side if side.startswith(wanted) else [name for name in of_side if _is(shards, name, wanted)], side
    return [name], _side_of(shards, name)


def _is(shards: ShardSet, teacher: str, model: str) -> bool:
    facts = _facts(shards, f"teachers/{teacher}")
    return model_name(model) in names_of_model(facts.get("name", ""), facts.get("revision"))


def _side_of(shards: ShardSet, teacher: str) -> str:
    """The side of a teacher, whose pages need not be sealed."""
    said = _facts(shards, f"teachers/{teacher}").get("side")
    made_from = () if said else Plan.load(shards.path / "teachers" / teacher).made_from
    return str(said or next((base.partition("/")[2] for base in made_from if base.startswith("sides/")), ""))


def _facts(shards: ShardSet, section: str) -> dict[str, Any]:
    return shards.manifest.section(section) or {}


def _sealed(shards: ShardSet, sides: list[str], pairs: list[ShownPair], teachers: list[str]) -> Shown:
    """What of it is sealed, and a sentence for each that is not."""
    missing = {}

    def is_sealed(section: str) -> bool:
        found = _facts(shards, section).get("root") is not None
        if not found:
            missing[section] = f"{section} is unfinished: {command_for(section, shards.path)}."
        return found

    shown = [name for name in sides if is_sealed(f"sides/{name}")]
    whole = [
        pair for pair in pairs if is_sealed(f"alignments/{pair.name}") and {pair.teacher, pair.student} <= set(shown)
    ]
    spoken = [name for name in teachers if is_sealed(f"teachers/{name}")]
    sentences = list(missing.values())
    if not pairs:
        sentences.append("No alignment yet: run `sra-data align`.")
    if not teachers:
        sentences.append(f"No teacher's pages yet: run `sra-data cache-teacher {shards.path}`.")
    return Shown(shown, whole, spoken, sentences)
