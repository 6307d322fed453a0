"""What a command shows while it works, and how it ends.

On a terminal: a live bar with rate and time left. Elsewhere: one plain line every few seconds. With ``--json``: nothing
but the final object. Both command lines end through `run`, so that errors look the same everywhere.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from sra_data.errors import SRAError, as_called

SECONDS_BETWEEN_LINES = 5.0
# Control characters (but line ends and tabs), marks that turn the direction of what follows, lone surrogates.
UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
# In an address: user and password, before the host or (where that was taken for a revision) alone; no port.
PASSWORD = re.compile(r"(?<=://)[^/@\s:]*:(?!\d+(?:[/\s]|$))[^/@\s'\"]+")
LONGEST_LINE = 900  # characters of an error; the remedy stands at its end
# Of bars: the terminal's own colours, whose user has made them readable on its ground, dark or light.
STYLES = {
    "bar.back": "dim",
    "bar.complete": "cyan",
    "bar.finished": "green",
    "bar.pulse": "cyan",
    "progress.elapsed": "none",
    "progress.remaining": "none",
}
SECONDS_UNTIL_AGAIN = 0.05  # by then a finalizer has come to its end
INTERRUPTED = 130  # the exit code of what a signal has ended


@dataclass
class Task:
    """One piece of work with a known or unknown total; `advance` as it is done."""

    description: str
    total: float | None
    unit: str
    show: Callable[[Task], None]
    done: float = 0.0
    before: float = 0.0  # of it, by an earlier call: counted, but no part of the rate
    fields: dict[str, str] = field(default_factory=dict)
    started: float = field(default_factory=lambda: time.monotonic())

    def advance(self, amount: float = 1, **fields: str) -> None:
        """Count `amount` units as done; `fields` are shown beside the rate (say, ``disk_free="80 GB"``)."""
        self.done += amount
        self.fields.update(fields)
        self.show(self)

    def go_on_from(self, done: float) -> None:
        """Say what an earlier call has done of it."""
        self.done = self.before = done

    @property
    def rate(self) -> float:
        """Units per second since the start, of this call alone."""
        return (self.done - self.before) / max(time.monotonic() - self.started, 1e-9)

    def words(self) -> str:
        """Progress in words: done, rate and the live fields."""
        return " · ".join([*self._counts(), *self._fields()])

    def status(self) -> str:
        """The same with the time left, which a bar shows by itself."""
        left = []
        if self.total is not None and self.done > self.before:
            left = [f"{clock((self.total - self.done) / self.rate)} left"]
        return " · ".join([*self._counts(), *left, *self._fields()])

    def end(self) -> str:
        """What was done, and in what time."""
        return f"{self.done:,.0f} {self.unit} in {clock(time.monotonic() - self.started)}"

    def _counts(self) -> list[str]:
        of = "" if self.total is None else f"/{self.total:,.0f}"
        return [f"{self.done:,.0f}{of} {self.unit}", rate_in_words(self.rate, self.unit)]

    def _fields(self) -> list[str]:
        return [f"{name.replace('_', ' ')} {value}" for name, value in self.fields.items()]


def printable(text: str) -> str:
    """A text to be shown: a stranger's name may hold escape codes, which are spelled out; an address a password."""
    return UNPRINTABLE.sub(lambda found: ascii(found[0])[1:-1], PASSWORD.sub("***", as_called(text)))


class Reporter:
    """Shows nothing; the base of the others and the one for ``--json`` and the Python API."""

    def line(self, text: str) -> None:
        """Print one line of plain text."""

    @contextmanager
    def task(self, description: str, total: float | None = None, unit: str = "items") -> Iterator[Task]:
        """Show progress of `total` `unit`s of work while the block runs."""
        yield Task(description, total, unit, show=lambda task: None)


class PlainReporter(Reporter):
    """Plain lines on standard error: for logs and pipes."""

    def line(self, text: str) -> None:
        print(printable(text), file=sys.stderr, flush=True)

    @contextmanager
    def task(self, description: str, total: float | None = None, unit: str = "items") -> Iterator[Task]:
        last = time.monotonic()

        def show(task: Task) -> None:
            nonlocal last
            if time.monotonic() - last >= SECONDS_BETWEEN_LINES:
                last = time.monotonic()
                self.line(f"{description}: {task.status()}")

        task = Task(description, total, unit, show)
        yield task
        self.line(f"{description}: {task.end()}")


