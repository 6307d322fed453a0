"""What a bad input is: files in an empty folder, a command line called there, and what the answer must name.

A command line is written as a user writes it. Capital words in it stand for what is whole: TEACHER and STUDENT (model
folders), DATA (a corpus), ALIGNED (shards without a teacher's pages) and SHARDS (with them). Other names are those of
the folder in which the command is called.
"""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.crash.world import World

Prepare = Callable[[Path, World], object]
WHOLE = re.compile(r"\b(TEACHER|STUDENT|DATA|ALIGNED|SHARDS)\b")

# With --json a command says nothing but its answer: what it says when it refuses is one line, all of it.
ALIGN = "sra-data align --json --workers 1 --out out --teacher TEACHER --student STUDENT"
CACHE = "sra-data cache-teacher --json --device cpu"
RUN = "sra-train run --json --epochs 2 --batch-size 4 --set tracking.plots=false --output-dir out"
EVALUATE = "sra-train evaluate --json --device cpu"


@dataclass(frozen=True)
class Case:
    """One of them.

    Attributes:
        name: its kind, a colon, and what is wrong; no two are called alike.
        line: the command line.
        says: words that stand in the answer, all of them: what is wrong, and where.
        prepare: makes the files, given the folder and the world.
        code: the exit code: 1, or 2 for wrong usage.
        leaves: patterns of what the command may leave or change, as documented; everything else stays as it was.
        is_nobody: whether somebody calls it who may not do everything (tests may run as root).
        owned_by: whose open work it is that this case fails, empty for everybody's.
    """

    name: str
    line: str
    says: tuple[str, ...]
    prepare: Prepare = lambda place, world: None
    code: int = 1
    leaves: tuple[str, ...] = ()
    is_nobody: bool = False
    owned_by: str = ""

    def words(self, world: World) -> list[str]:
        """The command line for this world."""
        known = {
            "TEACHER": world.root / "teacher",
            "STUDENT": world.root / "student",
            "DATA": world.root / "data.jsonl",
            "ALIGNED": world.root / "whole" / "align",
            "SHARDS": world.shards,
        }
        return [WHOLE.sub(lambda found: str(known[found[1]]), word) for word in shlex.split(self.line)]


def usage(kind: str, lines: Mapping[str, tuple[str, tuple[str, ...]]], *, code: int = 1) -> list[Case]:
    """Cases of command lines alone, by what is wrong with them."""
    return [Case(f"{kind}: {wrong}", line, says, code=code) for wrong, (line, says) in lines.items()]


def written(name: str, content: str | bytes) -> Prepare:
    """Writes one file."""

    def write(place: Path, world: World) -> None:
        path = place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)

    return write


def copied(which: str, name: str, damage: Callable[[Path], object]) -> Prepare:
    """Copies something whole (a word of `Case.line`) under a name and damages it."""

    def copy(place: Path, world: World) -> None:
        (source,) = Case("", which, ()).words(world)
        shutil.copytree(source, place / name)
        damage(place / name)

    return copy
