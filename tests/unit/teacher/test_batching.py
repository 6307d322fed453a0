"""Laws of batches: every example once, within the budget, by lengths alone; the budget is found by trying."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sra_data.models.devices import is_out_of_memory
from sra_data.teacher.batching import CPU_BUDGET, LARGEST_BUDGET, SMALLEST_BUDGET, find_batch_tokens, plan_batches


@settings(max_examples=60, deadline=None)
@given(lengths=st.lists(st.integers(1, 50), max_size=40), batch_tokens=st.integers(1, 200))
def test_every_example_is_in_one_batch_within_the_budget(lengths: list[int], batch_tokens: int) -> None:
    batches = plan_batches(lengths, batch_tokens)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        width = max(lengths[index] for index in batch)
        assert len(batch) == 1 or width * len(batch) <= batch_tokens
    ordered = [lengths[index] for batch in batches for index in batch]
    assert ordered == sorted(lengths, reverse=True)
    assert batches == plan_batches(lengths, batch_tokens)


def test_a_budget_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="batch_tokens must be positive, got 0"):
        plan_batches([3], 0)


def test_the_budget_is_half_of_what_fits_and_never_below_the_longest_example() -> None:
    tried: list[int] = []

    def try_batch(budget: int) -> None:
        tried.append(budget)
        if budget > 5000:
            raise torch.OutOfMemoryError("out of memory")

    assert find_batch_tokens(try_batch, longest=10, device=torch.device("cuda")) == 2048
    assert tried == [1024, 2048, 4096, 8192]
    assert find_batch_tokens(try_batch, longest=3000, device=torch.device("cuda")) == 3000
    assert find_batch_tokens(try_batch, longest=6000, device=torch.device("cuda")) == 6000
    assert find_batch_tokens(try_batch, longest=10, device=torch.device("cpu")) == CPU_BUDGET
    assert SMALLEST_BUDGET <= CPU_BUDGET


def test_no_budget_is_larger_than_what_keeps_a_unit_free_of_padding() -> None:
    tried: list[int] = []
    found = find_batch_tokens(tried.append, longest=10, device=torch.device("cuda"))
    assert found == max(tried) // 2 == LARGEST_BUDGET // 2
    lengths = np.random.default_rng(0).lognormal(4.6, 0.7, size=700).astype(int).clip(1, 320)
    padded = sum(len(batch) * int(max(lengths[batch])) for batch in plan_batches(lengths.tolist(), found))
    assert padded < 1.2 * lengths.sum()  # a unit in one batch would be 2.4 times its tokens


def test_other_errors_are_not_taken_for_a_lack_of_memory() -> None:
    def fail(budget: int) -> None:
        raise RuntimeError("shape mismatch")

    with pytest.raises(RuntimeError, match="shape mismatch"):
        find_batch_tokens(fail, longest=10, device=torch.device("cuda"))
    assert is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"))
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(ValueError("out of memory"))
