"""Laws of the engine of this machine: each unit once, a worker made once, errors come through, a GPU for each."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import get_args

import pytest

from sra_data import engines
from sra_data.choices import Engine
from sra_data.engines import local
from sra_data.engines.work import Advance, Needs, Work, num_cores
from sra_data.errors import ConfigError, ShardError, SRAError

run_units = local.run_units


def squares() -> Work:
    """A worker that squares; unit 13 is refused."""

    def work(units: Iterable[int], advance: Advance) -> Iterator[tuple[int, int]]:
        for unit in units:
            if unit == 13:
                raise ShardError("unit 13: refused")
            advance(unit)
            yield unit, unit * unit

    return work


def test_units_are_done_in_order_by_one_worker() -> None:
    made, told = [], []

    def make() -> Work:
        made.append(1)
        return squares()

    done = list(run_units([1, 2, 3], make, advance=told.append))
    assert done == [(1, 1), (2, 4), (3, 9)]
    assert (made, told) == ([1], [1, 2, 3])


def test_without_units_no_worker_is_made() -> None:
    def make() -> Work:
        raise AssertionError("made")

    assert list(run_units([], make)) == []


def test_units_before_an_error_are_handed_over() -> None:
    units = run_units([1, 13, 2], squares)
    assert next(units) == (1, 1)
    with pytest.raises(ShardError, match="unit 13: refused"):
        next(units)


def test_a_pool_does_every_unit_once_and_tells_how_much() -> None:
    told: list[int] = []
    done = dict(run_units(range(6), squares, num_workers=2, advance=told.append))
    assert done == {unit: unit * unit for unit in range(6)}
    assert sum(told) == 15


def test_an_error_in_a_pool_comes_through_with_its_message() -> None:
    with pytest.raises(ShardError, match="unit 13: refused"):
        list(run_units([1, 13], squares, num_workers=2))


def unwilling() -> Work:
    raise ShardError("no worker here")


def dying() -> Work:
    def work(units: Iterable[int], advance: Advance) -> Iterator[tuple[int, int]]:
        os.kill(os.getpid(), signal.SIGKILL)
        yield 0, 0

    return work


def test_why_a_worker_of_a_pool_could_not_be_made_comes_through() -> None:
    with pytest.raises(ShardError, match="no worker here"):
        list(run_units([1, 2], unwilling, num_workers=2))


def test_a_worker_that_is_killed_is_one_line_with_what_to_do() -> None:
    with pytest.raises(SRAError, match=r"died without a word .* finished units are kept: run the same command again"):
        list(run_units([1, 2], dying, num_workers=2))


POOL_OF_TWO = """
import os, signal, sys, time
from sra_data.engines import local

def noting():
    def work(units, advance):
        for unit in units:
            if unit == 9 and sys.argv[1] == "long":
                time.sleep(1000)
            os.write(1, b"%d\\n" % os.getpid())  # in one piece
            yield unit, unit
    return work

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where a shell has put the tests behind
    running = local.run_units(range(20 if sys.argv[1] == "short" else 10), noting, num_workers=2)
    try:
        for _ in range(9):
            next(running)
        print("done", flush=True)
        sys.stdin.readline()
        for unit in running:
            pass
        print("whole", flush=True)
    except KeyboardInterrupt:
        running.close()  # as the end of a for loop does
        print("interrupted", flush=True)
        sys.exit(3)
