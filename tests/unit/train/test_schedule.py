"""The learning rate over a run."""

import itertools
import math

import pytest

from sra_train.schedule import learning_rate


def rates(total: int, schedule: str = "cosine", warmup: float = 0.1, minimum: float = 1e-5) -> list[float]:
    return [
        learning_rate(step, total_steps=total, warmup=warmup, peak=1e-3, minimum=minimum, schedule=schedule)
        for step in range(total)
    ]


def test_warm_up_rises_in_equal_steps_to_the_peak() -> None:
    found = rates(100)
    assert found[:10] == pytest.approx([1e-4 * (step + 1) for step in range(10)])


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_the_last_step_has_the_minimum_and_none_is_below(schedule) -> None:
    found = rates(57, schedule)
    assert found[-1] == pytest.approx(1e-5)
    assert min(found[6:]) == pytest.approx(1e-5)
    assert all(first > second for first, second in itertools.pairwise(found[6:]))


def test_cosine_is_halfway_in_the_middle() -> None:
    found = rates(100, warmup=0.0, minimum=0.0)
    assert found[49] == pytest.approx(1e-3 * (1 + math.cos(math.pi / 2)) / 2)


def test_constant_stays_at_the_peak() -> None:
    assert set(rates(20, "constant")[2:]) == {1e-3}


def test_a_run_of_one_step_trains_at_all() -> None:
    assert rates(1, minimum=0.0) == [0.0] or rates(1)[0] > 0
    assert learning_rate(0, total_steps=1, warmup=0.1, peak=1e-3, minimum=1e-5, schedule="cosine") > 0


def test_a_peak_below_the_minimum_is_not_raised() -> None:
    assert max(rates(30, minimum=1.0)) == 1e-3
