"""What a reader could leave out without a word: refused, with the place."""

import json
from pathlib import Path

import pytest

from sra_data.corpus.sources import open_source
from sra_data.errors import SourceError

ROW = json.dumps({"prompt": "p", "response": "r"})


def read(path: Path) -> list[str]:
    return [located.row.id for located in open_source(str(path)).scan()]


@pytest.mark.parametrize("more", [f"[{ROW}]", "x", "]", "{}"])
def test_more_behind_the_end_of_an_array_is_refused(more: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text(f"[{ROW},\n{ROW}]\n{more}")
    with pytest.raises(SourceError, match=r"rows\.json:3: invalid JSON \(more behind the end of the array\)"):
        read(path)


def test_space_behind_the_end_of_an_array_is_nothing(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text(f"[{ROW}]" + " \n\t\r\n" * 1000)
    assert read(path) == ["00000000"]


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("prompt,response,response\na,b,c\n")
    with pytest.raises(SourceError, match=r"rows\.csv:1: two columns are called 'response'"):
        read(path)


def test_columns_without_a_name_may_be_many(tmp_path: Path) -> None:
    """A table program writes them where cells were once."""
    path = tmp_path / "rows.csv"
    path.write_text("prompt,response,,\na,b,,\n")
    assert read(path) == ["00000000"]


@pytest.mark.parametrize("name", ["", "  ", "n" * 300, "n" * 300 + ".jsonl"])
def test_a_name_that_no_file_can_have_is_one_line(name: str) -> None:
    with pytest.raises(SourceError, match="--data") as caught:
        open_source(name)
    assert "\n" not in str(caught.value)
