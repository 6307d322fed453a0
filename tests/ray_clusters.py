"""A Ray of a few cores for tests, and whether processes are still there; tests of it skip where it is not installed."""

from __future__ import annotations

import gc
import os
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
LONGEST = 120.0  # seconds until something counts as not happening


@contextmanager
def of_two_cores() -> Iterator[None]:
    """Ray in this process, told of two cores: one for actors, who may share it, and one for nobody."""
    ray = pytest.importorskip("ray", reason="Ray is not installed: the extra [ray]")
    with seeing_the_tests(), forgetting_processes():
        try:
            ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
            yield
        finally:
            ray.shutdown()


@contextmanager
def forgetting_processes() -> Iterator[None]:
    """Ray kills the processes that it has started without waiting for them, of which Python warns, here to nobody."""
    try:
        yield
    finally:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="subprocess .* is still running", category=ResourceWarning)
            gc.collect()


@contextmanager
def seeing_the_tests() -> Iterator[None]:
    """Let processes that are started meanwhile find this repository; with a `ray start` of somebody else's unseen."""
    known = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(dict.fromkeys([str(REPOSITORY), *known])))
        patch.setenv("RAY_ADDRESS", "local")
        yield


def until(happens: Callable[[], bool]) -> None:
    """Wait for it."""
    end = time.monotonic() + LONGEST
    while not happens():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.1)


def is_alive(pid: int) -> bool:
    """Whether a process is at work: not one that has ended and that nobody has asked about yet."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{pid}/stat")
    try:
        return not status.exists() or status.read_text("utf-8").rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
