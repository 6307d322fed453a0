"""Options declared once: a field of a frozen dataclass is an option of the command line, a value and a record.

    Numbers = Literal["bf16", "fp32"]

    @dataclass(frozen=True)
    class Oven:
        heat: int = option(200, "Degrees (default: 200).")
        numbers: Numbers = option("bf16", "How they are kept.")
        shelves: tuple[int, ...] = option((1, 2), "Shelves, with commas.", name="use-shelves")
        brand: str | None = None

    @app.command()
    @expand()
    def bake(oven: Oven, json: Json = False) -> None: ...

`bake --heat 180 --use-shelves 1,3 --numbers fp32` is handed an `Oven`, and whatever else takes an `Oven` knows a new
field at once. A field that is a dataclass itself is expanded in turn, a closed choice (`Literal`) becomes a choice, a
tuple is text with commas, and a field made without `option` is not on the command line. Nothing here imports anything
heavy, and neither may the modules that declare options: `--help` reads them all.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import Field, dataclass, field, fields, is_dataclass
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from sra_data.errors import ConfigError

Kind = TypeVar("Kind")
Result = TypeVar("Result")
KEYWORD_ONLY = inspect.Parameter.KEYWORD_ONLY


def option(
    default: Any, help: str, *, name: str | None = None, is_argument: bool = False, is_recorded: bool = True
) -> Any:
    """A field that is also an option of the command line.

    Args:
        default: its value where nothing is said.
        help: one line.
        name: on the command line, where it is another than the field's; in Python's spelling.
        is_argument: given by its place instead of by --name.
        is_recorded: whether `recorded` keeps it, because what is written depends on it.
    """
    metadata = {"help": help, "name": name, "is_argument": is_argument, "is_recorded": is_recorded}
    return field(default=default, metadata=metadata)


def recorded(options: Any) -> dict[str, Any]:
    """The fields of a dataclass that decide what is written, as JSON values."""
    found = {one.name: getattr(options, one.name) for one in _kept(type(options))}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in found.items()}


def restored(kind: type[Kind], record: Mapping[str, Any], **others: Any) -> Kind:
    """What `recorded` wrote, among whatever else, as a dataclass again; `others` are its other fields."""
    found = {one.name: record[one.name] for one in _kept(kind) if one.name in record}
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in found.items()}, **others)


def _kept(kind: Any) -> list[Field[Any]]:
    return [one for one in fields(kind) if one.metadata.get("is_recorded")]


def refuse_unknown(options: Any) -> None:
    """Refuse values that are none of a closed choice's: from Python, where no command line has looked at them.

    Raises:
        ConfigError: Naming the option, its value and what it may be.
    """
    for one in _declared(type(options)):
        value = getattr(options, one.attribute)
        if is_dataclass(one.type):
            refuse_unknown(value)
        elif one.choices and value is not None and value not in one.choices:
            raise ConfigError(f"{one.flag} {value}: unknown; choose one of {', '.join(one.choices)}")


# --------------------------------------------------------------------------------------------- on the command line


def expand(*, leave_out: Collection[str] = ()) -> Callable[[Callable[..., Result]], Callable[..., Result]]:
    """Make a command of a function that takes dataclasses: each gives its fields as options.

    Args:
        leave_out: options, by their name on the command line, that this command does not have; they keep their default.
    """

    def decorate(command: Callable[..., Result]) -> Callable[..., Result]:
        hints = get_type_hints(command, include_extras=True)
        kinds = {name: kind for name, kind in hints.items() if is_dataclass(kind)}
        parameters: list[inspect.Parameter] = []
        for parameter in inspect.signature(command).parameters.values():
            kind = hints[parameter.name]
            if is_dataclass(kind):
                parameters += _parameters(kind, leave_out)
            else:
                parameters.append(parameter.replace(annotation=kind, kind=KEYWORD_ONLY))

        @functools.wraps(command)
        def expanded(**values: Any) -> Result:
            built = {name: _built(kind, values, leave_out) for name, kind in kinds.items()}
            return command(**values, **built)

        expanded.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        expanded.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return expanded

    return decorate


def _parameters(kind: Any, leave_out: Collection[str]) -> list[inspect.Parameter]:
    """What Typer makes the options of."""
    import typer

    found: list[inspect.Parameter] = []
    for one in _declared(kind):
        if is_dataclass(one.type):
            found += _parameters(one.type, leave_out)
        elif one.name not in leave_out:
            info = (typer.Argument if one.is_argument else typer.Option)(help=one.help)
            shown, default = (str | None, _joined(one.default)) if one.is_list else (one.type, one.default)
            annotation = Annotated[shown, info]  # type: ignore[valid-type]
            found.append(inspect.Parameter(one.name, KEYWORD_ONLY, default=default, annotation=annotation))
    return found


def _built(kind: Any, values: dict[str, Any], leave_out: Collection[str]) -> Any:
    """The dataclass from what the command line gave, which is taken out of `values`."""
    given: dict[str, Any] = {}
    for one in _declared(kind):
        if is_dataclass(one.type):
            given[one.attribute] = _built(one.type, values, leave_out)
        elif one.name not in leave_out:
            value = values.pop(one.name)
            given[one.attribute] = _split(value, one) if one.is_list else value
    return kind(**given)


def _joined(values: tuple[Any, ...]) -> str:
    return ",".join(f"{value:g}" if isinstance(value, float) else str(value) for value in values)


def _split(text: str, one: _Declared) -> tuple[Any, ...]:
    """Values with commas between them.

    Raises:
        ConfigError: If one is not of its kind.
    """
    kind = get_args(one.type)[0]
    words = [word.strip() for word in text.split(",") if word.strip()]
    if kind not in (int, float):
        return tuple(words)
    try:
        return tuple(kind(word) for word in words)
    except ValueError:
        raise ConfigError(f"{one.flag} {text}: not numbers with commas between them; write 1,2") from None


# ------------------------------------------------------------------------------------------------------- the fields


@dataclass(frozen=True)
class _Declared:
    """A field that is an option or, where it has no help, a dataclass of options."""

    attribute: str
    name: str
    type: Any
    default: Any
    help: str
    is_argument: bool

    @property
    def flag(self) -> str:
        """As it is written on the command line."""
        return self.name if self.is_argument else f"--{self.name.replace('_', '-')}"

    @property
    def choices(self) -> tuple[str, ...]:
        """Of a closed choice; nothing of others."""
        kinds = get_args(self.type) if get_origin(self.type) in (Union, UnionType) else (self.type,)
        return tuple(value for kind in kinds if get_origin(kind) is Literal for value in get_args(kind))

    @property
    def is_list(self) -> bool:
        """Whether it is several values with commas between them."""
        return get_origin(self.type) is tuple


def _declared(kind: Any) -> Iterator[_Declared]:
    """The fields of a dataclass that are options, and those that are dataclasses of options."""
    types = get_type_hints(kind, include_extras=True)
    for one in fields(kind):
        if "help" in one.metadata or is_dataclass(types[one.name]):
            yield _Declared(
                attribute=one.name,
                name=one.metadata.get("name") or one.name,
                type=types[one.name],
                default=one.default,
                help=one.metadata.get("help", ""),
                is_argument=one.metadata.get("is_argument", False),
            )
