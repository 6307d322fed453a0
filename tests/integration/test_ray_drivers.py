"""The driver of a Ray run ends, by a kill, a SIGTERM or Ctrl-C: its actors end too, the rerun does what is missing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.ray_kills import noted
from tests.integration.ray_worlds import Place, done, several_units, write_place
from tests.ray_clusters import is_alive, of_two_cores, seeing_the_tests, until

pytest.importorskip("ray", reason="Ray is not installed: the extra [ray]")
pytestmark = pytest.mark.slow  # a cluster takes seconds to start, and every actor imports torch

# Ends itself after two units, in a process group of its own: what a terminal sends goes to all of it.
DRIVER = """
import functools, os, pathlib, signal, sys
import ray
from sra_data import cli
from sra_data.stages.align import plan, stage
from sra_data.stages.cache import units
from tests.crash.world import RESPONSE_BYTES_PER_PART
from tests.integration.ray_kills import hooked

number, notes = signal.Signals[sys.argv[1]], pathlib.Path(sys.argv[2])
plan.RESPONSE_BYTES_PER_PART = RESPONSE_BYTES_PER_PART
ray.init = functools.partial(ray.init, num_cpus=2)
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where a shell has put the tests behind

def after(count):
    if count == 2:
        os.killpg(0, number) if number == signal.SIGINT else os.kill(os.getpid(), number)

stage.run_units = hooked(stage.run_units, notes, after=after)
units.run_units = hooked(units.run_units, notes, after=after)
sys.argv[1:] = sys.argv[3:]
cli.main()
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """The pair."""
    made = write_place(tmp_path_factory.mktemp("ray"))
    with several_units():
        yield made


def drive(words: list[object], by: signal.Signals, notes: Path) -> subprocess.CompletedProcess[str]:
    """Start the driver; how it ended."""
    arguments = [by.name, notes, *words, "--engine", "ray", "--workers", 2]
    with seeing_the_tests():
        return subprocess.run(
            [sys.executable, "-c", DRIVER, *map(str, arguments)],
            env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
            capture_output=True,
            text=True,
            timeout=600,
            start_new_session=True,
        )


@pytest.mark.parametrize("command", ["align", "cache-teacher"])
@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=lambda by: by.name)
def test_a_driver_that_ends_takes_its_actors_along_and_the_rerun_finds_the_receipts(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, by: signal.Signals
) -> None:
    shards, notes, again = tmp_path / "shards", tmp_path / "notes", tmp_path / "again"
    notes.mkdir()
    again.mkdir()
    if command == "cache-teacher":
        done(place.align(shards))
    aligned = place.receipts(shards)
    words = place.align(shards) if command == "align" else place.cache(shards)
    ended = drive(words, by, notes)
    if by == signal.SIGKILL:
        assert ended.returncode == -signal.SIGKILL
    else:
        assert (ended.returncode, ended.stdout) == (130, "")
        assert ended.stderr.splitlines()[-1] == "interrupted; run the same command again: finished units are kept"
        assert "Traceback" not in ended.stderr
    actors = [int(pid) for pid, _ in noted(notes / "workers")]
    assert actors
    until(lambda: not any(map(is_alive, actors)))
    made = place.receipts(shards) - aligned
    assert len(made) >= 2

    done(words)
    assert place.differences(shards) == []


def test_the_rerun_may_begin_while_the_actors_of_a_killed_driver_are_ending(place: Place, tmp_path: Path) -> None:
    shards, notes = tmp_path / "shards", tmp_path / "notes"
    notes.mkdir()
    drive(place.align(shards), signal.SIGKILL, notes)
    with of_two_cores():
        done(place.align(shards, "--engine", "ray", "--workers", 2))
    assert place.differences(shards) == []
