"""What is shown to be typed can be typed: every command line of every page is one that the programs take."""

from __future__ import annotations

import ast
from pathlib import Path

import click
import pytest
import typer

from sra_data.cli import app as data_app
from sra_train.cli import app as train_app
from tests.snippets import REPOSITORY, Command, blocks, commands_of, pages, python_of

APPS = {"sra-data": typer.main.get_command(data_app), "sra-train": typer.main.get_command(train_app)}
SHOWN = sorted(
    {command for page in pages() for command in commands_of(page)}, key=lambda command: (command.place, command.words)
)
WHOLE = [command for command in SHOWN if command.is_whole]
NAMED = [command for command in SHOWN if not command.is_whole]


def identity(command: Command) -> str:
    return f"{command.place}: {' '.join(command.words)}"


def parsed(command: Command, settings: Path) -> click.Context:
    """The command's arguments as the program takes them; `settings` stands for every file of options."""
    program, name, *arguments = command.words
    group = APPS[program]
    assert isinstance(group, click.Group) or hasattr(group, "commands")
    assert name in group.commands, f"{program} has no command {name}"
    for place, word in enumerate(arguments):
        if word == "--config":
            arguments[place + 1] = str(settings)
    return group.commands[name].make_context(name, arguments)


def flags_of(program: str, name: str) -> set[str]:
    """Every option of a command."""
    return {flag for one in APPS[program].commands[name].params for flag in (*one.opts, *one.secondary_opts)}


@pytest.mark.parametrize("command", WHOLE, ids=identity)
def test_a_command_line_in_a_block_is_taken_as_it_stands(command: Command, tmp_path: Path) -> None:
    settings = tmp_path / "settings.yaml"
    settings.write_text("{}\n")
    parsed(command, settings)


@pytest.mark.parametrize("command", NAMED, ids=identity)
def test_a_command_in_a_sentence_has_the_options_it_is_named_with(command: Command) -> None:
    program, name, *arguments = command.words
    assert name in APPS[program].commands, f"{program} has no command {name}"
    known = flags_of(program, name) | {"--help"}
    assert {word.partition("=")[0] for word in arguments if word.startswith("--")} <= known


def test_most_pages_show_something_and_what_they_show_is_found(capsys: pytest.CaptureFixture[str]) -> None:
    """The test of the tests: a pattern that finds nothing proves nothing."""
    assert len(WHOLE) > 40
    assert len(NAMED) > 40
    readme = [command for command in WHOLE if command.place == "README.md"]
    assert ("sra-data", "cache-teacher") in {command.words for command in readme}
    assert any(command.words[:2] == ("sra-train", "compare") for command in readme)
    with pytest.raises(typer.Exit):
        parsed(Command("here", ("sra-data", "cache-teacher", "--no-such-option"), is_whole=True), REPOSITORY)
    assert "no-such-option" in capsys.readouterr().err


@pytest.mark.parametrize("page", [page for page in pages() if python_of(page)], ids=lambda page: page.name)
def test_python_on_a_page_is_python(page: Path) -> None:
    for code in python_of(page):
        ast.parse(code)


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.relative_to(REPOSITORY).as_posix())
def test_every_block_says_what_it_is_where_it_is_fenced(page: Path) -> None:
    """A block of Python without its language would be run by nobody."""
    for language, code in blocks(page.read_text("utf-8")):
        if language == "":
            assert not code.lstrip().startswith(("import ", "from ")) or " import " not in code.splitlines()[0]
