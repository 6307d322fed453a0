"""What a command shows while it works."""

import json
import os
import signal

import pytest
import typer

from sra_data import terminal
from sra_data.errors import ShardError
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
