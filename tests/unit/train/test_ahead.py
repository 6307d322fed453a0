"""Fetching ahead: in order, not too far, and never in the way."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest

from sra_data.errors import ShardError
from sra_train.data.ahead import FetchAhead, Rows, fetching_ahead


class Store:
    """Counts what is fetched; `wait_for` waits until so many batches were."""

    def __init__(self, num_bytes: int = 10) -> None:
        self.fetched: list[int] = []
        self.num_bytes = num_bytes
        self.changed = threading.Condition()

    def __call__(self, rows: Rows) -> int:
        with self.changed:
            self.fetched.append(int(rows[0]))
            self.changed.notify_all()
        return self.num_bytes

    def wait_for(self, count: int) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.fetched) >= count, timeout=30)


def batches(count: int, rows: int = 4) -> Iterator[Rows]:
    return (np.full(rows, number, np.int64) for number in range(count))


def stays_at(store: Store, count: int) -> bool:
    with store.changed:
        return not store.changed.wait_for(lambda: len(store.fetched) > count, timeout=0.2)


@pytest.mark.parametrize(("most_rows", "most_bytes"), [(12, 1 << 30), (1 << 30, 30)], ids=["rows", "bytes"])
def test_it_goes_so_far_ahead_and_on_as_the_reader_does(most_rows: int, most_bytes: int) -> None:
    store = Store()
    ahead = FetchAhead(store, batches(20), most_rows=most_rows, most_bytes=most_bytes)
    store.wait_for(3)
    assert stays_at(store, 3)
    ahead.reached(0)
    store.wait_for(4)
    assert stays_at(store, 4)
    ahead.reached(10)
    store.wait_for(5)
    ahead.reached(19)
    ahead.close()
    assert store.fetched[:4] == [0, 1, 2, 3]
    assert sorted(store.fetched) == store.fetched
    assert not set(store.fetched) & {6, 7, 8}  # read meanwhile: of no use any more


def test_closing_ends_a_thread_that_waits() -> None:
    store = Store()
    ahead = FetchAhead(store, batches(20), most_rows=4, most_bytes=1 << 30)
    store.wait_for(1)
    ahead.close()
    assert not any(thread.name == "fetch ahead" for thread in threading.enumerate())


def test_what_a_store_refuses_is_left_to_the_reader() -> None:
    def refuse(rows: Rows) -> int:
        raise ShardError("away")

    ahead = FetchAhead(refuse, batches(3), most_rows=100, most_bytes=100)
    ahead.reached(2)
    ahead.close()


def test_nothing_is_fetched_of_a_folder() -> None:
    def never() -> Iterator[Rows]:
        pytest.fail("asked for batches")
        yield np.zeros(0, np.int64)

    with fetching_ahead(None, never(), most_rows=1, cache_bytes=1) as reached:
        reached(0)
