"""The last words of a command: whole at 60, 80 and 110 columns, a line a fact in a log, nothing that steers."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.console import Console

from sra_data import terminal
from sra_data.endings import Ending, Grid, Told

WIDTHS = (60, 80, 110)
ENDING = Ending(
    "shards/teachers/qwen-12345678: 1,000 examples of Qwen/Qwen2.5-7B",
    (
        Grid.of_facts(
            ("positions", "1,234,567"),
            ("left out", ""),
            ("the teacher's next token maps to the student's", "71.0% by first piece, 44.1% by byte prefix"),
        ),
        Grid(
            (
                ("sft", "2.794 ± 0.117", "", "100 MB"),
                ("tuned", "2.669 ± 0.019", "-0.126 [-0.200, -0.053]*", "1.2 GB"),
            ),
            ("method", "bits per byte", "to sft", "peak memory"),
            title="five seeds",
        ),
    ),
    ("made by cpu, float32, sdpa, torch 2.13.0: a remark of many words that no terminal of this width has room for",),
    next="sra-train run shards --output-dir 'a folder with a long name' --set training.learning_rate=0.001",
)


class Summary(Told):
    """Told by it."""

    def ending(self) -> Ending:
        """That one."""
        return ENDING


def shown(ending: Ending, width: int, *, colours: bool = False) -> str:
    console = Console(
        file=io.StringIO(),
        width=width,
        force_terminal=colours,
        color_system="truecolor" if colours else None,
        legacy_windows=False,
    )
    ending.show(console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def words_of(ending: Ending) -> set[str]:
    cells = [cell for grid in ending.grids for row in (grid.head[1:], *grid.rows) for cell in row]
    titles = [ending.title, *(grid.title for grid in ending.grids), *ending.remarks, ending.next or ""]
    return set(" ".join([*cells, *titles]).split())


@pytest.mark.parametrize("width", WIDTHS)
def test_no_word_is_cut_and_no_line_is_too_long(width: int) -> None:
    said = shown(ENDING, width)
    assert words_of(ENDING) <= set(said.split())
    assert all(cell_len(line) <= width for line in said.splitlines())


def test_a_table_without_room_is_shown_row_by_row() -> None:
    wide = Grid((("tuned", *["-0.126 [-0.200, -0.053]*"] * 3),), ("name", "a", "b", "c"))
    stacked = [line.split() for line in shown(Ending("", (wide,)), 60).splitlines() if line.strip()]
    assert "name" in shown(Ending("", (wide,)), 110)
    assert stacked == [["tuned"], *([name, "-0.126", "[-0.200,", "-0.053]*"] for name in "abc")]


@pytest.mark.parametrize("width", WIDTHS)
def test_colours_are_the_terminals_own(width: int) -> None:
    """Bold is readable on dark and light ground; a colour by its numbers is not."""
    said = shown(ENDING, width, colours=True)
    assert set(re.findall(r"\x1b\[([\d;]*)m", said)) <= {"1", "0"}
    assert "\x1b[1mnext  \x1b[0msra-train run shards" in said  # what is to be copied is plain


def test_a_log_has_a_line_for_each_fact_row_and_remark() -> None:
    lines = ENDING.lines()
    assert lines[0] == ENDING.title
    assert lines[1:3] == [f"{name}: {value}" for name, value in ENDING.grids[0].rows]
    assert lines[3] == "five seeds:"
    assert [line.split()[0] for line in lines[4:7]] == ["method", "sft", "tuned"]
    assert len({len(line) for line in lines[4:7]}) == 1
    assert lines[7:] == list(ENDING.remarks)


def test_columns_that_say_nothing_are_left_out() -> None:
    grid = Grid.of_columns(("side", "cut", "texts"), [("a", "1", ""), ("b", "", "")])
    assert (grid.head, grid.rows) == (("side", "cut"), (("a", "1"), ("b", "")))
    assert Ending("title", (Grid.of_facts(("empty", "")),)).lines() == ["title"]


class Screen(io.StringIO):
    """Standard output that is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_command_ends_with_what_comes_next(is_terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    out = Screen() if is_terminal else io.StringIO()
    monkeypatch.setattr("sys.stdout", out)
    terminal.finish(Summary(), as_json=False)
    start = "next  " if is_terminal else "next: "
    said = re.sub(r"\x1b\[[\d;]*m", "", out.getvalue())
    assert f"{start}sra-train run shards --output-dir" in said


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_in_an_ending_steers_the_terminal(width: int) -> None:
    steering = "\x1b[2J\x9b1A\u202e"
    grids = (Grid(((steering, steering),), (steering, steering), steering), Grid.of_facts((steering, steering)))
    said = shown(Ending(steering, grids, (f"{steering} [red]",), steering), width)
    assert not {"\x1b", "\x9b", "\u202e"} & set(said)
    assert "[red]" in said


def test_every_summary_of_a_command_has_an_ending_with_a_command_that_exists() -> None:
    """But for what has nothing behind it: those say None."""
    from typer.main import get_command

    from sra_data.cli import app as data_app
    from sra_train.cli import app as train_app

    known = {"sra-data": get_command(data_app).commands, "sra-train": get_command(train_app).commands}  # type: ignore[attr-defined]
    import sra_data
    import sra_train

    found = set()
    for package in (sra_data, sra_train):
        for path in Path(str(package.__file__)).parent.rglob("*.py"):
            text = path.read_text(encoding="utf-8")
            if "(Told)" in text:
                found.add(path.stem)
                for program, command in re.findall(r"\b(sra-data|sra-train) ([a-z][a-z-]+)", text):
                    assert command in known[program], f"{path}: {program} {command}"
    assert found >= {"summary", "verify", "repair", "stage", "evaluation", "tables"}
