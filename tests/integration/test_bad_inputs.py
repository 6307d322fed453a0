"""Bad inputs: one line each, and nothing left; `make bad-inputs` is all of them and forged shards by the hundred."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
CLOSING = re.compile(r"bad inputs (\d+), one line each (\d+), nothing left (\d+)$")


def met(*asked: str) -> int:
    """How many were met, all as they should be; in a process of its own: it forks, and may have started no threads."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.bad_inputs.run", *asked],
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=1800,
    )
    found = CLOSING.search(done.stdout.strip())
    assert found is not None, done.stdout + done.stderr
    assert len(set(found.groups())) == 1, done.stdout
    assert done.returncode == 0, done.stdout
    return int(found[1])


def test_a_sample_of_bad_inputs_is_one_line_each_and_leaves_nothing() -> None:
    assert met("--every", "24", "--forged", "6") >= 36


@pytest.mark.slow
def test_every_bad_input_is_one_line_and_leaves_nothing() -> None:
    assert met("--forged", "60") >= 300


def test_there_are_three_hundred_and_no_two_are_alike() -> None:
    from tests.bad_inputs.table import all_cases

    cases = [case for case in all_cases() if not case.owned_by]
    assert len(cases) >= 300
    assert len({case.name for case in cases}) == len(cases)


@pytest.mark.parametrize(
    ("code", "said", "wrong"),
    [
        (1, "error: here is what is wrong", ""),
        (0, "", "not refused"),
        (1, "error: here is what is wrong\nand more", "not one line"),
        (1, "here is what is wrong", "not one line"),
        (1, "error: something", "does not say 'wrong'"),
        (1, "error: wrong " + "9" * 5000, "a line of"),
        (70, "Traceback (most recent call last):\nerror: wrong", "not refused"),
        (1, "Traceback (most recent call last):\nerror: wrong", "not refused"),
        (-9, "", "not refused"),
    ],
)
def test_an_answer_that_is_none_is_told(code: int, said: str, wrong: str) -> None:
    from tests.bad_inputs.case import Case
    from tests.bad_inputs.meeting import answered_wrongly
    from tests.crash.process import Ended

    found = answered_wrongly(Case("a case", "sra-data", ("wrong",)), Ended(code, said))
    assert bool(found) == bool(wrong)
    assert any(wrong in line for line in found) or not wrong


def test_what_is_left_or_changed_is_seen(tmp_path: Path) -> None:
    from tests.bad_inputs.case import Case
    from tests.bad_inputs.meeting import contents, may_leave, stamps

    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a").write_text("a")
    before, around = contents(tmp_path), stamps(tmp_path, but=tmp_path / "place")
    (tmp_path / "in" / "a").write_text("b")
    assert {name for name in before if contents(tmp_path)[name] != before[name]} == {"in/a"}
    (tmp_path / "in" / "a").write_text("a")
    assert contents(tmp_path) == before
    (tmp_path / "in" / "b").symlink_to("a")
    assert set(contents(tmp_path)) - set(before) == {"in/b"}
    assert stamps(tmp_path, but=tmp_path / "place") != around
    case = Case("a case", "sra-data", (), leaves=("out", "out/run.json*"))
    assert [name for name in ("out", "out/run.json", "out/run.json.tmp", "out/x") if may_leave(case, name)] == [
        "out",
        "out/run.json",
    ]
