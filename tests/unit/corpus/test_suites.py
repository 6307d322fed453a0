"""The reader of public suites of bad files sees what goes wrong; the suites themselves, where they lie."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sra_data.corpus import readers
from tests.bad_inputs import suites

# Python 3.12 warns of a fork beside threads; the child only reads.
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")

SUITES = os.environ.get("SRA_SUITES", "")
ROWS = [{"prompt": f"p{number}", "response": "r" * number} for number in range(40)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A JSON file that is none, lines that are whole, a table."""
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "bad.json").write_text('["\\u0000\\x"]')
    (tmp_path / "files" / "lines.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (tmp_path / "files" / "notes.txt").write_text("of no known suffix")
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "files" / "table.parquet")
    with pa.OSFile(str(tmp_path / "files" / "table.arrow"), "wb") as sink:
        table = pa.Table.from_pylist(ROWS)
        with pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
    return tmp_path / "files"


def test_every_file_is_read_as_it_is_and_damaged(folder, capsys) -> None:
    assert suites.main([str(folder), "--damage", "3"]) == 0
    closing = capsys.readouterr().out.splitlines()[-1].replace(",", "").split()
    counts = dict(zip(closing[0::2], closing[1::2], strict=False))
    assert counts["files"] == str(5 * 4)  # bad.json as an array and as lines
    assert int(counts["rows"]) >= 3


def test_no_file_at_all_is_no_success(tmp_path) -> None:
    assert suites.main([str(tmp_path)]) == 1


def dying(path: Path, offset: int, line: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def raising(path: Path, offset: int, line: int) -> None:
    raise ValueError("a bug")


@pytest.mark.parametrize(("reader", "said"), [(dying, "exit code -9"), (raising, "ValueError: a bug")])
def test_a_reader_that_dies_or_raises_is_a_violation(folder, capsys, monkeypatch, reader: Callable, said) -> None:
    monkeypatch.setitem(readers.RECORD_READERS, ".jsonl", reader)
    assert suites.main([str(folder)]) == 1
    assert said in capsys.readouterr().out


def test_a_reader_that_answers_two_lines_is_a_violation(folder, capsys, monkeypatch) -> None:
    def answering(path: Path, offset: int, line: int) -> None:
        raise readers.SourceError("one\nand another")

    monkeypatch.setitem(readers.RECORD_READERS, ".jsonl", answering)
    assert suites.main([str(folder)]) == 1
    assert "not one line" in capsys.readouterr().out


@pytest.mark.skipif(not SUITES, reason="SRA_SUITES names no folder of public suites")
def test_public_suites_give_rows_or_one_line() -> None:
    assert suites.main([SUITES]) == 0
