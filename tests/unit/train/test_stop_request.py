"""A request to stop is answered between two steps: which signals ask, and which one does not wait."""

from __future__ import annotations

import signal

import pytest

from sra_train.parallel import StopRequest


def test_a_second_sigterm_does_not_interrupt_a_step_and_a_second_ctrl_c_does() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with StopRequest() as stop:
        assert not stop.requested
        for _ in range(3):  # the scheduler's to everybody, and torchrun's to its own
            signal.raise_signal(signal.SIGTERM)
        assert stop.requested
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_the_first_ctrl_c_waits_for_the_end_of_the_step() -> None:
    with StopRequest() as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop.requested
