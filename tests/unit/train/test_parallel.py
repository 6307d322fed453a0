"""Processes and precision: one process may train again, in another precision than before."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from sra_train.config import TrainingConfig
from sra_train.parallel import make_accelerator


@pytest.fixture(autouse=True)
def _alone() -> Iterator[None]:
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def test_a_process_that_has_trained_in_another_precision_trains_again() -> None:
    Accelerator(cpu=True, mixed_precision="bf16")
    found = make_accelerator(TrainingConfig(precision="no"))
    assert found.mixed_precision == "no"


def test_an_accelerator_of_the_same_precision_is_left_as_it_is() -> None:
    before = make_accelerator(TrainingConfig(precision="no"))
    before.state.mark = "set by whoever made it"
    make_accelerator(TrainingConfig(precision="bf16"))  # which asks accelerate for none
    assert before.state.mark == "set by whoever made it"
