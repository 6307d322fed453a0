"""Which teacher is meant, which side it reads, and by span whose spans: decided before anything large is loaded.

A side is a tokenizer with its template and maximum length, so a teacher's side is found by the teacher's own tokenizer:
its fingerprint covers every id and every special token, and two ids that were swapped make another tokenizer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from sra_data.corpus.loading import most_positions_of
from sra_data.corpus.tokenization import SideTokenizer
from sra_data.errors import ShardError, TokenizerError
from sra_data.shards.choosing import choose as choose_folder
from sra_data.shards.store import PairReader, ShardSet, folder_name, model_name
from sra_data.stages.cache.examples import ExampleReader
from sra_data.stages.cache.options import CacheOptions
from sra_data.teacher.loading import TeacherIdentity, name_of, read_config, settled
from sra_data.teacher.spec import TeacherSpec


@dataclass(frozen=True)
class Chosen:
    """What pages are of.

    Attributes:
        teacher: the model, settled; a local folder by its whole path.
        side: name of the side it reads.
        pair: the alignment whose spans are pooled, seen from its student; None where a row is a position.
    """

    teacher: TeacherSpec
    side: str
    pair: PairReader | None = None

    @property
    def made_from(self) -> tuple[str, ...]:
        """The sections that the pages are made from."""
        return (f"sides/{self.side}", *(() if self.pair is None else (self.pair.reader.section,)))

    def section_of(self, identity: TeacherIdentity, *others: str) -> str:
        """``teachers/<model>-<8 hex>``: one folder for each teacher, side and, by span, alignment, and for what else.

        What else is asked (dtype, layers, top k) is not in the name: other options for one teacher are refused, field
        by field, not put beside.
        """
        inputs = [identity.fingerprint, *self.made_from, *others]
        return f"teachers/{folder_name(identity.name, inputs, otherwise='teacher')}"


def choose(shards: ShardSet, options: CacheOptions) -> Chosen:
    """The teacher, its side and, by span, the alignment that are meant.

    Raises:
        ModelError: If there is no such teacher.
        ShardError: If several fit, none does, or the teacher cannot read the side.
    """
    teacher = asked_teacher(shards, options.teacher)
    side = side_of(shards, teacher, options.side)
    examples = ExampleReader(shards.side(side), pair_of(shards, side, options))
    _refuse_short(examples, teacher)
    if not examples.num_rows.any():
        what = "response" if examples.pair is None else f"span in {examples.pair.name}"
        raise ShardError(
            f"{examples.side.folder}: no example has a {what} to cache; align data with responses that fit"
        )
    return Chosen(teacher, side, examples.pair)


def pair_of(shards: ShardSet, side: str, options: CacheOptions) -> PairReader | None:
    """By span, the alignment whose spans are pooled; None by token.

    Raises:
        ShardError: If several fit, or none does.
    """
    if not options.capture.by_span:
        return None
    student = shards.choose_student(options.student)
    return shards.pair(student=student, teacher=side, name=options.alignment, flag="--alignment NAME")


def asked_teacher(shards: ShardSet, spec: TeacherSpec) -> TeacherSpec:
    """The teacher that is asked for, or the only one that the shards were aligned for.

    Raises:
        ShardError: If none is asked for and they were aligned for several.
    """
    aligned = aligned_teachers(shards)
    if spec.name is None:
        if len(aligned) != 1:
            there = ", ".join(_with_revision(*model) for model in aligned) or "none"
            raise ShardError(
                f"{shards.path}: {len(aligned)} teachers were aligned ({there}); choose one with --teacher NAME"
            )
        ((name, revision),) = aligned
        return settled(replace(spec, name=name, revision=spec.revision or revision))
    spec = settled(spec)
    name = model_name(name_of(spec))
    revisions = [revision for known, revision in aligned if known == name]
    known = revisions[0] if len(revisions) == 1 else None
    return replace(spec, name=name, revision=spec.revision or known)


def aligned_teachers(shards: ShardSet) -> list[tuple[str, str | None]]:
    """(name, revision) of the teachers that the shards were aligned for, each once, in that order."""
    models = (pair["teacher"] for pair in shards.manifest.pairs)
    return list(dict.fromkeys((model["name"], model.get("revision")) for model in models))


def side_of(shards: ShardSet, teacher: TeacherSpec, wanted: str | None) -> str:
    """The side a teacher reads: the one of its tokenizer, or the one wanted of several.

    Args:
        shards: the folder.
        teacher: settled.
        wanted: a side's name or the start of it. It must be one of the teacher's tokenizer, unless the teacher comes
            without any.

    Raises:
        ModelError: If there is no such teacher.
        ShardError: If no side, or several, are of its tokenizer.
    """
    sides = {name: shards.manifest.section(f"sides/{name}") or {} for name in shards.manifest.names("sides")}
    tokenizer = _tokenizer_of(teacher)
    if wanted is not None:
        chosen = _one_of(shards, wanted, list(sides), teacher)
        if tokenizer is not None and sides[chosen].get("tokenizer") != tokenizer.fingerprint:
            raise ShardError(
                f"--side {chosen}: {_read_by(sides[chosen])}, teacher {teacher.name} has tokenizer "
                f"{tokenizer.fingerprint[:12]}; leave --side out, or {_add_side(shards, teacher)}"
            )
        return chosen
    if tokenizer is None:
        raise ShardError(
            f"teacher {teacher.name}: no tokenizer beside it, so that nothing says which side it reads; save its "
            f"tokenizer there, or name the side with --side NAME (there {_listed(sides)})"
        )
    fitting = [name for name, facts in sides.items() if facts.get("tokenizer") == tokenizer.fingerprint]
    if not fitting:
        raise ShardError(
            f"{shards.path}: no side is of the tokenizer {tokenizer.fingerprint[:12]} of teacher {teacher.name} (there "
            f"{_listed(sides)}); {_add_side(shards, teacher)}"
        )
    own = [
        pair["teacher_side"]
        for pair in shards.manifest.pairs
        if pair["teacher"]["name"] == teacher.name and pair["teacher_side"] in fitting
    ]
    return _one_of(shards, None, sorted(set(own)) if len(set(own)) == 1 else fitting, teacher)


def _one_of(shards: ShardSet, wanted: str | None, names: Sequence[str], teacher: TeacherSpec) -> str:
    command = f"sra-data align --teacher {teacher.name} ... --out {shards.path}"
    known: dict[str, tuple[str, ...]] = dict.fromkeys(names, ())
    return choose_folder(wanted, known, where=shards.path, what="side", flag="--side NAME", command=command)


def _tokenizer_of(teacher: TeacherSpec) -> SideTokenizer | None:
    """The tokenizer beside a teacher; None where there is a model and no tokenizer."""
    try:
        return SideTokenizer.load(name_of(teacher), teacher.revision, teacher.trust_remote_code)
    except TokenizerError:
        read_config(teacher)  # refuses what is no model either
        return None


def _refuse_short(examples: ExampleReader, teacher: TeacherSpec) -> None:
    """Refuse a teacher that reads fewer positions than its longest row has.

    Raises:
        ShardError: With both numbers.
    """
    most = most_positions_of(name_of(teacher), teacher.revision, teacher.trust_remote_code)
    longest = int(examples.by_position.num_tokens.max(initial=0))
    if most is not None and longest > most:
        raise ShardError(
            f"{examples.side.folder}: its longest row has {longest} tokens, teacher {teacher.name} reads {most}; run "
            f"`sra-data align` with --teacher {teacher.name} and --teacher-max-length {most}, which adds a side"
        )


def _listed(sides: dict[str, dict[str, Any]]) -> str:
    said = ", ".join(f"{name} {_read_by(facts)}" for name, facts in sides.items())
    return f"{'is' if len(sides) == 1 else 'are'} {said or 'none'}"


def _read_by(facts: dict[str, Any]) -> str:
    fingerprint = facts.get("tokenizer")
    return f"of tokenizer {fingerprint[:12]}" if fingerprint else "unfinished"


def _add_side(shards: ShardSet, teacher: TeacherSpec) -> str:
    students = dict.fromkeys(pair["student"]["name"] for pair in shards.manifest.pairs)
    asked, student = _with_revision(name_of(teacher), teacher.revision), next(iter(students), "...")
    return f"add it with `sra-data align --teacher {asked} --student {student} --out {shards.path}` and the same data"


def _with_revision(name: str, revision: str | None) -> str:
    return f"{name}@{revision}" if revision else name
