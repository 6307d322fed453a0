"""The reference of the two command lines, made from the Typer apps themselves."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

INTRODUCTION = """\
# Commands

Made from the commands themselves: what `--help` says. Every command ends with 0 (done), 1 (a known error, one line;
see [Messages](messages.md)), 2 (wrong usage) or 130 (interrupted; the same command goes on). `--json` prints one JSON
object.
"""


def page() -> str:
    """The page as Markdown."""
    return "\n".join([INTRODUCTION, *(line for name, group in groups() for line in _group(name, group))])


def groups() -> Iterator[tuple[str, Any]]:
    """Program -> its commands."""
    import typer

    from sra_data.cli import app as data_app
    from sra_train.cli import app as train_app

    for name, app in (("sra-data", data_app), ("sra-train", train_app)):
        yield name, typer.main.get_command(app)


def _group(program: str, group: Any) -> Iterator[str]:
    yield from (f"## {program}", "", plain(group.help), "")
    for name, command in group.commands.items():
        yield from (f"### {program} {name}", "", plain(command.help), "")
        arguments = [one for one in command.params if one.param_type_name == "argument"]
        usage = [f"[{one.name.upper()}]" if not one.required else one.name.upper() for one in arguments]
        yield from (f"    {' '.join([program, name, '[OPTIONS]', *usage])}", "")
        yield from ("| | default | |", "|---|---|---|")
        for parameter in command.params:
            yield f"| {_names(parameter)} | {_default(parameter)} | {plain(parameter.help or '').replace('|', '/')} |"
        yield ""


def _names(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return f"`{parameter.name.upper()}`"
    names = " / ".join(f"`{name}`" for name in (*parameter.opts, *parameter.secondary_opts))
    return names if parameter.is_flag else f"{names} *{_kind(parameter)}*{', repeatable' if parameter.multiple else ''}"


def _kind(parameter: Any) -> str:
    """What may be written: one of several words, text or a number."""
    described = getattr(parameter, "type_descriptor", None)  # Typer's own where it stands without click
    if described is None:
        choices = getattr(parameter.type, "choices", ())
        return " or ".join(str(getattr(one, "value", one)) for one in choices) or parameter.type.name
    annotation = described.annotation
    if get_origin(annotation) is Literal:
        return " or ".join(map(str, get_args(annotation)))
    return {int: "integer", float: "float"}.get(annotation, "text")


def _default(parameter: Any) -> str:
    if parameter.required:
        return "**needed**"
    value = parameter.default
    if value is None or callable(value) or value == ():
        return ""
    return f"`{str(value).lower() if isinstance(value, bool) else getattr(value, 'value', value)}`"


def plain(text: str) -> str:
    """A help text on one line."""
    return " ".join(text.split())
