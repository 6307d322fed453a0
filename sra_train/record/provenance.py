"""What a run is recorded with: whose words the shards hold and for which tokenizer, versions, and the git state."""

from __future__ import annotations

import platform
import subprocess
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from sra_train.data.sources import Sources

LIBRARIES = ("torch", "transformers", "accelerate", "safetensors", "numpy", "pyarrow", "peft")


@dataclass(frozen=True)
class TeacherFacts:
    """One teacher.

    Attributes:
        folder: of its pages.
        model: what it is called.
        weight: its share of what is distilled.
        tokenizer: fingerprint of the tokenizer that cut its side.
    """

    folder: str
    model: str
    weight: float
    tokenizer: str


@dataclass(frozen=True)
class ShardFacts:
    """Names from the manifest, as a run and its card record them.

    Attributes:
        side: name of the student's side.
        tokenizer: fingerprint of the tokenizer that cut it.
        teachers: in order.
        sources: what the corpus came from, each in words.
    """

    side: str
    tokenizer: str
    teachers: tuple[TeacherFacts, ...]
    sources: tuple[str, ...]

    @property
    def other_tokenizers(self) -> list[str]:
        """The models among the teachers that cut text by another tokenizer than the student."""
        return [one.model for one in self.teachers if one.tokenizer != self.tokenizer]

    @classmethod
    def read(cls, sources: Sources) -> ShardFacts:
        """From the sections of what a run reads."""
        source = sources.shards.corpus.facts.get("source") or ["unnamed"]
        return cls(
            side=sources.side_name,
            tokenizer=sources.side.facts["tokenizer"],
            teachers=tuple(
                TeacherFacts(one.name, one.model, one.weight, str(one.side.facts["tokenizer"]))
                for one in sources.teachers
            ),
            sources=tuple(map(str, source)) if isinstance(source, list) else (str(source),),
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
