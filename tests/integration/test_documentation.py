"""The pages are run: commands as they stand, in order, then their Python, in a folder with models of those names."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import sra_data
import sra_data.api
import sra_train.run
from tests.integration.command_lines import SENTENCES, write_examples
from tests.integration.command_lines import sra_data as sra_data_command
from tests.integration.command_lines import sra_train as sra_train_command
from tests.model_zoo import tiny_model
from tests.snippets import REPOSITORY, commands_of, pages, parts, python_of
from tests.tokenizer_zoo import train_byte_level_bpe, train_unigram

NOTEBOOK = REPOSITORY / "docs" / "notebook.ipynb"
# Dozens of runs: what it does is tested by itself.
NOT_RUN = ("compare",)
PROGRAMS = {"sra-data": sra_data_command, "sra-train": sra_train_command}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: my.jsonl, held-out.jsonl, and under the names of the pages' models small ones.

    A name that is a folder here is that folder, so the lines of the pages need not be changed. The teacher has as many
    layers as the one it stands for.
    """
    monkeypatch.chdir(tmp_path)
    for name, family, tokenizer, options in (
        ("Qwen/Qwen1.5-1.8B", "llama", train_byte_level_bpe(SENTENCES, 400), {"num_hidden_layers": 24}),
        ("openai-community/gpt2", "gpt2", train_unigram(SENTENCES, 420), {"n_positions": 256}),
    ):
        model = tiny_model(family, seed=1, vocab_size=len(tokenizer) + 3, **options)
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    write_examples(tmp_path / "my.jsonl", 24)
    write_examples(tmp_path / "held-out.jsonl", 6, first=100)
    return tmp_path


def run_commands(page: Path, *, most: int | None = None) -> int:
    """Run the command lines of a page's blocks, in order; how many."""
    lines = [one.words for one in commands_of(page) if one.is_whole and one.words[1] not in NOT_RUN][:most]
    for program, *arguments in lines:
        answer = PROGRAMS[program](*arguments)
        assert answer.exit_code == 0, f"{program} {' '.join(arguments)}: {answer.error}"
    return len(lines)


def run_python(pieces: list[str]) -> dict[str, Any]:
    """Run pieces of Python one after the other, as one script; what they left."""
    names: dict[str, Any] = {"__name__": "of_the_page"}
    for piece in pieces:
        exec(compile(piece, "of_the_page", "exec"), names)
    return names


@pytest.mark.slow
def test_the_readme_does_what_it_says(place: Path) -> None:
    readme = REPOSITORY / "README.md"
    assert run_commands(readme, most=3) == 3  # the three commands
    assert (place / "runs" / "sra-gpt2" / "model" / "README.md").is_file()
    names = run_python(python_of(readme))
    assert Path(names["summary"].model_folder) == Path("runs/first/model")
    run_python(python_of(REPOSITORY / "sra_data" / "shards" / "README.md"))  # on what it made


def test_the_first_steps_can_be_taken(place: Path) -> None:
    page = REPOSITORY / "docs" / "first-steps.md"
    assert run_commands(page) > 8
    assert (place / "report.html").is_file()
    names = run_python(python_of(page))
    assert names["cached"].root
    run_python(python_of(REPOSITORY / "docs" / "stores.md"))  # puts a copy of the shards into a store
    assert (place / "runs" / "from-python" / "model" / "config.json").is_file()


def test_every_page_with_python_is_one_of_those_that_are_run() -> None:
    shown = {page.relative_to(REPOSITORY).as_posix() for page in pages() if python_of(page)}
    assert shown == {"README.md", "docs/first-steps.md", "docs/stores.md", "sra_data/shards/README.md"}


@pytest.mark.parametrize("module", [sra_data, sra_data.api, sra_train.run], ids=lambda module: module.__name__)
def test_the_example_of_a_module_runs(module: ModuleType, place: Path) -> None:
    example = "\n".join(part for part in parts(module.__doc__ or "")[1])
    assert "import" in example
    if module is sra_train.run:
        sra_data.align("Qwen/Qwen1.5-1.8B", "openai-community/gpt2", data="my.jsonl")
        sra_data.cache_teacher()
    run_python([example])
    assert (place / "shards" / "manifest.json").is_file()


def test_the_notebook_runs_from_its_first_cell_to_its_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cells = json.loads(NOTEBOOK.read_text("utf-8"))["cells"]
    assert len(cells) == 10
    names = run_python(["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"])
    assert names["aligned"].num_dev > 0
    assert "bits_per_byte" in names["summary"].metrics
    assert names["cached"].root
    assert (tmp_path / names["summary"].model_folder / "README.md").is_file()


def test_the_notebook_is_one_that_jupyter_opens_and_holds_no_results() -> None:
    notebook = json.loads(NOTEBOOK.read_text("utf-8"))
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert (cell["outputs"], cell["execution_count"]) == ([], None)
        assert all(line.endswith("\n") for line in cell["source"][:-1])