class RichReporter(Reporter):
    """A live bar on a terminal; see progress_bar.py."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.theme import Theme

        self.console = Console(stderr=True, theme=Theme(STYLES))

    def line(self, text: str) -> None:
        self.console.print(printable(text), markup=False, highlight=False)

    @contextmanager
    def task(self, description: str, total: float | None = None, unit: str = "items") -> Iterator[Task]:
        from sra_data.progress_bar import WorkBar

        with WorkBar(printable(description), total, self.console) as bar:
            task = Task(
                description,
                total,
                unit,
                show=lambda task: bar.show(task.done, printable(task.words())),
            )
            yield task
            bar.show(task.done, task.end())


def make_reporter(*, quiet: bool) -> Reporter:
    """The reporter that fits where standard error goes; `quiet` for ``--json``."""
    if quiet:
        return Reporter()
    return RichReporter() if sys.stderr.isatty() else PlainReporter()


def one_line(text: str) -> str:
    """A text as one line to be read: what is too long, a value mostly, is left out of its middle."""
    line = " ".join(text.split())
    if len(line) <= LONGEST_LINE:
        return line
    return f"{line[: LONGEST_LINE // 2]} … {line[-LONGEST_LINE // 3 :]}"


def print_version(asked: bool) -> None:
    """Print the version and stop: the callback of ``--version``."""
    if asked:
        import typer

        from sra_data import __version__

        print(f"sra-distill {__version__}")
        raise typer.Exit


def print_json(value: dict[str, Any]) -> None:
    """Print one JSON object on standard output, for machines."""
    text = as_called(json.dumps(value, ensure_ascii=False, default=str))
    print(UNPRINTABLE.sub(lambda found: f"\\u{ord(found[0]):04x}", text))


def start(what: str, *, quiet: bool) -> Reporter:
    """The reporter, once it has said what is about to happen: before the imports, which take seconds."""
    reporter = make_reporter(quiet=quiet)
    if is_first():
        reporter.line(what)
    return reporter


def is_first() -> bool:
    """Whether this is the first of the processes of a distributed run, or the only one."""
    return os.environ.get("RANK", "0") == "0"


class Summary(Protocol):
    """What a command returns: it can be told in lines; one that has an `ending()` is drawn on a terminal."""

    def lines(self) -> list[str]:
        """For logs."""


def finish(summary: Summary, *, as_json: bool) -> None:
    """Print what a command returns: one JSON object, its ending as tables on a terminal, or lines for a log."""
    ending = summary.ending() if hasattr(summary, "ending") else None
    if as_json:
        print_json(summary.as_dict() if hasattr(summary, "as_dict") else asdict(summary))  # type: ignore[call-overload]
    elif ending is not None and sys.stdout.isatty():
        from rich.console import Console

        ending.show(Console())
    else:
        following = [f"next: {ending.next}"] if ending is not None and ending.next is not None else []
        print(printable("\n".join([*summary.lines(), *following])))


def clock(seconds: float) -> str:
    """A duration as people read it: ``4.2 s``, ``3:05``, ``2:10:00``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def rate_in_words(per_second: float, unit: str) -> str:
    """A rate that never reads 0 for what moves: ``1,234 tokens/s``, ``2.5 steps/s``, ``3.0 runs/h``."""
    for factor, of in ((1, "s"), (60, "min"), (3600, "h")):
        rate = per_second * factor
        if rate >= 1 or of == "h":
            return f"{rate:,.0f} {unit}/{of}" if rate >= 10 else f"{rate:.1f} {unit}/{of}"
    raise AssertionError("unreachable")


def bytes_in_words(count: float) -> str:
    """A size as people read it, in powers of 1000: ``512 B``, ``4.5 MB``."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(count) < 1000 or unit == "TB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError("unreachable")


def run(app: Callable[[], object], *, how_to_go_on: str) -> None:
    """Run a command line: known errors and interruptions become one line on standard error.

    Exit codes: 0 done; 1 a known error; 2 wrong usage (Typer's own); 130 interrupted.
    SIGTERM is treated as Ctrl-C, because that is how rented machines announce their end.
    """

    # Threads that wait for one another should sleep, not spin: beside another process on the same cores spinning
    # made a training step 4.4 times slower (2 cores, 30 steps of the demo's teacher). OpenMP reads this when torch
    # is loaded, which is later.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")

    def interrupt(signum: int, frame: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    hook, sys.unraisablehook = sys.unraisablehook, _not_lost
    try:
        app()
    except SRAError as error:
        print(f"error: {printable(one_line(str(error)))}", file=sys.stderr, flush=True)
        sys.exit(1)
    except KeyboardInterrupt:
        print(f"interrupted; {how_to_go_on}", file=sys.stderr, flush=True)
        sys.exit(INTERRUPTED)
    except SystemExit as end:
        if end.code == INTERRUPTED:  # Typer has caught the interrupt, and says nothing
            print(f"interrupted; {how_to_go_on}", file=sys.stderr, flush=True)
        raise
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    finally:
        sys.unraisablehook = hook


def _not_lost(unraisable: sys.UnraisableHookArgs) -> None:
    """An interruption that comes while a finalizer runs, where Python prints it and goes on: it is sent once more."""
    if unraisable.exc_type is KeyboardInterrupt:
        again = threading.Timer(SECONDS_UNTIL_AGAIN, os.kill, (os.getpid(), signal.SIGTERM))
        again.daemon = True
        again.start()
    else:
        sys.__unraisablehook__(unraisable)
