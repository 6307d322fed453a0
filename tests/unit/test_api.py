"""`sra_data` from Python: the options, the refusals and the shards of the command line."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer

import sra_data
from sra_data.cli import app
from sra_data.errors import SRAError
from tests.integration.command_lines import sra_data as sra_data_command
from tests.integration.command_lines import write_examples, write_pair

OF_THE_COMMAND_LINE = {"config", "json"}
WORKERS = {"align": 1}  # where a script would need a guard, the default is another


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A teacher, a student and data."""
    folder = tmp_path_factory.mktemp("pair")
    return (*write_pair(folder), write_examples(folder / "my.jsonl", 8))


def options_of(command: str) -> dict[str, Any]:
    """The options of a command and their defaults, as Typer knows them; without a default where one must be given."""
    group = typer.main.get_command(app)
    assert isinstance(group, typer.core.TyperGroup)
    known = {one.name: one for one in group.commands[command].params}
    return {
        str(name): inspect.Parameter.empty if one.required else one.default
        for name, one in known.items()
        if name not in OF_THE_COMMAND_LINE
    }


@pytest.mark.parametrize(
    ("command", "function"),
    [("align", sra_data.align), ("cache-teacher", sra_data.cache_teacher), ("import", sra_data.import_capture)],
)
def test_every_option_of_a_command_is_an_argument_with_its_default(command: str, function: Callable[..., Any]) -> None:
    arguments = {name: one.default for name, one in inspect.signature(function).parameters.items()}
    assert arguments.pop("reporter") is None
    options = options_of(command)
    assert list(arguments) == list(options)
    for name, default in options.items():
        given = arguments[name]
        if isinstance(given, tuple):  # a list with commas between its parts
            given = ",".join(f"{one:g}" if isinstance(one, float) else str(one) for one in given)
        assert given == (WORKERS.get(command) if name == "workers" and command in WORKERS else default), name


@pytest.mark.parametrize(
    "function", [sra_data.align, sra_data.cache_teacher, sra_data.import_capture, sra_data.open_shards]
)
def test_every_argument_is_explained_and_an_example_shown(function: Callable[..., Any]) -> None:
    words = inspect.getdoc(function) or ""
    assert ">>> " in words
    explained = words.partition("Args:\n")[2]
    for name in inspect.signature(function).parameters:
        assert f"    {name}: " in explained, name


def test_importing_the_package_and_its_functions_imports_nothing_heavy() -> None:
    asked = "import sys, sra_data; sra_data.align, sra_data.cache_teacher, sra_data.open_shards; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True)
    heavy = {"torch", "transformers", "datasets", "pyarrow", "numpy", "pydantic", "typer", "rich", "yaml"}
    assert not heavy & set(done.stdout.split())


def test_the_package_says_what_it_has_and_nothing_else() -> None:
    assert {"align", "cache_teacher", "open_shards", "__version__"} <= set(dir(sra_data))
    with pytest.raises(AttributeError, match="no attribute 'align_all'"):
        sra_data.align_all  # noqa: B018


def test_from_python_the_shards_are_those_of_the_commands(pair: tuple[Path, Path, Path], tmp_path: Path) -> None:
    teacher, student, data = pair
    aligned = sra_data.align(teacher, [student], data=data, out=tmp_path / "python", max_length=200)
    cached = sra_data.cache_teacher(aligned.shards, layers=(1, "last"), top_k=5, temperatures=(1.0,))
    names = ("--teacher", teacher, "--student", student, "--data", data, "--out", tmp_path / "words")
    assert sra_data_command("align", *names, "--max-length", 200).exit_code == 0
    kept = ("--layers", "1,last", "--top-k", 5, "--temperatures", "1")
    assert sra_data_command("cache-teacher", tmp_path / "words", *kept).exit_code == 0

    def roots(folder: Path) -> dict[str, str]:
        with sra_data.open_shards(folder) as shards:
            return {section: shards.manifest.sealed(section)["root"] for section in shards}

    assert roots(tmp_path / "python") == roots(tmp_path / "words")
    assert aligned.num_examples == 8
    assert cached.root == roots(tmp_path / "python")[cached.section]
    assert cached.num_missing == 0


def test_called_again_nothing_is_left_to_do(pair: tuple[Path, Path, Path], tmp_path: Path) -> None:
    teacher, student, data = pair
    for is_done in (False, True):
        assert sra_data.align(str(teacher), str(student), data=data, out=tmp_path / "s").is_done_before is is_done
        cached = sra_data.cache_teacher(tmp_path / "s", top_k=5)
        assert (cached.num_done == 0) is is_done


REFUSED: list[tuple[dict[str, Any], tuple[object, ...]]] = [
    ({"dev_share": 2.0}, ("--dev-share", "2.0")),
    ({"max_spans": 0}, ("--max-spans", "0")),
    ({"units": "first"}, ("--units", "first")),
    ({"data": "nowhere.jsonl"}, ("--data", "nowhere.jsonl")),
    ({"columns": "prompt=q"}, ("--columns", "prompt=q")),
]


@pytest.mark.parametrize(("arguments", "words"), REFUSED, ids=lambda value: "".join(map(str, value)))
def test_align_refuses_what_the_command_refuses_in_its_words(
    arguments: dict[str, Any], words: tuple[object, ...], pair: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    teacher, student, data = pair
    out = tmp_path / "shards"
    with pytest.raises(SRAError) as refused:
        sra_data.align(teacher, student, **{"data": data, "out": out} | arguments)
    common = ("align", "--teacher", teacher, "--student", student, "--data", data, "--out", out)
    assert str(refused.value) == sra_data_command(*common, *words).error
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"top_k": -1}, ("--top-k", "-1")),
        ({"granularity": "span", "attention": False}, ("--granularity", "span", "--no-attention")),
        ({"student": "x"}, ("--student", "x")),
        ({}, ()),  # there are no shards
    ],
    ids=str,
)
def test_cache_teacher_refuses_what_the_command_refuses_in_its_words(
    arguments: dict[str, Any], words: tuple[object, ...], tmp_path: Path
) -> None:
    with pytest.raises(SRAError) as refused:
        sra_data.cache_teacher(tmp_path / "nothing", **arguments)
    assert str(refused.value) == sra_data_command("cache-teacher", tmp_path / "nothing", *words).error


def test_a_choice_that_typer_would_have_refused_is_refused_by_name(pair: tuple[Path, Path, Path]) -> None:
    teacher, student, data = pair
    with pytest.raises(SRAError, match="--overlong squeeze: not known; use one of truncate"):
        sra_data.align(teacher, student, data=data, overlong="squeeze")  # type: ignore[arg-type]
    with pytest.raises(SRAError, match="--hidden-dtype fp8: unknown; choose one of bf16"):
        sra_data.cache_teacher(hidden_dtype="fp8")  # type: ignore[arg-type]
    with pytest.raises(SRAError, match="--student: none given"):
        sra_data.align(teacher, [], data=data)


def test_a_reader_sees_what_was_written(pair: tuple[Path, Path, Path], tmp_path: Path) -> None:
    teacher, student, data = pair
    sra_data.align(teacher, student, data=data, out=tmp_path / "s")
    with sra_data.open_shards(tmp_path / "s") as shards:
        rows = shards.corpus.read(range(len(shards.corpus)))
        assert [row.response for row in rows] == [
            json.loads(line)["response"] for line in data.read_text("utf-8").splitlines()
        ]
    with pytest.raises(SRAError, match="nothing here"):
        sra_data.open_shards(tmp_path / "nothing here")
