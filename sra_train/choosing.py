"""Who learns and from whom: the words of the configuration as models and folders of the shards.

The student's side is the one its name was aligned for; a student of another name reads the side its tokenizer made,
known by the tokenizer's fingerprint. Teachers are folders of pages, by name, or the only one. Either way the student's
tokenizer is compared with the side's before anything is read: a wrong one would train quietly on wrong ids.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sra_data.errors import ShardError, TokenizerError
from sra_data.shards.choosing import model_name, names_of_model
from sra_data.shards.store import ShardSet
from sra_train.config import StudentConfig, TrainConfig
from sra_train.contract import KnowledgeNeeds
from sra_train.data.sources import Sources, open_sources
from sra_train.measure.evaluation import load_side, tokenizer_to_export


@dataclass(frozen=True)
class ChosenStudent:
    """The model that learns.

    Attributes:
        name: Hub id or folder.
        options: of the configuration, with the revision the shards were aligned with where none was named.
        side: name of the side it reads.
        tokenizer: as its model folder has it.
    """

    name: str
    options: StudentConfig
    side: str
    tokenizer: Any


def choose_student(shards: ShardSet, options: StudentConfig) -> ChosenStudent:
    """The student and its side.

    Raises:
        ShardError: If no side fits, or several do; lists what is there.
        TokenizerError: If the student's tokenizer is none of the sides', or not the chosen one's.
    """
    asked = None if options.name is None else name_with_revision(options.name, options.revision)
    side = side_in_manifest(shards, options.side, asked)
    name = options.name
    if name is None or name == side:
        assert side is not None
        model = only_student(shards, side)
        name, options = model["name"], options.model_copy(update={"revision": options.revision or model["revision"]})
    tokenizer = load_side(name, revision=options.revision, trust_remote_code=options.trust_remote_code)
    if side is None:
        side = side_of_tokenizer(shards, tokenizer.fingerprint, name)
    aligned = shards.side(side).facts["tokenizer"]
    if tokenizer.fingerprint != aligned:
        raise TokenizerError(
            f"student {name}: its tokenizer or chat template is not the one {shards.path} was aligned with (fingerprint"
            f" {tokenizer.fingerprint[:12]}, that of the side {side} is {aligned[:12]}); {align_it(shards, name)}, or"
            " choose the aligned student"
        )
    return ChosenStudent(name, options, side, tokenizer_to_export(tokenizer, options))


def name_with_revision(name: str, revision: str | None) -> str:
    """How a model is asked for."""
    return name if revision is None else f"{name}@{revision}"


def side_in_manifest(shards: ShardSet, named: str | None, student: str | None) -> str | None:
    """The side the manifest knows for what was asked; None where only the tokenizer can tell.

    Args:
        shards: the folder.
        named: a side, by name or its start, where the user named one.
        student: a model or a side, where the user named one.
    """
    if named is not None:
        fitting = [name for name in shards.manifest.names("sides") if name.startswith(named)]
        if named in fitting or len(fitting) == 1:
            return named if named in fitting else fitting[0]
        raise ShardError(
            f"{shards.path}: {len(fitting)} sides are called {named} (there are"
            f" {', '.join(shards.manifest.names('sides'))}); choose one with --set student.side=NAME"
        )
    if student is None or student in shards.manifest.names("sides"):
        return shards.choose_student(student)
    asked = {model_name(student), student.partition("@")[0]}
    known = [pair for pair in shards.manifest.pairs if asked & set(names_of_model(**pair["student"]))]
    return shards.choose_student(student) if known else None


def only_student(shards: ShardSet, side: str) -> dict[str, Any]:
    """The one model a side was aligned for as a student.

    Raises:
        ShardError: If there is none, or several.
    """
    models = shards.models_of(side, "student")
    if len(models) == 1:
        return models[0]
    listed = ", ".join(name_with_revision(model["name"], model["revision"]) for model in models) or "none"
    raise ShardError(
        f"{shards.path}: the side {side} was aligned for {len(models)} students ({listed}); choose one with --student"
    )


def side_of_tokenizer(shards: ShardSet, fingerprint: str, student: str) -> str:
    """The side that was made by the tokenizer of that fingerprint.

    Raises:
        TokenizerError: If there is none.
        ShardError: If there are several.
    """
    manifest = shards.manifest
    made = {name: (manifest.section(f"sides/{name}") or {}).get("tokenizer") for name in manifest.names("sides")}
    fitting = [name for name, known in made.items() if known == fingerprint]
    if not fitting:
        raise TokenizerError(
            f"student {student}: its tokenizer or chat template is not the one {shards.path} was aligned with"
            f" (fingerprint {fingerprint[:12]}, the sides are {', '.join(made) or 'none'});"
            f" {align_it(shards, student)}, or choose an aligned student"
        )
    if len(fitting) > 1:
        raise ShardError(
            f"{shards.path}: the tokenizer of the student {student} made {len(fitting)} sides ({', '.join(fitting)});"
            " choose one with --set student.side=NAME"
        )
    return fitting[0]


def align_it(shards: ShardSet, student: str) -> str:
    """The remedy for a student that was never aligned."""
    return f"run `sra-data align --student {student} --out {shards.path}` with the same data"


def choose_sources(shards: ShardSet, config: TrainConfig, *, side: str, needs: KnowledgeNeeds | None) -> Sources:
    """The folders a run reads: the student's side, and the teachers' unless the method has none (`needs`).

    Raises:
        ShardError: If a teacher or an alignment is missing, unfinished, or cannot be told from others.
    """
    chosen = config.data.teachers
    teachers = [(teacher.name, weight) for teacher, weight in zip(chosen, config.data.weights, strict=True)]
    return open_sources(
        shards,
        side=side,
        teachers=[] if needs is None else teachers or [(None, 1.0)],
        alignment=config.student.alignment,
    )
