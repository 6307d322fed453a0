"""How a comparison is shown: a page that stands alone, and an ending that is whole on a narrow terminal."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from sra_train.compare.bootstrap import Difference
from sra_train.compare.page import page
from sra_train.compare.results import Comparison, MethodResult, Reference, RunResult, Tried
from sra_train.compare.tables import Shown
from tests.unit.stages.report.reading import NASTY, Nesting

SURE = Difference(mean=-0.02, low=-0.03, high=-0.01, num_seeds=5)


def method(name: str, bits: float, difference: Difference | None) -> MethodResult:
    return MethodResult(
        name=name,
        about=f"what {name} is",
        rate=1e-3,
        clip=None,
        num_seeds=5,
        num_diverged=0,
        bits_per_byte=bits,
        deviation=0.01,
        tempered=bits,
        tempered_deviation=0.01,
        temperature=1.0,
        development=bits,
        rouge_l=None,
        seconds_per_step=0.2,
        peak_memory_bytes=10**9,
        losses={"loss": 4.0, "ce": 3.0},
        covered=None,
        difference=difference,
        tempered_difference=difference,
        grid=[Tried(1e-3, None, bits), Tried(3e-3, None, None)],
    )


FOUND = Comparison(
    output_dir="comparisons/first",
    student=NASTY,
    test=NASTY,
    is_development=False,
    num_examples=10,
    num_bytes=1000,
    num_left_out=1,
    steps=150,
    seeds=5,
    methods=[
        method("sft", 2.8, None),
        method("tuned", 2.7, SURE),
        method("worse", 2.9, replace(SURE, mean=0.02, low=0.01, high=0.03)),
    ],
    references=[Reference("untrained", "m", 4.0, 4.0, 1.0, None)],
    runs=[RunResult(name, 1e-3, None, 42, "done", f"runs/{name}/seed-42") for name in ("sft", "tuned", "worse")],
    notes=[f"a note {NASTY}"],
    tables={"paper": ("sft", "tuned")},
    configs={"sft": f"name: {NASTY}", "tuned": "", "worse": ""},
    files={"page": "comparisons/first/comparison.html"},
)


def test_the_page_stands_alone_and_says_what_a_stranger_wrote_as_text() -> None:
    text = page(FOUND, b"\x89PNG")
    found = Nesting()
    found.feed(text)
    assert (found.wrong, found.open) == ([], [])
    assert found.addresses == ["data:image/png;base64,iVBORw=="]
    assert "<script" not in text
    assert text.count("&lt;script&gt;") >= 4


def test_sure_differences_are_coloured_and_nothing_else() -> None:
    text = page(FOUND, b"")
    assert text.count('class="n better">-0.0200 [-0.0300, -0.0100]*') == 4  # two columns, in the ablation's table too
    assert text.count('class="n worse">+0.0200 [+0.0100, +0.0300]*') == 2
    assert (text.count('"n better"'), text.count('"n worse"')) == (4, 2)
    assert "<td>sft</td>" in text
    assert ">diverged</td>" in text


@pytest.mark.parametrize("width", [60, 80, 110])
def test_the_ending_is_whole_at_every_width(width: int) -> None:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    ending = Shown(FOUND).ending()
    ending.show(console)
    assert isinstance(console.file, io.StringIO)
    words = console.file.getvalue().split()
    for word in ("2.8000", "0.0100", "-0.0200", "[-0.0300,", "-0.0100]*", "comparisons/first/comparison.html"):
        assert word in words
    assert max(map(len, console.file.getvalue().splitlines())) <= width
    assert ending.next == "sra-train report comparisons/first/runs/tuned/seed-42/run"  # the best one's


def test_in_a_log_a_row_is_a_line() -> None:
    lines = Shown(FOUND).lines()
    (tuned,) = (line for line in lines[1:5] if line.startswith("tuned "))
    assert "2.7000 ± 0.0100" in tuned
    assert "-0.0200 [-0.0300, -0.0100]*" in tuned
    assert "comparisons/first/comparison.html" in lines
