"""Laws of the order of training: a pure function, every row once, nothing but its inputs."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sra_data.errors import TrainingError
from sra_train.data.order import NO_ROW, OrderPlan, epoch_order


@st.composite
def corpora(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    sizes = draw(st.lists(st.integers(1, 7), min_size=1, max_size=12))
    row_groups = np.repeat(np.arange(len(sizes)), sizes)
    trainable = np.array(draw(st.lists(st.booleans(), min_size=len(row_groups), max_size=len(row_groups))))
    return row_groups, trainable


def order(corpus: tuple[np.ndarray, np.ndarray], **changes: object) -> np.ndarray:
    arguments = {"seed": 1, "epoch": 0, "corpus_root": "abc", "window": 3} | changes
    return epoch_order(*corpus, **arguments)


@settings(max_examples=60, deadline=None)
@given(corpora(), st.integers(0, 5), st.integers(0, 5), st.integers(1, 5))
def test_every_trainable_row_comes_exactly_once(corpus, seed, epoch, window) -> None:
    found = order(corpus, seed=seed, epoch=epoch, window=window)
    assert sorted(found) == np.flatnonzero(corpus[1]).tolist()


@settings(max_examples=60, deadline=None)
@given(corpora(), st.data())
def test_leaving_out_a_row_moves_no_other(corpus, data) -> None:
    row_groups, trainable = corpus
    everything = order((row_groups, np.ones_like(trainable)))
    assert order(corpus).tolist() == [row for row in everything if trainable[row]]


@settings(max_examples=60, deadline=None)
@given(corpora(), st.integers(1, 4))
def test_rows_of_a_row_group_stay_inside_one_window(corpus, window) -> None:
    row_groups, trainable = corpus
    everything = order((row_groups, np.ones_like(trainable)), window=window)
    places = [np.flatnonzero(row_groups[everything] == group) for group in range(row_groups.max() + 1)]
    largest_window = sum(sorted((len(place) for place in places), reverse=True)[:window])
    assert all(place.max() - place.min() < largest_window for place in places)


def test_the_order_never_changes_between_versions() -> None:
    # golden: whoever changes the order breaks every checkpoint, and has to say so
    row_groups = np.repeat(np.arange(4), 3)
    found = epoch_order(row_groups, np.ones(12, bool), seed=7, epoch=2, corpus_root="0123", window=2)
    assert found.tolist() == GOLDEN


GOLDEN = [2, 0, 10, 9, 11, 1, 6, 7, 4, 8, 3, 5]


@pytest.mark.parametrize("change", [{"seed": 2}, {"epoch": 1}, {"corpus_root": "abd"}, {"window": 10}])
def test_each_input_changes_the_order(change) -> None:
    corpus = (np.repeat(np.arange(20), 5), np.ones(100, bool))
    assert order(corpus).tolist() != order(corpus, **change).tolist()


def plan(num_rows: int, batch_size: int) -> OrderPlan:
    return OrderPlan(
        row_groups=np.arange(num_rows) // 4,
        trainable=np.ones(num_rows, bool),
        seed=3,
        corpus_root="root",
        window=2,
        batch_size=batch_size,
    )


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(1, 9), st.integers(0, 3))
def test_the_batches_of_an_epoch_are_its_order_with_a_padded_tail(num_rows, batch_size, epoch) -> None:
    batch_size = min(batch_size, num_rows)
    whole = plan(num_rows, batch_size)
    first = epoch * whole.steps_per_epoch
    batches = [whole.global_batch(first + index) for index in range(whole.steps_per_epoch)]
    joined = np.concatenate(batches)
    expected = epoch_order(whole.row_groups, whole.trainable, seed=3, epoch=epoch, corpus_root="root", window=2)
    assert all(len(batch) == batch_size for batch in batches)
    assert joined[: len(expected)].tolist() == expected.tolist()
    assert (joined[len(expected) :] == NO_ROW).all()


def test_fewer_examples_than_one_batch_are_refused() -> None:
    with pytest.raises(TrainingError, match=r"training\.batch_size=8: .* 3 examples .* at most 3"):
        plan(3, 8)
