"""Memory that runs out is one line that says what needs less; every other error stays itself."""

from __future__ import annotations

import pytest
import torch

from sra_data.errors import TrainingError
from sra_train.memory import less_at_once, memory_refused

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        MemoryError(),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
    ],
)
def test_what_ran_out_and_what_needs_less_are_one_line(error: BaseException) -> None:
    with pytest.raises(TrainingError) as raised, memory_refused(CPU, lambda: "step 3", lambda: "take less"):
        raise error
    assert str(raised.value) == "step 3: out of memory on cpu; take less"


def test_other_errors_stay_themselves() -> None:
    with pytest.raises(RuntimeError, match="shapes differ"), memory_refused(CPU, lambda: "a", lambda: "b"):
        raise RuntimeError("shapes differ")


def test_a_single_example_is_not_cut_further() -> None:
    assert less_at_once(16, 320, "so").startswith("set training.micro_batch_tokens=2560 (it changes no result), so;")
    assert less_at_once(3, 100, "so").startswith("set training.micro_batch_tokens=100 ")
    assert less_at_once(1, 320, "so").startswith("set so; ")
