"""Laws of the reading thread: the same items, errors carried over, never left running."""

import threading
from collections.abc import Iterator

import pytest

from sra_train.data.prefetch import Prefetcher


def test_items_come_out_in_their_order() -> None:
    with Prefetcher(range(50), depth=3) as items:
        assert list(items) == list(range(50))


def test_an_error_in_the_thread_is_raised_where_its_item_would_have_come() -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise ValueError("no such row")

    with Prefetcher(broken(), depth=2) as items:
        assert next(items) == 1
        with pytest.raises(ValueError, match="no such row"):
            next(items)
        with pytest.raises(StopIteration):
            next(items)


def test_at_most_depth_items_are_made_ahead() -> None:
    made: list[int] = []
    three = threading.Event()

    def counted() -> Iterator[int]:
        for number in range(100):
            made.append(number)
            if len(made) == 3:
                three.set()
            yield number

    with Prefetcher(counted(), depth=2) as items:
        assert three.wait(5)  # two in the queue, one in hand
        assert len(made) == 3
        next(items)


def test_leaving_early_ends_the_thread() -> None:
    def endless() -> Iterator[int]:
        while True:
            yield 0

    before = threading.active_count()
    with Prefetcher(endless(), depth=1) as items:
        next(items)
    assert threading.active_count() == before


def test_leaving_by_an_error_ends_the_thread() -> None:
    before = threading.active_count()
    with pytest.raises(RuntimeError), Prefetcher(range(1000), depth=1):
        raise RuntimeError
    assert threading.active_count() == before


def test_time_spent_waiting_is_measured() -> None:
    gate = threading.Event()

    def slow() -> Iterator[int]:
        gate.wait(0.05)
        yield 1

    with Prefetcher(slow(), depth=1) as items:
        next(items)
        assert items.seconds_waited > 0.02


def test_the_thread_begins_with_what_belongs_to_it_and_an_error_there_is_raised() -> None:
    begun: list[str] = []

    def fail() -> None:
        begun.append(threading.current_thread().name)
        raise RuntimeError("no such device")

    with Prefetcher(range(3), depth=1, begin=lambda: begun.append(threading.current_thread().name)) as items:
        assert list(items) == [0, 1, 2]
    with Prefetcher(range(3), depth=1, begin=fail) as items, pytest.raises(RuntimeError, match="no such device"):
        next(items)
    assert begun == ["prefetch", "prefetch"]
