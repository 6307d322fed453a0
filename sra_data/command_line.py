"""How both programs show their help and refuse wrong usage, at any width.

Typer's own help has six columns, which cut the names of options on a narrow terminal, and reads [brackets] as markup.
Here an option is one entry: its names and what it takes, then its words and its default, in full, beside or beneath.
Wrong usage is one line, as every other error is, and names the nearest option there is.
"""

from __future__ import annotations

import difflib
import re
import shutil
import sys
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NoReturn

import typer
from typer.core import TyperCommand, TyperGroup

from sra_data.terminal import printable

# Typer brings click along under another name from one version to the next: the class is found through its child.
UsageError: Any = typer.BadParameter.__mro__[1]
WRONG_USAGE = 2  # exit code
WIDEST = 110  # a line longer than this is hard to follow
BESIDE, BENEATH = 32, 6  # cells before an option's words, where there is room for two columns and where there is not
ROOM_FOR_TWO = 80

Entry = tuple[str, str]  # how it is called, what it is


class _Command:
    """What commands and their groups have in common. Contexts and formatters are Typer's, of either name."""

    def format_help(self: Any, ctx: Any, formatter: Any) -> None:
        """Write usage, text, arguments, options and commands; bold is taken away where no terminal reads it."""
        width = min(shutil.get_terminal_size().columns, WIDEST)
        formatter.write("\n".join(_page(self, ctx, width)))

    def parse_args(self: Any, ctx: Any, args: list[str]) -> Any:
        """Read the words of the command line; refuse in one line what does not fit."""
        words = list(args)
        if not words and getattr(self, "no_args_is_help", False) and not ctx.resilient_parsing:
            typer.echo(ctx.get_help())
            raise typer.Exit(WRONG_USAGE)
        try:
            return super().parse_args(ctx, args)  # type: ignore[misc]
        except UsageError as error:
            _refuse(error, ctx, words)


class Command(_Command, TyperCommand):
    """One command."""


class Group(_Command, TyperGroup):
    """A program with its commands."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the command that is meant."""
        try:
            return super().resolve_command(ctx, args)
        except UsageError as error:
            _refuse(error, ctx, args, is_command=True)


class Program(typer.Typer):
    """A Typer application whose every command is a `Command`."""

    def __init__(self, help: str) -> None:
        super().__init__(cls=Group, help=help, no_args_is_help=True, pretty_exceptions_enable=False)

    def command(self, name: str | None = None, **settings: Any) -> Any:
        """Make a command of a function; `settings` are Typer's."""
        return super().command(name, cls=Command, **settings)


# --------------------------------------------------------------------------- help


def _page(command: Any, ctx: Any, width: int) -> Iterator[str]:
    """The lines of a command's help."""
    yield from (*textwrap.wrap(" ".join(command.get_usage(ctx).split()), width), "")
    for paragraph in _paragraphs(command.help or ""):
        yield from (*textwrap.wrap(paragraph, width), "")
    for title, entries in _sections(command, ctx):
        if entries:
            yield bold(f"{title}:")
            for entry in entries:
                yield from _lines(entry, width)
            yield ""


def _sections(command: Any, ctx: Any) -> Iterator[tuple[str, list[Entry]]]:
    """Arguments, options and, of a group, commands."""
    params = [(param.param_type_name, param.get_help_record(ctx)) for param in command.get_params(ctx)]
    for kind in ("argument", "option"):
        yield f"{kind.capitalize()}s", [record for one, record in params if one == kind and record is not None]
    if isinstance(command, Group):
        shown = [(name, command.get_command(ctx, name)) for name in command.list_commands(ctx)]
        yield "Commands", [(name, next(_paragraphs(one.help or ""), "")) for name, one in shown if one is not None]


def _paragraphs(text: str) -> Iterator[str]:
    return (" ".join(paragraph.split()) for paragraph in text.split("\n\n") if paragraph.strip())


def _lines(entry: Entry, width: int) -> Iterator[str]:
    """An entry: its name, and its words beside it where both columns have room, else beneath; no word is cut."""
    name, words = (" ".join(part.split()) for part in entry)
    indent = BESIDE if width >= ROOM_FOR_TWO else BENEATH
    names = textwrap.wrap(name, width - 2, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False)
    said = textwrap.wrap(words, width - indent, break_long_words=False, break_on_hyphens=False)
    is_beside = len(names) == 1 and len(name) + 4 <= indent and said
    for line in names:
        yield "  " + bold(line) + (" " * (indent - len(line) - 2) + said.pop(0) if is_beside else "")
    yield from (" " * indent + line for line in said)


def bold(words: str) -> str:
    """Words that stand out on any ground."""
    return typer.style(words, bold=True)


# --------------------------------------------------------------------------- refusals


def _refuse(error: Any, ctx: Any, words: Sequence[str], *, is_command: bool = False) -> NoReturn:
    """Say in one line what was wrong with the words and end; a shell that completes them hears nothing."""
    if ctx.resilient_parsing:
        raise error
    said = _of_command(words[0], ctx) if is_command else _of_option(error, ctx, words)
    print(f"error: {printable(' '.join(said.split()))}", file=sys.stderr, flush=True)
    raise typer.Exit(WRONG_USAGE)


def _of_command(word: str, ctx: Any) -> str:
    return f"{word}: {ctx.command_path} has no such command; {_nearest(word, ctx.command.commands) or _see(ctx)}"


def _of_option(error: Any, ctx: Any, words: Sequence[str]) -> str:
    """What, where, value and remedy."""
    if type(error).__name__ == "NoSuchOption":
        flags = (flag for param in ctx.command.get_params(ctx) for flag in (*param.opts, *param.secondary_opts))
        near = _nearest(error.option_name, (flag for flag in flags if flag.startswith("--")))
        return f"{error.option_name}: {ctx.command_path} has no such option; {near or _see(ctx)}"
    said = error.format_message().rstrip(".")
    if found := re.fullmatch(r"Invalid value for '(?P<name>[^']*)': (?:Value error, )?(?P<why>.*)", said, re.DOTALL):
        why = found["why"].replace("Input should", "should", 1)
        said = f"{found['name']}{_given(error.param, words)}: {why}"
    return f"{said}; {_see(ctx)}"


def _given(param: Any, words: Sequence[str]) -> str:
    """The value that an option was given, behind a space; nothing where it was not given by its name."""
    for flag in getattr(param, "opts", ()):
        for word, following in zip(words, [*words[1:], ""], strict=True):
            if word == flag or word.startswith(f"{flag}="):
                return f" {following if word == flag else word.partition('=')[2]}"
    return ""


def _see(ctx: Any) -> str:
    return f"see `{ctx.command_path} --help`"


def _nearest(word: str, known: Iterable[str]) -> str:
    """A question after the nearest of the known words; nothing where none is near."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"did you mean {near[0]}?" if near else ""
