"""What the words of the repository show to be typed: command lines and Python, taken out of Markdown."""

from __future__ import annotations

import re
import shlex
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
LEFT_OUT = {"shared", ".venv", "site", "build", "dist", "node_modules"}
FENCED = re.compile(
    r"^(?P<fence>`{3,})(?P<language>\w*)[^\n]*\n(?P<code>.*?)^(?P=fence)\s*?$", re.DOTALL | re.MULTILINE
)
INLINE = re.compile(r"`([^`\n]+)`")
PROGRAMS = ("sra-data", "sra-train")


@dataclass(frozen=True)
class Command:
    """One command line.

    Attributes:
        place: file and a count, for messages.
        words: program, command, arguments.
        is_whole: it stands in a block to be typed as it is; otherwise it is named in a sentence and may lack arguments.
    """

    place: str
    words: tuple[str, ...]
    is_whole: bool


def pages() -> list[Path]:
    """Every Markdown file of the repository."""
    found = [
        path
        for path in REPOSITORY.rglob("*.md")
        if not LEFT_OUT & set(path.relative_to(REPOSITORY).parts)
        and not any(
            part.startswith((".", "demo-output", "compare-output")) for part in path.parts[len(REPOSITORY.parts) :]
        )
    ]
    return sorted(found)


def blocks(text: str) -> Iterator[tuple[str, str]]:
    """(language, code) of every block: fenced, or indented by four spaces (language "")."""
    for found in FENCED.finditer(text):
        yield found["language"], found["code"]
    for indented in parts(text)[1]:
        yield "", indented


def parts(text: str) -> tuple[str, list[str]]:
    """The sentences, and the blocks that are indented: after an empty line, a heading or the beginning."""
    sentences: list[str] = []
    found: list[list[str]] = []
    before, is_inside = "", False
    for line in FENCED.sub("\n", text).splitlines():
        is_inside = line.startswith("    ") and (is_inside or not before.strip() or before.startswith("#"))
        if is_inside and (not found or not before.startswith("    ")):
            found.append([])
        (found[-1] if is_inside else sentences).append(line)
        before = line
    return "\n".join(sentences), [textwrap.dedent("\n".join(lines)) + "\n" for lines in found]


def python_of(path: Path) -> list[str]:
    """The Python to be run of a page, in order."""
    return [code for language, code in blocks(path.read_text("utf-8")) if language == "python"]


def commands_of(path: Path) -> Iterator[Command]:
    """Every command line of the two programs on a page."""
    text, name = path.read_text("utf-8"), path.relative_to(REPOSITORY).as_posix()
    for language, code in blocks(text):
        if language in ("", "bash", "sh", "console", "shell"):
            for line in re.sub(r"\\\n\s*", "", code).splitlines():
                if (words := _words(line)) is not None:
                    yield Command(name, words, is_whole=True)
    for found in INLINE.finditer(parts(text)[0].replace("\n", " ")):
        if (words := _words(found[1])) is not None:
            yield Command(name, words, is_whole=False)


def _words(line: str) -> tuple[str, ...] | None:
    """Program, command and arguments of a line; None where it calls neither program."""
    line = re.split(r" {2,}|…", line.strip().removeprefix("$ ").removesuffix("&").strip())[0]  # words stand beside it
    line = re.sub(r"^(?:[A-Z_]+=\S* )+", "", line)  # settings of the environment
    line = re.sub(r"^torchrun .*? -m sra_train\.cli ", "sra-train ", line)
    if not re.match(rf"(?:{'|'.join(PROGRAMS)}) [a-z]", line):
        return None
    return tuple(shlex.split(line, comments=True))
