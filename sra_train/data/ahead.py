"""Fetches ahead what the next steps read, where the shards are in a store; nothing happens where they are a folder.

The order of training is known, so while the model works on one window of row groups a thread brings the next one's into
the cache of this machine. It changes no order and no value: what it has not fetched is fetched when it is read, and
what goes wrong is said there.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from sra_data.errors import SRAError

Rows = NDArray[np.int64]
SHARE_OF_CACHE = 4  # at most so much of it is filled ahead: what is being read must stay in it


class FetchAhead:
    """A thread that fetches batches of rows, as far ahead of the reader as it may.

    Args:
        fetch: Fetches rows; returns the bytes that came.
        batches: Rows in the order in which they will be read.
        most_rows: Rows it may be ahead.
        most_bytes: Fetched bytes it may be ahead.
    """

    def __init__(
        self, fetch: Callable[[Rows], int], batches: Iterator[Rows], *, most_rows: int, most_bytes: int
    ) -> None:
        self._fetch, self._batches = fetch, batches
        self._most_rows, self._most_bytes = most_rows, most_bytes
        self._reached = -1  # number of the batch that is being read
        self._ahead: deque[tuple[int, int, int]] = deque()  # number, rows and bytes of batches that were not read yet
        self._changed = threading.Condition()
        self._is_ending = False
        self._thread = threading.Thread(target=self._run, name="fetch ahead", daemon=True)
        self._thread.start()

    def reached(self, number: int) -> None:
        """The reader is about to read this batch."""
        with self._changed:
            self._reached = number
            while self._ahead and self._ahead[0][0] <= number:
                self._ahead.popleft()
            self._changed.notify_all()

    def close(self) -> None:
        """End the thread, once what it is fetching is there."""
        with self._changed:
            self._is_ending = True
            self._changed.notify_all()
        self._thread.join()

    def _run(self) -> None:
        for number, rows in enumerate(self._batches):
            with self._changed:
                self._changed.wait_for(lambda: self._is_ending or self._may_go_on())
                if self._is_ending:
                    return
                if number < self._reached:
                    continue
            try:
                num_bytes = self._fetch(rows)
            except SRAError:
                return  # whoever reads these rows meets it
            with self._changed:
                if number > self._reached:
                    self._ahead.append((number, len(rows), num_bytes))

    def _may_go_on(self) -> bool:
        return (
            sum(rows for _, rows, _ in self._ahead) < self._most_rows
            and sum(num_bytes for _, _, num_bytes in self._ahead) < self._most_bytes
        )


@contextmanager
def fetching_ahead(
    fetch: Callable[[Rows], int] | None, batches: Iterator[Rows], *, most_rows: int, cache_bytes: int
) -> Iterator[Callable[[int], None]]:
    """Fetch ahead while the context lasts; gives what is to be told the number of each batch before it is read.

    Args:
        fetch: See `FetchAhead`; None where nothing has to be fetched.
        batches: Likewise.
        most_rows: Likewise.
        cache_bytes: What the cache holds.
    """
    if fetch is None:
        yield lambda number: None
        return
    ahead = FetchAhead(fetch, batches, most_rows=most_rows, most_bytes=max(cache_bytes // SHARE_OF_CACHE, 1))
    try:
        yield ahead.reached
    finally:
        ahead.close()