"""
LONGEST = 60  # seconds without a word, after which the processes count as hanging


@contextmanager
def pool_of_two(folder: Path, units: str) -> Iterator[tuple[subprocess.Popen[bytes], list[int], Callable[[], str]]]:
    """A program with two workers that have done nine units: itself, their ids, and all that it still says."""
    script = folder / "pool_of_two.py"
    script.write_text(POOL_OF_TWO)
    environment = {**os.environ, "PYTHONPATH": str(Path(engines.__file__).parents[2])}
    reading, writing = os.pipe()  # every process of the family holds its writing end
    with subprocess.Popen(
        [sys.executable, str(script), units], stdin=subprocess.PIPE, stdout=writing, stderr=writing, env=environment
    ) as program:
        os.close(writing)
        said = _until(reading, lambda text: "done\n" in text)
        workers = sorted({int(line) for line in said.split() if line.isdecimal()})
        try:
            yield program, workers, lambda: _until(reading, lambda text: False)
        finally:
            program.kill()  # nothing where it has ended
    os.close(reading)


def test_workers_end_with_a_parent_that_is_killed(tmp_path) -> None:
    """Nobody tells them: they would wait for a unit for ever, each with its teacher in memory."""
    with pool_of_two(tmp_path, "few") as (program, workers, to_the_end):
        assert workers
        program.kill()
        to_the_end()


def test_an_interrupt_is_not_the_workers(tmp_path) -> None:
    """Ctrl-C goes to all processes of a terminal; workers that heard it would die with a traceback each."""
    with pool_of_two(tmp_path, "short") as (program, workers, to_the_end):
        for worker in workers:
            os.kill(worker, signal.SIGINT)
        program.communicate(b"go on\n")
        assert [line for line in to_the_end().splitlines() if not line.isdecimal()] == ["whole"]


def test_an_interrupt_waits_for_no_unit(tmp_path) -> None:
    """It is done again: a unit of a large teacher takes minutes."""
    with pool_of_two(tmp_path, "long") as (program, _, to_the_end):
        program.stdin.write(b"go on\n")
        program.stdin.flush()
        program.send_signal(signal.SIGINT)
        assert [line for line in to_the_end().splitlines() if not line.isdecimal()] == ["interrupted"]
        assert program.wait() == 3


def _until(handle: int, is_enough: Callable[[str], bool]) -> str:
    """What can be read from a pipe until it is enough, or nobody can write any more."""
    text = ""
    while not is_enough(text):
        assert select.select([handle], [], [], LONGEST)[0], f"nothing more was said, and nobody ended: {text!r}"
        more = os.read(handle, 4096).decode()
        if not more:
            break
        text += more
    return text


def test_less_than_one_worker_is_refused() -> None:
    with pytest.raises(ConfigError, match="--workers 0: must be at least 1"):
        list(run_units([1], squares, num_workers=0))


def test_whoever_asks_for_units_to_be_done_gets_the_engine_of_that_name(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []

    class Elsewhere:
        def run_units(self, units, make_worker, *, num_workers=None, advance=None, needs=None):
            asked.append((list(units), num_workers, needs))
            return iter([(1, "done elsewhere")])

    monkeypatch.setitem(engines.ENGINES, "elsewhere", Elsewhere())
    done = list(engines.run_units([1], squares, engine="elsewhere", num_workers=3, needs=Needs(gpus=1)))
    assert done == [(1, "done elsewhere")]
    assert asked == [([1], 3, Needs(gpus=1))]


def test_every_engine_has_a_name_that_may_be_given() -> None:
    assert tuple(engines.ENGINES) == get_args(Engine)


def test_one_worker_is_here_and_several_share_the_cores() -> None:
    assert local.team(1, Needs()) == local.team(None, Needs()) == engines.Team(is_here=True, threads=num_cores())
    assert local.team(None, Needs(worth=2)) == local.team(2, Needs(worth=9))
    assert local.team(1000, Needs()) == engines.Team(is_here=False, threads=1)
    assert not engines.team("ray", 1, Needs()).is_here


# ------------------------------------------------------------------------------------------------------------- GPUs


@pytest.fixture
def four_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as CUDA_VISIBLE_DEVICES names, four without it; they are only counted."""

    def count() -> int:
        named = os.environ.get("CUDA_VISIBLE_DEVICES")
        return 4 if named is None else len(named.split(","))

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr("torch.cuda.device_count", count)


def seeing() -> Work:
    """A worker that says which GPUs it sees, and takes its time, so that all have something to do."""

    def work(units: Iterable[int], advance: Advance) -> Iterator[tuple[int, str | None]]:
        for unit in units:
            time.sleep(1.0)
            yield unit, os.environ.get("CUDA_VISIBLE_DEVICES")

    return work


@pytest.mark.usefixtures("four_gpus")
def test_every_process_of_a_pool_sees_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = [gpu for _, gpu in run_units(range(8), seeing, num_workers=2, needs=Needs(gpus=1))]
    assert set(seen) == {"0", "1"}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,GPU-7")
    assert local.gpus_of_workers(2, Needs(gpus=1)) == ["5", "GPU-7"]
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "5,GPU-7"


@pytest.mark.usefixtures("four_gpus")
def test_one_worker_and_work_of_the_cpu_see_what_there_is() -> None:
    assert local.gpus_of_workers(1, Needs(gpus=1)) == [None]
    assert local.gpus_of_workers(3, Needs()) == [None, None, None]
    assert local.gpus_of_workers(2, Needs(gpus=2)) == ["0,1", "2,3"]


@pytest.mark.usefixtures("four_gpus")
def test_fewer_gpus_than_workers_are_refused_before_any_is_started() -> None:
    told = "--workers 5: each takes 1 GPU, and this machine has 4; ask for at most 4"
    with pytest.raises(ConfigError, match=told):
        local.check(5, Needs(gpus=1))
    with pytest.raises(ConfigError, match=told):
        list(run_units(range(5), unwilling, num_workers=5, needs=Needs(gpus=1)))
    local.check(5, Needs())
    local.check(4, Needs(gpus=1))
    local.check(None, Needs(gpus=1))
