"""What the shards say of themselves: whose words they hold, for which tokenizer, and what a method may know of them.

Everything is read from the manifest and the small files beside the parts; nothing here opens a model. Also: the
versions and the git state a run is recorded with.
"""

from __future__ import annotations

import platform
import subprocess
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sra_data.errors import ShardError
from sra_data.models.output_head import OutputHead
from sra_data.shards.store import FolderReader, ShardSet
from sra_data.shards.vocabulary import load_vocabulary
from sra_train.contract import ModelShape, TeacherKnowledge

LIBRARIES = ("torch", "transformers", "accelerate", "safetensors", "numpy", "pyarrow", "peft")


@dataclass(frozen=True)
class ShardFacts:
    """Names and sizes from the manifest.

    Attributes:
        student: Hub id or folder the alignment was made for.
        student_revision: Of the Hub repository.
        student_tokenizer: Fingerprint of the tokenizer that cut the student's ids.
        teacher: In words.
        data: The corpus in words.
    """

    student: str
    student_revision: str | None
    student_tokenizer: str
    teacher: str
    data: str

    @classmethod
    def read(cls, shards: ShardSet, alignment: FolderReader) -> ShardFacts:
        """From the sections of the corpus and the alignment."""
        student, corpus = alignment.facts["student"], shards.corpus.facts
        source = corpus.get("source") or ["unnamed"]
        return cls(
            student=student["name"],
            student_revision=student.get("revision"),
            student_tokenizer=student["tokenizer"],
            teacher=corpus["teacher"]["name"],
            data=", ".join(source) if isinstance(source, list) else str(source),
        )


def choose_alignment(shards: ShardSet, *, student: str | None, name: str | None) -> FolderReader:
    """The alignment a run reads: the named one, the only one, or the one made for `student`.

    Args:
        shards: The folder.
        student: Hub id or folder of the student, where the user named one.
        name: Of the alignment (or its start), where the user named one.

    Raises:
        ShardError: If there is none, or several fit.
    """
    sections = {known: shards.manifest.section(f"alignments/{known}") or {} for known in shards.manifest.alignments}
    if name is not None or student is None or len(sections) < 2:
        return shards.alignment(name)
    wanted = str(Path(student).resolve()) if Path(student).is_dir() else student
    fitting = [known for known, facts in sections.items() if facts.get("student", {}).get("name") == wanted]
    if len(fitting) != 1:
        listed = ", ".join(fitting or sections)
        raise ShardError(
            f"{shards.path}: {len(fitting)} alignments were made for {student}; choose one with"
            f" --set student.alignment=NAME ({listed}), or run `sra-data align --student {student}`"
        )
    return shards.alignment(fitting[0])


def teacher_shape(shards: ShardSet) -> ModelShape:
    """Layers and hidden size of the teacher, from what it was cached with.

    Raises:
        ShardError: If the pages are missing or unfinished.
    """
    facts = shards.teacher.facts
    return ModelShape(num_layers=int(facts["num_layers"]), hidden_size=int(facts["hidden_size"]))


def teacher_knowledge(shards: ShardSet, alignment: FolderReader) -> TeacherKnowledge:
    """The teacher's output head and the vocabulary both sides share.

    Raises:
        ShardError: If a file is missing or damaged.
    """
    shared = load_vocabulary(alignment.folder)
    return TeacherKnowledge(
        shared_student_ids=long_tensor(shared.student_ids),
        shared_teacher_ids=long_tensor(shared.teacher_ids),
        head=teacher_head(shards),
        teacher_to_student=long_tensor(shared.student_of_teacher),
        end_of_sequence=shared.end_of_sequence,
    )


def teacher_head(shards: ShardSet) -> OutputHead:
    """The teacher's head in float32, with its family's scaling and soft-cap."""
    stored, metadata = shards.head()
    tensors = {name: torch.from_numpy(np.array(tensor.float32())) for name, tensor in stored.items()}
    return OutputHead.from_state(tensors, dict(metadata))


def long_tensor(values: np.ndarray) -> torch.Tensor:
    """int64 of its own memory."""
    return torch.from_numpy(values.astype(np.int64))


def failed_examples(shards: ShardSet) -> frozenset[str]:
    """Examples on which the teacher gave NaN or infinity; their pages hold nothing to learn from."""
    return frozenset(shards.teacher.facts.get("failed_examples", ()))


def recorded_versions() -> dict[str, str]:
    """Versions of Python and the libraries that decide a run's numbers, as far as they are installed."""
    found = {"python": platform.python_version()}
    for library in LIBRARIES:
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            continue
    if torch.cuda.is_available():
        found["cuda"] = str(torch.version.cuda)
        found["device"] = torch.cuda.get_device_name()
    return found


def git_state(folder: Path) -> dict[str, Any] | None:
    """Commit of the working folder's repository and whether it had changes; None where there is none."""
    try:
        commit = _git(folder, "rev-parse", "HEAD")
        return {"commit": commit, "has_changes": bool(_git(folder, "status", "--porcelain"))}
    except (OSError, subprocess.CalledProcessError):
        return None  # not a repository, or no git here: nothing to record


def _git(folder: Path, *arguments: str) -> str:
    return subprocess.run(
        ["git", *arguments], cwd=folder, check=True, capture_output=True, text=True, timeout=30
    ).stdout.strip()
