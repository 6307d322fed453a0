"""The README is true: its file map is the tree, its commands exist, its picture is what the tokenizers do."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
MAPPED_FOLDERS = ("sra_data", "sra_train", "pipelines", "tests", "benchmarks", "docs")
MADE_BY_RUNNING = {"compare-output", "demo-output", "shards", "runs", "comparisons", "build", "dist", "site"}


def file_map() -> set[str]:
    """Paths in the README's file map, without trailing slashes."""
    block = re.search(r"## File map\n+```\n(.*?)```", README, re.DOTALL)
    assert block, "the README has no file map"
    paths, folder = set(), ""
    for line in block[1].splitlines():
        name = line.split()[0].rstrip("/")
        folder = name if not line.startswith(" ") else folder
        paths.add(name if not line.startswith(" ") else f"{folder}/{name}")
    return paths


def tree() -> set[str]:
    """What is there: top-level entries, and one level inside the mapped folders."""
    top = {path.name for path in REPOSITORY.iterdir() if belongs(path)}
    inside = {
        f"{folder}/{path.name}"
        for folder in MAPPED_FOLDERS
        for path in (REPOSITORY / folder).iterdir()
        if belongs(path)
    }
    return top | inside


def belongs(path: Path) -> bool:
    made_here = path.parent == REPOSITORY and path.name in MADE_BY_RUNNING
    made = made_here or path.name.endswith(".egg-info") or path.name == "__pycache__"
    return not (made or path.name.startswith(".") or path.name == "__init__.py")


def test_file_map_equals_the_tree() -> None:
    assert file_map() == tree()


def commands() -> list[tuple[str, str]]:
    """Every `sra-data x` and `sra-train y` that the README names."""
    return sorted(set(re.findall(r"\b(sra-data|sra-train) ([a-z][a-z-]+)", README)))


@pytest.mark.parametrize(("program", "command"), commands())
def test_every_command_in_the_readme_exists(program: str, command: str) -> None:
    module = {"sra-data": "sra_data.cli", "sra-train": "sra_train.cli"}[program]
    done = subprocess.run(
        [sys.executable, "-c", f"from {module} import main; main()", command, "--help"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_make_targets_in_the_readme_exist() -> None:
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"\bmake ([a-z-]+)\b", README):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"make {target}"


def test_ci_runs_the_readme_test_command() -> None:
    assert "make test" in (REPOSITORY / ".ci" / "run").read_text(encoding="utf-8")
    assert "make test" in README


def drawn(side: str) -> list[list[str]]:
    """The spans of one side in the README's picture, each a list of its pieces."""
    row = re.search(rf"^{side} \([^)]*\)(.*)$", README, re.MULTILINE)
    assert row
    return [[piece.strip() for piece in span.split("·")] for span in row[1].split("│")]


def test_the_picture_is_what_the_tokenizers_do(shared_folder: Path) -> None:
    from sra_data.corpus.tokenization import SideTokenizer
    from sra_data.spans.alignment import align, segments_for

    text = "A naïve crêpe recipe, untranslatable 🙂!"
    ranges = [[(0, len(text))]]
    tokens = {}
    sides = {"student": "gpt2", "teacher": "tinyllama-1.1b"}
    for side, name in sides.items():
        tokenizer = SideTokenizer.load(str(shared_folder / "tokenizers" / name))
        batch = tokenizer.encode([text], response_ranges=ranges, is_chat=False)
        tokens[side] = (tokenizer, batch)
    segments = segments_for(student_texts=[text], student_ranges=ranges, teacher_texts=[text], teacher_ranges=ranges)
    offsets = {side: batch.offsets for side, (_, batch) in tokens.items()}
    table = align(student=offsets["student"], teacher=offsets["teacher"], segments=segments, student_texts=[text])
    for side, spans in (("student", table.student_spans[0]), ("teacher", table.teacher_spans[0])):
        tokenizer, batch = tokens[side]
        found = [[piece_as_drawn(tokenizer, int(i)) for i in batch.ids[0][start:stop]] for start, stop in spans]
        assert found == drawn(side)


def piece_as_drawn(tokenizer: object, token_id: int) -> str:
    """A lone space as ␣, a byte as two digits, everything else without its space."""
    piece = tokenizer.tokenizer.convert_ids_to_tokens(token_id)  # type: ignore[attr-defined]
    if piece == "▁":
        return "␣"
    byte = re.fullmatch(r"<0x(..)>", piece)
    return byte[1] if byte else tokenizer.tokenizer.decode([token_id]).strip()  # type: ignore[attr-defined]
