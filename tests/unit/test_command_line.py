"""Help that loses nothing at any width, wrong usage in one line, and shells that know the closed choices."""

from __future__ import annotations

from typing import Annotated, Any

import pytest
import typer
from typer.testing import CliRunner

import sra_data.cli
import sra_train.cli
from sra_data.command_line import Program
from sra_train.choices import METHODS

WIDTHS = (60, 80, 110)
PROGRAMS: dict[str, typer.Typer] = {"sra-data": sra_data.cli.app, "sra-train": sra_train.cli.app}


def commands_of(program: str) -> dict[str, Any]:
    """Name -> Typer's command."""
    return dict(typer.main.get_command(PROGRAMS[program]).commands)  # type: ignore[attr-defined]


COMMANDS = [(program, name) for program in PROGRAMS for name in commands_of(program)]


def called(program: typer.Typer, *words: str, name: str, width: int = 60) -> Any:
    return CliRunner().invoke(program, list(words), prog_name=name, env={"COLUMNS": str(width)})


def without_space(text: str) -> str:
    return "".join(text.split())


def is_bare_switch(parameter: Any) -> bool:
    """`--json`: it is off unless it is given, which nobody need be told."""
    return getattr(parameter, "is_flag", False) and not parameter.secondary_opts


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize(("program", "command"), COMMANDS)
def test_no_help_loses_a_word_a_name_or_a_default(program: str, command: str, width: int) -> None:
    said = called(PROGRAMS[program], command, "--help", name=program, width=width).stdout
    assert all(len(line) <= width for line in said.splitlines())
    words, whole = set(said.split()), without_space(said)
    assert words >= {flag for one in commands_of(program)[command].params for flag in one.opts if flag[0] == "-"}
    for parameter in commands_of(program)[command].params:
        told = parameter.help
        assert told, f"{program} {command} {parameter.name}: says nothing"
        assert without_space(told) in whole
        assert set(told.split()) <= words | {f"{word}]" for word in told.split()}, f"a word of {told!r} is cut"
        if parameter.default not in (None, (), "") and not parameter.required and not is_bare_switch(parameter):
            default = parameter.default
            if isinstance(default, bool):
                default = (parameter.opts if default else parameter.secondary_opts)[0].removeprefix("--")
            assert f"{without_space(told)}[default:{default}]" in whole, f"{program} {command} {parameter.name}"


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_without_words_shows_every_command(program: str, width: int) -> None:
    result = called(PROGRAMS[program], name=program, width=width)
    assert result.exit_code == 2
    assert set(result.stdout.split()) >= set(commands_of(program))


def test_brackets_are_words_and_no_markup() -> None:
    app = Program("Bakes [all] of it.")

    @app.command()
    def bake(heat: Annotated[str, typer.Option(help="Air [or grill] or [red]fire[/red].")] = "air") -> None:
        """Bake [it]."""

    @app.command()
    def cool() -> None:
        """Cool [it]."""

    assert (
        "Air [or grill] or [red]fire[/red]. [default: air]" in called(app, "bake", "--help", name="b", width=110).stdout
    )
    assert "Cool [it]." in called(app, "--help", name="b").stdout


@pytest.mark.parametrize(
    ("program", "words", "line"),
    [
        (
            "sra-data",
            "cache-teacher --hidden-dtyp int8",
            "--hidden-dtyp: sra-data cache-teacher has no such option; did you mean --hidden-dtype?",
        ),
        (
            "sra-data",
            "cache-teacher --hidden-dtype int3",
            "--hidden-dtype int3: 'int3' is not one of 'bf16', 'fp16', 'fp32', 'int8', 'none'; "
            "see `sra-data cache-teacher --help`",
        ),
        ("sra-data", "algin", "algin: sra-data has no such command; did you mean align?"),
        ("sra-data", "qqq", "qqq: sra-data has no such command; see `sra-data --help`"),
        ("sra-data", "align", "Missing option '--teacher'; see `sra-data align --help`"),
        ("sra-train", "run --zzzzzzz", "--zzzzzzz: sra-train run has no such option; see `sra-train run --help`"),
        ("sra-train", "run --precison no", "--precison: sra-train run has no such option; did you mean --precision?"),
        ("sra-train", "run a b", "Got unexpected extra argument(s) (b); see `sra-train run --help`"),
    ],
)
def test_wrong_usage_is_one_line_with_a_remedy_at_60_columns_too(program: str, words: str, line: str) -> None:
    result = called(PROGRAMS[program], *words.split(), name=program)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.replace(" argument ", " argument(s) ") == f"error: {line}\n"


def test_a_number_that_is_none_is_named_with_its_option() -> None:
    for words in (("--top-k", "x"), ("--top-k=x",)):
        line = called(sra_data.cli.app, "cache-teacher", *words, name="sra-data").stderr
        assert line.startswith("error: --top-k x: ")
        assert line.endswith("; see `sra-data cache-teacher --help`\n")
        assert line.count("\n") == 1


def test_wrong_usage_does_not_steer_the_terminal() -> None:
    assert "\x1b" not in called(sra_data.cli.app, "--a\x1b[31m", name="sra-data").stderr


@pytest.mark.parametrize(
    ("program", "words", "expected"),
    [
        ("sra-data", "cache-teacher --hidden-dtype ", {"bf16", "fp16", "fp32", "int8", "none"}),
        ("sra-data", "cache-teacher --hidden-dtype f", {"fp16", "fp32"}),
        ("sra-data", "align --overlong t", {"truncate", "truncate-prompt"}),
        ("sra-train", "run --precision ", {"auto", "no", "bf16", "fp16"}),
        ("sra-train", "run --method s", {"sft", "sra", "strict"}),
        ("sra-train", "run --preset tu", {"tuned"}),
        ("sra-train", "evaluate --dtype b", {"bfloat16"}),
    ],
)
def test_the_shell_completes_closed_choices(program: str, words: str, expected: set[str]) -> None:
    asked = {
        f"_{program.replace('-', '_').upper()}_COMPLETE": "complete_zsh",
        "_TYPER_COMPLETE_ARGS": f"{program} {words}",
    }
    said = CliRunner().invoke(PROGRAMS[program], [], prog_name=program, env=asked).stdout
    assert {word.strip('"') for word in said.partition("((")[2].partition("))")[0].split()} == expected


def test_the_methods_that_the_shell_knows_are_those_there_are() -> None:
    import sra_train.methods
    from sra_train.methods.base import METHODS as REGISTERED

    assert sra_train.methods is not None
    assert sorted(REGISTERED) == list(METHODS)
    method = next(one for one in commands_of("sra-train")["run"].params if one.name == "method")
    assert all(name in method.help for name in METHODS)
