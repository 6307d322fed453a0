"""Pooling of tokens into spans: laws, and the slow loop."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sra_data.spans.pooling import center_of_mass, salience, span_last, span_mass, span_mean
from tests.reference import losses as slow

NAN = float("nan")


def random_spans(seed: int, *, batch: int = 3, tokens: int = 12, spans: int = 4, dtype: torch.dtype = torch.float64):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(batch, tokens, 5, generator=generator, dtype=torch.float64).to(dtype)
    ids = torch.randint(-1, spans, (batch, tokens), generator=generator).sort(1).values
    weights = torch.rand(batch, tokens, generator=generator, dtype=torch.float64).to(dtype)
    return hidden, ids, weights


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_centers_and_their_gradient_equal_the_slow_loop(seed: int) -> None:
    hidden, ids, weights = random_spans(seed)
    hidden.requires_grad_(True)
    fast = center_of_mass(hidden, ids, weights, 4)
    expected = torch.zeros_like(fast.states)
    mass = torch.zeros(3, 4, dtype=torch.float64)
    for row in range(3):
        for span in range(4):
            tokens = (ids[row] == span).nonzero()[:, 0].tolist()
            if tokens:
                expected[row, span] = slow.pooled(hidden[row], weights[row], tokens, "attention")
                mass[row, span] = weights[row][tokens].sum()
    torch.testing.assert_close(fast.states, expected)
    torch.testing.assert_close(fast.mass, mass)
    torch.testing.assert_close(span_mass(ids, weights, 4), mass)
    probe = torch.randn(fast.states.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    (actual,) = torch.autograd.grad((fast.states * probe).sum(), [hidden], retain_graph=True)
    (wanted,) = torch.autograd.grad((expected * probe).sum(), [hidden])
    torch.testing.assert_close(actual, wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_one_token_span_gives_the_state_exactly(dtype: torch.dtype) -> None:
    hidden, _, weights = random_spans(3, dtype=dtype)
    ids = torch.arange(12).expand(3, 12)
    found = center_of_mass(hidden, ids, weights.float() * 0.37, 12)
    assert found.states.dtype == torch.float32
    assert torch.equal(found.states, hidden.float())


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), factor=st.floats(1e-20, 1e20))
def test_a_constant_factor_on_the_weights_changes_nothing(seed: int, factor: float) -> None:
    hidden, ids, weights = random_spans(seed)
    before, after = (center_of_mass(hidden, ids, one, 4) for one in (weights, factor * weights))
    torch.testing.assert_close(after.states, before.states)
    mask = torch.ones(3, 4, dtype=torch.bool)
    torch.testing.assert_close(salience(after.mass, mask, 1.0), salience(before.mass, mask, 1.0))


def test_vanished_mass_is_the_plain_mean_and_is_counted() -> None:
    hidden = torch.arange(12.0).view(1, 6, 2)
    ids = torch.tensor([[0, 0, 1, 1, 2, -1]])
    weights = torch.tensor([[0.0, 0.0, 1e-42, 1e-42, 1e-30, 1.0]])
    found = center_of_mass(hidden, ids, weights, 4)
    assert int(found.num_fallbacks) == 2
    torch.testing.assert_close(
        found.states[0, :3], torch.stack([hidden[0, :2].mean(0), hidden[0, 2:4].mean(0), hidden[0, 4]])
    )
    assert torch.equal(found.states[0, 3], torch.zeros(2))


def test_a_small_mass_does_not_shrink_the_center() -> None:
    hidden = torch.ones(1, 3, 2)
    weights = torch.tensor([[1e-30, 3e-30, 1.0]])
    found = center_of_mass(hidden, torch.tensor([[0, 0, 1]]), weights, 2)
    torch.testing.assert_close(found.states, torch.ones(1, 2, 2))
    assert int(found.num_fallbacks) == 0


def test_no_gradient_reaches_the_weights() -> None:
    hidden, ids, weights = random_spans(1)
    weights.requires_grad_(True)
    found = center_of_mass(hidden.requires_grad_(True), ids, weights, 4)
    assert torch.autograd.grad(found.states.sum(), [weights], allow_unused=True) == (None,)
    assert not found.mass.requires_grad


def test_half_precision_states_are_summed_in_float32() -> None:
    # 1 + 1/1024 x 512 tokens: a bfloat16 running sum would stay at 256.
    hidden = torch.ones(1, 4096, 1, dtype=torch.bfloat16)
    found = span_mean(hidden, torch.zeros(1, 4096, dtype=torch.long), 1)
    assert float(found) == 1.0


def test_last_is_the_last_token_and_zero_where_padded() -> None:
    hidden = torch.arange(8.0).view(1, 4, 2)
    mask = torch.tensor([[True, True, False]])
    found = span_last(hidden, torch.tensor([[1, 3, 0]]), mask)
    assert torch.equal(found[0], torch.tensor([[2.0, 3.0], [6.0, 7.0], [0.0, 0.0]]))


def test_salience_is_the_mass_to_the_power_over_the_sum() -> None:
    mass = torch.tensor([[0.1, 0.3, 9.0], [0.0, 0.0, 1.0], [0.5, NAN, NAN]])
    mask = torch.tensor([[True, True, False], [True, True, False], [True, False, False]])
    found = salience(mass, mask, 2.0)
    torch.testing.assert_close(found, torch.tensor([[0.1, 0.9, 0.0], [0.5, 0.5, 0.0], [1.0, 0.0, 0.0]]))
    uniform = salience(mass, mask, 0.0)
    torch.testing.assert_close(uniform, torch.tensor([[0.5, 0.5, 0.0], [0.5, 0.5, 0.0], [1.0, 0.0, 0.0]]))
    assert torch.equal(salience(mass[:, :0], mask[:, :0], 1.0), torch.zeros(3, 0))
    assert torch.equal(salience(mass, torch.zeros_like(mask), 1.0), torch.zeros(3, 3))


def test_salience_of_a_steep_power_does_not_underflow() -> None:
    mass = torch.tensor([[1e-20, 2e-20]])
    found = salience(mass, torch.ones(1, 2, dtype=torch.bool), 4.0)
    torch.testing.assert_close(found, torch.tensor([[1 / 17, 16 / 17]]))


def test_wrong_arguments_are_refused() -> None:
    hidden, ids, weights = random_spans(0)
    with pytest.raises(ValueError, match="span id 3 is not below num_spans 3"):
        center_of_mass(hidden, ids.clamp_min(3), weights, 3)
    with pytest.raises(ValueError, match="is negative"):
        center_of_mass(hidden, ids, weights - 2, 4)
    with pytest.raises(ValueError, match="power must not be negative"):
        salience(weights, ids >= 0, -1.0)
