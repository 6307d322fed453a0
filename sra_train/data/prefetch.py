"""One thread that prepares the next batches while the model works on this one.

Why a thread and not worker processes: decoding shards is numpy and pyarrow, which release the interpreter lock, so one
thread keeps up, and there is no worker state that a resume could lose. The queue is bounded, an exception in the
thread is raised where the batch would have come out, and `close` always ends the thread.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from types import TracebackType
from typing import Generic, TypeVar

Item = TypeVar("Item")

SECONDS_BETWEEN_LOOKS = 0.1  # how soon a blocked thread sees that it should stop


class _End:
    """Put into the queue after the last item, with what went wrong if anything did."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


class Prefetcher(Generic[Item]):
    """Iterates over `items` in another thread, at most `depth` items ahead.

    Use as a context manager. `seconds_waited` is the time the consumer stood waiting, in all.

    Args:
        items: What to prepare; its work is done in the thread.
        depth: Items held ready, at least 1.
        begin: Called in the thread before all else: what belongs to a thread, such as the GPU it works for.
    """

    def __init__(self, items: Iterable[Item], *, depth: int, begin: Callable[[], object] = lambda: None) -> None:
        assert depth >= 1
        self._begin = begin
        self.seconds_waited = 0.0
        self._queue: queue.Queue[Item | _End] = queue.Queue(maxsize=depth)
        self._stop = threading.Event()
        self._ended = False
        self._thread = threading.Thread(target=self._fill, args=(iter(items),), name="prefetch", daemon=True)

    def __enter__(self) -> Prefetcher[Item]:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __iter__(self) -> Iterator[Item]:
        return self

    def __next__(self) -> Item:
        if self._ended:
            raise StopIteration
        started = time.perf_counter()
        item = self._queue.get()
        self.seconds_waited += time.perf_counter() - started
        if isinstance(item, _End):
            self._ended = True
            if item.error is not None:
                raise item.error
            raise StopIteration
        return item

    def close(self) -> None:
        """End the thread and wait for it; items already prepared are dropped."""
        self._stop.set()
        self._ended = True
        if self._thread.ident is not None:
            self._thread.join()

    def _fill(self, items: Iterator[Item]) -> None:
        error: BaseException | None = None
        try:
            self._begin()
            for item in items:
                if not self._put(item):
                    return
        except BaseException as caught:  # carried over to the consumer, which raises it
            error = caught
        finally:
            if isinstance(items, Generator):
                items.close()  # here and now: it may have a thread of its own
        self._put(_End(error))

    def _put(self, item: Item | _End) -> bool:
        while not self._stop.is_set():
            try:
                self._queue.put(item, timeout=SECONDS_BETWEEN_LOOKS)
                return True
            except queue.Full:
                continue
        return False
