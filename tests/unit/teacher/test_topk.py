"""Laws of truncated distributions: whole mass, exact tails."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sra_data.teacher.topk import chosen_logits, top_k_with_tails

TEMPERATURES = (1.0, 2.0, 0.5)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 1000), scale=st.sampled_from([0.01, 1.0, 10.0, 60.0]), top_k=st.integers(1, 33))
def test_values_and_tails_equal_a_float64_reference(seed: int, scale: float, top_k: int) -> None:
    logits = torch.randn(5, 33, generator=torch.Generator().manual_seed(seed)) * scale
    found = top_k_with_tails(logits.clone(), top_k=top_k, temperatures=TEMPERATURES)
    log_probs = logits.double().log_softmax(dim=-1).numpy()
    for position in range(5):
        order = np.argsort(-log_probs[position], kind="stable")
        kept, left = order[:top_k], order[top_k:]
        assert set(found.ids[position].tolist()) == set(kept.tolist())
        np.testing.assert_allclose(found.values[position], log_probs[position][kept], atol=3e-5, rtol=1e-5)
        for row, temperature in enumerate(TEMPERATURES):
            tail = np.logaddexp.reduce(log_probs[position][left] / temperature) if len(left) else -np.inf
            np.testing.assert_allclose(found.log_tails[row, position], tail, atol=6e-5, rtol=1e-5)


def test_keeping_everything_leaves_a_tail_of_minus_infinity() -> None:
    found = top_k_with_tails(torch.randn(4, 9), top_k=9, temperatures=(1.0, 2.0))
    assert (found.log_tails == -torch.inf).all()
    torch.testing.assert_close(found.values.logsumexp(dim=-1), torch.zeros(4), atol=1e-6, rtol=0)


def test_stored_form_has_whole_mass_however_values_are_rounded() -> None:
    logits = torch.randn(50, 1000, generator=torch.Generator().manual_seed(0)) * 8
    expected = logits.double().log_softmax(dim=-1)
    found = top_k_with_tails(logits, top_k=16, temperatures=(1.0,))
    outcomes = torch.cat([found.values.half().double(), found.log_tails[0][:, None].double()], dim=-1)
    stored = outcomes.softmax(dim=-1)
    rest = torch.ones_like(expected, dtype=torch.bool).scatter_(-1, found.ids, False)
    truth = torch.cat([expected.gather(-1, found.ids).exp(), (expected.exp() * rest).sum(-1, keepdim=True)], dim=-1)
    kl = (truth * (truth.log() - stored.log())).sum(dim=-1)
    assert float(kl.abs().max()) < 1e-5


def test_masked_ids_never_count() -> None:
    logits = torch.randn(3, 10)
    logits[:, 6:] = -torch.inf
    found = top_k_with_tails(logits.clone(), top_k=4, temperatures=(1.0, 2.0))
    expected = top_k_with_tails(logits[:, :6].clone(), top_k=4, temperatures=(1.0, 2.0))
    torch.testing.assert_close(found.log_tails, expected.log_tails)
    torch.testing.assert_close(found.values, expected.values)


def test_nothing_follows_gives_nan() -> None:
    found = chosen_logits(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([1, -1]))
    assert found[0] == 2.0
    assert found[1].isnan()


@pytest.mark.parametrize(("top_k", "temperatures"), [(0, (1.0,)), (11, (1.0,)), (3, (0.0,))])
def test_impossible_requests_are_refused(top_k: int, temperatures: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="must be"):
        top_k_with_tails(torch.randn(2, 10), top_k=top_k, temperatures=temperatures)
