"""What a run is recorded with: whose words the shards hold and for which tokenizer, versions, and the git state."""

from __future__ import annotations

import platform
import subprocess
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from sra_data.model_files import CONFIG, find_file
from sra_train.data.sources import Sources

LIBRARIES = ("torch", "transformers", "accelerate", "safetensors", "numpy", "pyarrow", "peft")


@dataclass(frozen=True)
class TeacherFacts:
    """One teacher: its folder, what the model is called, and its share of what is distilled."""

    folder: str
    model: str
    weight: float


@dataclass(frozen=True)
class ShardFacts:
    """Names from the manifest, as a run and its card record them.

    Attributes:
        side: name of the student's side.
        tokenizer: fingerprint of the tokenizer that cut it.
        teachers: folder, model and weight of each teacher.
        data: the corpus in words.
    """

    side: str
    tokenizer: str
    teachers: tuple[TeacherFacts, ...]
    data: str

    @classmethod
    def read(cls, sources: Sources) -> ShardFacts:
        """From the sections of what a run reads."""
        source = sources.shards.corpus.facts.get("source") or ["unnamed"]
        return cls(
            side=sources.side_name,
            tokenizer=sources.side.facts["tokenizer"],
            teachers=tuple(TeacherFacts(one.name, one.model, one.weight) for one in sources.teachers),
            data=", ".join(source) if isinstance(source, list) else str(source),
        )


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


def commit_of(model: str, revision: str | None) -> str | None:
    """The commit of a model of the Hub that a revision means now; None for a folder."""
    found = None if Path(model).is_dir() else find_file(model, CONFIG, revision)
    # In the Hub's cache the folder of a snapshot is named after its commit.
    return found.parent.name if found is not None and found.parent.parent.name == "snapshots" else None


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
