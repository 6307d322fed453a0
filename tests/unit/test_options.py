"""Laws of options declared once: a field is an option, a value, a record; nothing is said twice and nothing is lost."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import typer
from typer.testing import CliRunner

from sra_data.errors import ConfigError
from sra_data.options import expand, option, recorded, refuse_unknown, restored


@dataclass(frozen=True)
class Heat:
    """Nested."""

    degrees: int = option(200, "How hot.")
    kind: Literal["air", "grill"] | None = option(None, "Which heat (default: what the dish needs).")
    is_watched: bool = option(True, "Look at it now and then.", name="watched", is_recorded=False)
    maker: str = "nobody"


@dataclass(frozen=True)
class Oven:
    """Options of every kind."""

    dish: str = option("bread", "What goes in.", is_argument=True)
    heat: Heat = field(default_factory=Heat)
    shelves: tuple[int, ...] = option((1, 2), "Which ones, with commas.")
    hours: tuple[float, ...] = option((0.5,), "On each, with commas.")
    names: tuple[int | str, ...] = option(("top",), "What they are called.")


def called(*arguments: str, leave_out: tuple[str, ...] = ()) -> tuple[int, Oven | None, int, str]:
    """(exit code, the oven the command was handed, another option, output)."""
    app = typer.Typer()
    handed: list[tuple[Oven, int]] = []

    @app.command()
    @expand(leave_out=leave_out)
    def bake(oven: Oven, times: Annotated[int, typer.Option(help="How often.")] = 1, json: bool = False) -> None:
        """Bake something."""
        handed.append((oven, times))

    result = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "200"})
    if isinstance(result.exception, ConfigError):
        raise result.exception
    oven, times = handed[0] if handed else (None, 0)
    return result.exit_code, oven, times, result.output + result.stderr


def test_without_flags_a_command_is_handed_the_dataclass_as_it_stands() -> None:
    assert called()[:3] == (0, Oven(), 1)


def test_every_field_is_an_option() -> None:
    flags = "cake --degrees 180 --kind grill --no-watched --shelves 3 --hours 1,2.5 --names 1,last --times 4"
    code, oven, times, _ = called(*flags.split())
    assert (code, times) == (0, 4)
    assert oven == Oven("cake", Heat(180, "grill", False), (3,), (1.0, 2.5), ("1", "last"))


def test_help_says_every_option_with_its_text_default_and_choices() -> None:
    _, _, _, said = called("--help")
    for word in (
        "How hot.",
        "(default: what the dish needs)",
        "air|grill",
        "--no-watched",
        "1,2",
        "0.5",
        "What goes in.",
    ):
        assert word in said
    assert "maker" not in said  # made without `option`


def test_what_a_command_leaves_out_keeps_its_default() -> None:
    code, oven, _, said = called("--degrees", "1", leave_out=("degrees",))
    assert (code, oven) == (2, None)
    assert "No such option" in said
    assert called(leave_out=("degrees", "shelves"))[1] == Oven()


def test_values_that_are_none_of_a_choices_are_refused_by_the_command_line_and_from_python() -> None:
    code, _, _, said = called("--kind", "fire")
    assert code == 2
    assert "grill" in said
    refuse_unknown(Oven())
    with pytest.raises(ConfigError, match="--kind fire: unknown; choose one of air, grill"):
        refuse_unknown(Oven(heat=Heat(kind="fire")))  # type: ignore[arg-type]


def test_lists_that_are_no_numbers_are_one_line() -> None:
    with pytest.raises(ConfigError, match="--hours 1,x: not numbers with commas between them; write 1,2"):
        called("--hours", "1,x")
    assert called("--shelves", "")[1].shelves == ()


def test_the_record_has_what_decides_and_gives_it_back() -> None:
    heat = Heat(7, "air", is_watched=False)
    record = json.loads(json.dumps(recorded(heat)))
    assert record == {"degrees": 7, "kind": "air"}
    assert restored(Heat, {**record, "other": 1}, is_watched=False) == heat
    assert restored(Oven, recorded(Oven(shelves=(4,)))) == Oven(shelves=(4,))


@pytest.mark.parametrize("command", ["estimate", "cache-teacher"])
def test_a_file_gives_defaults_and_flags_win(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sra_data.cli import app
    from sra_data.stages.cache import stage as cache
    from sra_data.stages.estimate import stage as estimating

    handed: list[object] = []

    def take(options: object, reporter: object) -> None:
        handed.append(getattr(options, "cache", options))
        raise ConfigError("that is all")

    monkeypatch.setattr(cache, "cache_teacher", take)
    monkeypatch.setattr(estimating, "estimate", take)
    file = tmp_path / "data.yaml"
    file.write_text(f"{command}:\n  layers: 1,2\n  hidden_dtype: int8\n  top_k: 3\n  shards: there\n")
    CliRunner().invoke(app, [command, "--config", str(file), "--top-k", "9", "--side", "s"])
    (options,) = handed
    assert (options.shards, options.side) == ("there", "s")
    assert (options.capture.layers, options.capture.hidden_dtype, options.capture.top_k) == (("1", "2"), "int8", 9)
    file.write_text(f"{command}:\n  logits: sampled\n")
    result = CliRunner().invoke(app, [command, "--config", str(file)])
    assert f"{command} has no option logits; it has adapter, alignment, " in str(result.exception)


@pytest.mark.parametrize("written", ["org/student", "[org/student, org/other]"])
def test_an_option_that_may_be_repeated_is_one_word_or_a_list_in_a_file(
    written: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sra_data.cli import app
    from sra_data.stages.align import stage

    handed: list[Any] = []

    def take(options: object, reporter: object) -> None:
        handed.append(options)
        raise ConfigError("that is all")

    monkeypatch.setattr(stage, "align", take)
    (tmp_path / "data.yaml").write_text(f"align:\n  student: {written}\n")
    CliRunner().invoke(app, ["align", "--config", str(tmp_path / "data.yaml"), "--teacher", "org/teacher"])
    (options,) = handed
    assert options.teachers == ("org/teacher",)
    assert options.students == tuple(written.strip("[]").split(", "))
