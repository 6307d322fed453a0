"""Several jobs at once, each in a process of its own with its share of the machine.

On GPUs a process sees one of them; on a CPU each has its share of the cores, one thread each by default: many small
runs side by side do more than one run with many threads. The processes are forked from one that has imported what all
of them need (some seconds each otherwise) and has touched no device. The first job that fails ends the others, which
keep their checkpoints; so does an interruption.
"""

from __future__ import annotations

import multiprocessing
import os
import queue
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from sra_data.errors import ConfigError, TrainingError
from sra_data.terminal import Reporter
from sra_train.compare.jobs import Job
from sra_train.compare.records import LOG
from sra_train.compare.work import work_in

WARM = "sra_train.compare.warm"  # what the process that all others are forked from imports


@dataclass(frozen=True)
class Slot:
    """A share of the machine: a GPU by its name in CUDA_VISIBLE_DEVICES, or a number of CPU threads."""

    device: str | None
    threads: int

    def environment(self) -> dict[str, str]:
        """What a process in it is told; a number of threads the user has set stays."""
        found = {"OMP_NUM_THREADS": str(self.threads), "TOKENIZERS_PARALLELISM": "false"}
        found = {name: os.environ.get(name, value) for name, value in found.items()}
        return found if self.device is None else found | {"CUDA_VISIBLE_DEVICES": self.device}


def make_slots(workers: int | None, *, devices: Sequence[str], cores: int) -> list[Slot]:
    """The shares of a machine.

    Args:
        workers: how many; by default one a GPU or, without one, one a core.
        devices: names of the GPUs.
        cores: that this process may use.

    Raises:
        ConfigError: If `workers` is not positive.
    """
    if workers is not None and workers < 1:
        raise ConfigError(f"--workers {workers}: not a positive number; write the number of runs at once")
    count = workers or len(devices) or cores
    names: Sequence[str | None] = devices or [None]
    return [Slot(names[place % len(names)], max(1, cores // count)) for place in range(count)]


def devices_of_machine() -> list[str]:
    """The GPUs this process may use, as CUDA_VISIBLE_DEVICES calls them."""
    import torch

    count = torch.cuda.device_count()
    named = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return named[:count] if named else [str(number) for number in range(count)]


def cores_of_machine() -> int:
    """The cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


Process = multiprocessing.context.ForkServerProcess


class Pool:
    """Does jobs, as many at once as there are slots."""

    def __init__(self, slots: Sequence[Slot]) -> None:
        self.slots = slots
        self._free: queue.SimpleQueue[Slot] = queue.SimpleQueue()
        for slot in slots:
            self._free.put(slot)
        self._running: set[Process] = set()
        self._lock = threading.Lock()
        # asks the driver for devices without waking it: a process that has used a GPU cannot be forked
        os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([WARM])
        self._stopping = False

    def do(self, jobs: Iterable[Job], *, what: str, reporter: Reporter, done: Callable[[Job], str]) -> None:
        """Do the jobs that are not done.

        Args:
            jobs: all of them.
            what: in a word or two, for the bar.
            reporter: told of each that is done.
            done: what to say of it.

        Raises:
            TrainingError: If one fails, with its last word and where its log is; no other is running then.
        """
        wanted = list(jobs)
        missing = [job for job in wanted if not job.is_done()]
        if len(wanted) > len(missing):
            reporter.line(f"{what}: {len(wanted) - len(missing)} of {len(wanted)} are there already")
        if not missing:
            return
        with (
            reporter.task(what, total=len(missing), unit="runs") as task,
            ThreadPoolExecutor(len(self.slots)) as threads,
        ):
            running = {threads.submit(self._do, job): job for job in missing}
            try:
                for future in as_completed(running):
                    future.result()
                    reporter.line(done(running[future]))
                    task.advance(1)
            except BaseException:
                self._end_all()
                threads.shutdown(wait=True, cancel_futures=True)
                raise

    def _do(self, job: Job) -> None:
        slot = self._free.get()
        try:
            job.write()
            log = job.folder / LOG
            process = self._start(job.folder, slot)
            if process is None:
                return
            process.join()
            with self._lock:
                self._running.discard(process)
            status = process.exitcode
            if status and not self._stopping:
                raise TrainingError(f"{job.title}: {last_word(log, status)} (all it said is in {log})")
        finally:
            self._free.put(slot)

    def _start(self, folder: Path, slot: Slot) -> Process | None:
        """A process that works in a folder; None if all is being ended."""
        with self._lock:
            if self._stopping:
                return None
            process = self._context.Process(target=work_in, args=(folder, slot.environment()))
            process.start()
            self._running.add(process)
            return process

    def _end_all(self) -> None:
        with self._lock:
            self._stopping = True
            for process in self._running:
                process.terminate()


def last_word(log: Path, status: int) -> str:
    """The error a process ended with, without its own prefix."""
    said = (
        log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
    )  # it may have ended before its log
    lines = said.strip().splitlines()
    word = lines[-1].strip() if lines else "said nothing"
    return word.removeprefix("error: ") if word.startswith("error: ") else f"ended with {status}: {word}"
