"""What a command shows while it works."""

import io
import json
import os
import re
import signal
import sys
import time

import pytest
import typer
from rich.cells import cell_len
from rich.console import Console
from rich.theme import Theme

from sra_data import terminal
from sra_data.errors import ShardError
from sra_data.progress_bar import WorkBar
from sra_data.terminal import LONGEST_LINE, Task, one_line, printable, rate_in_words


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, as the test says it is."""
    now = [100.0]
    monkeypatch.setattr(terminal.time, "monotonic", lambda: now[0])
    return now


def task(total: float | None = 1950) -> Task:
    return Task("train", total, "steps", show=lambda task: None, started=100.0)


def test_the_rate_after_a_resume_is_of_this_call_alone(clock: list[float]) -> None:
    shown = task()
    shown.go_on_from(1000)
    clock[0] += 20
    shown.advance(10)
    assert shown.status() == "1,010/1,950 steps · 30 steps/min · 31:20 left"


def test_nothing_is_promised_before_something_is_done(clock: list[float]) -> None:
    shown = task()
    shown.go_on_from(1000)
    clock[0] += 20
    assert "left" not in shown.status()


@pytest.mark.parametrize(
    ("per_second", "words"),
    [
        (1234.4, "1,234 tokens/s"),
        (2.54, "2.5 tokens/s"),
        (0.5, "30 tokens/min"),
        (0.05, "3.0 tokens/min"),
        (0.001, "3.6 tokens/h"),
        (0.0, "0.0 tokens/h"),
    ],
)
def test_a_slow_rate_is_not_shown_as_none(per_second: float, words: str) -> None:
    assert rate_in_words(per_second, "tokens") == words


BAR = re.compile("[━╸╺]+")
LONG = "1,234,567/56,789,012 tokens · 2,323 tokens/s · disk free 80 GB · folder teachers/qwen2.5-7b-instruct-12345678"


def drawn(bar: WorkBar, width: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width, color_system=None, theme=Theme(terminal.STYLES))
    console.print(bar)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


@pytest.mark.parametrize("width", [60, 80, 110])
@pytest.mark.parametrize("total", [56_789_012, None])
def test_the_bar_keeps_its_place_at_every_width(width: int, total: int | None) -> None:
    """However much is said beneath it and however long the name of the work."""
    bar = WorkBar(
        "bits per byte of /some/folder/of/models/student-1", total, Console(width=width), get_time=lambda: 0.0
    )
    bar.show((total or 2) / 2, LONG)
    above, beneath = drawn(bar, width)
    assert cell_len(above) == width
    assert cell_len(beneath) <= width
    (found,) = BAR.findall(above)
    assert len(found) >= 10
    assert above.startswith("bits per byte")
    assert beneath.startswith("1,234,567/56,789,012 tokens · 2,323 tokens/s")
    assert ("50 %" in above) == (total is not None)


def test_a_bar_after_a_resume_promises_by_this_calls_rate_alone() -> None:
    now = [0.0]
    bar = WorkBar("train", 1950, Console(width=80), get_time=lambda: now[0])
    for step in range(1, 11):
        now[0] += 2
        bar.show(1000 + step, "")
    assert "52 %" in drawn(bar, 80)[0]
    assert "0:31:20" in drawn(bar, 80)[0]  # 940 steps of two seconds


def test_a_bar_of_slow_steps_promises_too() -> None:
    now = [0.0]
    bar = WorkBar("train", 10, Console(width=80), get_time=lambda: now[0])
    for step in (1, 2, 3):
        now[0] += 120
        bar.show(step, "")
    assert "0:14:00" in drawn(bar, 80)[0]


def test_a_bars_colours_are_the_terminals_own() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, color_system="truecolor", theme=Theme(terminal.STYLES))
    for done in (3, 10):
        bar = WorkBar("train", 10, console, get_time=lambda: 0.0)
        bar.show(done, "words")
        console.print(bar)
    assert isinstance(console.file, io.StringIO)
    codes = set(re.findall(r"\x1b\[([\d;]*)m", console.file.getvalue()))
    assert codes <= {"0", "2", "32", "36"}


def test_a_terminal_shows_what_was_done_at_the_end() -> None:
    out = io.StringIO()
    reporter = terminal.RichReporter()
    reporter.console = Console(file=out, width=60, force_terminal=True, theme=Theme(terminal.STYLES))
    with reporter.task("align\x1b[2J", total=8, unit="examples") as work:
        work.advance(8)
    assert re.search(r"8 examples in \d+\.\d s", out.getvalue())
    assert "\x1b[2J" not in out.getvalue()


def test_a_log_is_plain_lines_of_whole_words(capsys: pytest.CaptureFixture[str], clock: list[float]) -> None:
    with terminal.PlainReporter().task("train", total=4, unit="steps") as work:
        for _ in range(4):
            clock[0] += 120
            work.advance(1, loss="2.5")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "train: 1/4 steps · 30 steps/h · 6:00 left · loss 2.5"
    assert lines[-1] == "train: 4 steps in 8:00"
    assert len(lines) == 5


def test_a_second_look_at_standard_error_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    for is_terminal, kind in ((True, terminal.RichReporter), (False, terminal.PlainReporter)):
        monkeypatch.setattr("sys.stderr.isatty", lambda answer=is_terminal: answer, raising=False)
        assert type(terminal.make_reporter(quiet=False)) is kind
    assert type(terminal.make_reporter(quiet=True)) is terminal.Reporter


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("through_typer", [True, False])
def test_an_interrupt_ends_with_how_to_go_on(
    number: int, through_typer: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    app = typer.Typer()

    @app.command()
    def work() -> None:
        os.kill(os.getpid(), number)

    before = {one: signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever runs the tests in the background ignores it
    try:
        with pytest.raises(SystemExit) as end:
            terminal.run((lambda: app([])) if through_typer else work, how_to_go_on="run it again")
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
    assert end.value.code == 130
    assert capsys.readouterr().err == "interrupted; run it again\n"


def test_an_interrupt_inside_a_finalizer_is_not_lost(capsys: pytest.CaptureFixture[str]) -> None:
    """Python prints what a finalizer raises and goes on: the command would run to its end, hours later."""

    class Finalized:
        def __del__(self) -> None:
            os.kill(os.getpid(), signal.SIGTERM)
            for _ in range(3):  # a moment for the signal to be handled in
                pass

    def work() -> None:
        Finalized()
        time.sleep(60)

    before, hook = signal.getsignal(signal.SIGTERM), sys.unraisablehook
    try:
        with pytest.raises(SystemExit) as end:
            terminal.run(work, how_to_go_on="run it again")
    finally:
        signal.signal(signal.SIGTERM, before)
    assert end.value.code == 130
    assert capsys.readouterr().err == "interrupted; run it again\n"
    assert sys.unraisablehook is hook


# What a stranger's text may hold: colours, a title, a cursor moved up, C1 codes, turned directions, half a character.
STEERING = "a\x1b[31mred\x1b]0;title\x07\r\x9b2A\x08\u202eb\ud800"


def test_no_text_steers_the_terminal() -> None:
    shown = printable(STEERING)
    assert shown == r"a\x1b[31mred\x1b]0;title\x07\r\x9b2A\x08\u202eb\ud800"
    assert printable("two\nlines\tof 日本語 🙂 and é") == "two\nlines\tof 日本語 🙂 and é"


def test_an_address_is_shown_without_its_password() -> None:
    assert printable("--data https://user:pass@host/x: no") == "--data https://***@host/x: no"
    assert (
        printable("https://user:pass at revision x ('https://user:pass')")
        == "https://*** at revision x ('https://***')"
    )
    assert printable("org/name@v1: http://host:80/a@b") == "org/name@v1: http://host:80/a@b"


def test_lines_errors_and_objects_are_printable(capsys: pytest.CaptureFixture[str]) -> None:
    def fails() -> None:
        raise ShardError(f"{STEERING}: wrong")

    class Said:
        def lines(self) -> list[str]:
            return [STEERING]

    terminal.PlainReporter().line(STEERING)
    terminal.finish(Said(), as_json=False)
    terminal.print_json({"name": STEERING})
    with pytest.raises(SystemExit):
        terminal.run(fails, how_to_go_on="")
    out, err = capsys.readouterr()
    assert not any(character in out + err for character in "\x1b\x07\r\u202e\ud800")
    assert json.loads(out.splitlines()[1]) == {"name": STEERING}


def test_an_error_is_a_line_to_be_read_whatever_the_value_it_is_about() -> None:
    assert one_line(" what,\n  where ") == "what, where"
    said = one_line(f"--units 0:{'9' * 5000}: not of the form a:b; write, say, 0:8")
    assert len(said) <= LONGEST_LINE
    assert said.startswith("--units 0:999")
    assert said.endswith("write, say, 0:8")
