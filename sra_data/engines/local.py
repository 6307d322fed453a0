"""Units of work on this machine: in this process, or in a pool of processes, each with a GPU of its own.

A worker is made once per process (it may load a teacher) and then given unit after unit. What a unit writes depends on
the unit alone, so the number of processes changes only the time. A worker returns small results (a receipt's notes): no
tensor travels between processes. A worker ends with whoever made it, however that ended: one that waited for ever for
its next unit would keep a teacher in a GPU's memory. Ctrl-C reaches all processes of a terminal: workers leave it to
their parent, which ends them.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any

from sra_data.engines.work import Advance, Needs, Team, UnitType, Work, counted, num_cores, refuse_no_workers, result_of
from sra_data.errors import ConfigError, SRAError

_work: Work | None = None
_why_not: Exception | None = None  # there is no worker in this process


def team(num_workers: int | None, needs: Needs) -> Team:
    """One worker works in this process, several share its cores; see `Engine.team`."""
    count = _count(num_workers, needs)
    return Team(is_here=count == 1, threads=max(1, num_cores() // count))


def check(num_workers: int | None, needs: Needs) -> None:
    """See `Engine.check`."""
    refuse_no_workers(num_workers)
    gpus_of_workers(_count(num_workers, needs), needs)


def run_units(
    units: Iterable[UnitType],
    make_worker: Callable[[], Work],
    *,
    num_workers: int | None = None,
    advance: Advance | None = None,
    needs: Needs = Needs(),
) -> Iterator[tuple[UnitType, Any]]:
    """Do the units, in this process or, with several workers, in as many of a pool; see `Engine.run_units`."""
    refuse_no_workers(num_workers)
    show = advance or (lambda amount: None)
    if team(num_workers, needs).is_here:
        waiting = list(units)
        if waiting:
            yield from make_worker()(waiting, show)
    else:
        yield from _run_in_pool(units, make_worker, gpus_of_workers(_count(num_workers, needs), needs), show)


def _count(num_workers: int | None, needs: Needs) -> int:
    return num_workers or needs.worth


def gpus_of_workers(num_workers: int, needs: Needs) -> list[str | None]:
    """The GPUs that each worker is to see, as CUDA_VISIBLE_DEVICES names them; None: all that there are.

    Raises:
        ConfigError: If there are fewer than several workers need.
    """
    if not needs.gpus or num_workers == 1:
        return [None] * num_workers
    import torch

    count = torch.cuda.device_count()
    if num_workers * needs.gpus > count:
        raise ConfigError(
            f"--workers {num_workers}: each takes {counted(needs.gpus, 'GPU')}, and this machine has {count}; "
            f"ask for at most {max(1, count // needs.gpus)}"
        )
    named = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    names = named or [str(number) for number in range(count)]
    return [",".join(names[one * needs.gpus : (one + 1) * needs.gpus]) for one in range(num_workers)]


def _run_in_pool(
    units: Iterable[UnitType], make_worker: Callable[[], Work], gpus: Sequence[str | None], advance: Advance
) -> Iterator[tuple[UnitType, Any]]:
    # Started afresh rather than forked: a forked child inherits locks of threads that do not exist in it.
    context = multiprocessing.get_context("spawn")
    num_workers = len(gpus)
    free: Any = None  # where each process takes its GPUs as it starts; it has a lock, which a killed one leaves behind
    if any(gpus):
        free = context.SimpleQueue()
        for names in gpus:
            free.put(names)
    threads = max(1, num_cores() // num_workers)
    pool = ProcessPoolExecutor(num_workers, context, _start, (make_worker, threads, free))
    remaining = iter(units)
    running: dict[Future[tuple[Any, int]], UnitType] = {}
    try:
        while True:
            while len(running) < num_workers and (unit := next(remaining, None)) is not None:
                with _without_interrupts():
                    running[pool.submit(_do, unit)] = unit  # may start a process
            if not running:
                break
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                result, amount = _result(future)
                advance(amount)
                yield running.pop(future), result
    except (KeyboardInterrupt, GeneratorExit):  # here, or while nobody was asking for the next unit
        for process in multiprocessing.active_children():
            process.terminate()  # their units are done again; waiting for them could take minutes
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """Put Ctrl-C off; a process started meanwhile is born without hearing it."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def _result(future: Future[tuple[Any, int]]) -> tuple[Any, int]:
    try:
        return future.result()
    except BrokenProcessPool as error:
        raise SRAError(
            "a worker process died without a word (killed, or out of memory); finished units are kept: run the same "
            "command again, with fewer --workers if memory is short"
        ) from error


def _start(make_worker: Callable[[], Work], threads: int, free: Any) -> None:
    """Runs first in every process of the pool. What goes wrong is kept: raised here it would be a broken pool's.

    Args:
        make_worker: makes the worker.
        threads: cores that it has to itself.
        free: a queue of the GPUs that nobody has taken yet; None where there are none to share out.
    """
    global _work, _why_not
    threading.Thread(target=_end_with_parent, name="end with the parent", daemon=True).start()
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    gpus = None if free is None else free.get()
    if gpus is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus  # CUDA reads it when it is first used, which is later
    try:
        _work = make_worker()
    except Exception as error:
        _why_not = error


def _end_with_parent() -> None:
    """End this process when its parent does, at once, as a kill would: a unit half done is done again."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _do(unit: Any) -> tuple[Any, int]:
    if _why_not is not None:
        raise _why_not
    assert _work is not None
    done: list[int] = []
    result = result_of(_work, unit, done.append)
    return result, sum(done)
