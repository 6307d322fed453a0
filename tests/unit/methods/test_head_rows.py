"""Chosen logits and log-sums of a head, row by row: values and gradients are those of the whole product in float64."""

import pytest
import torch
from torch import Tensor

from sra_data.models.output_head import OutputHead
from sra_train.methods.terms.head_rows import head_rows, sum_rows, token_log_probs, top_k_ids

ROWS, WIDTH, VOCABULARY, CHOSEN = 11, 6, 17, 4


def make(softcap: float | None, scale: float, with_bias: bool, dtype=torch.float64):
    random = torch.Generator().manual_seed(5)
    draw = lambda *shape: torch.randn(shape, generator=random, dtype=torch.float64).to(dtype)  # noqa: E731
    weight = draw(VOCABULARY, WIDTH).requires_grad_()
    bias = draw(VOCABULARY).requires_grad_() if with_bias else None
    states = (2 * draw(ROWS, WIDTH)).detach().requires_grad_()
    ids = torch.stack([torch.randperm(VOCABULARY, generator=random)[:CHOSEN] for _ in range(ROWS)])
    return OutputHead(weight, bias, scale=scale, softcap=softcap), states, ids


def whole(head: OutputHead, states: Tensor) -> Tensor:
    """All logits, by autograd."""
    logits = states @ head.weight.T + (0 if head.bias is None else head.bias)
    logits = logits * head.scale
    return logits if head.softcap is None else head.softcap * torch.tanh(logits / head.softcap)


def leaves(head: OutputHead, states: Tensor) -> list[Tensor]:
    return [one for one in (head.weight, head.bias, states) if one is not None]


@pytest.mark.parametrize(("softcap", "scale", "with_bias"), [(None, 1.0, False), (None, 0.5, True), (3.0, 1.5, True)])
@pytest.mark.parametrize("rows_at_once", [1, 4, 100])
def test_values_and_gradients_are_those_of_the_whole_product(softcap, scale, with_bias, rows_at_once):
    head, states, ids = make(softcap, scale, with_bias)
    temperatures = (1.0, 2.5)
    found = head_rows(head, states, ids, temperatures=temperatures, chunk_bytes=8 * VOCABULARY * rows_at_once)
    logits = whole(head, states)
    mask = torch.zeros_like(logits, dtype=torch.bool).scatter(1, ids, True)
    expected = [
        logits.gather(1, ids),
        torch.stack([torch.logsumexp(logits / t, 1) for t in temperatures], 1),
        torch.stack([torch.logsumexp((logits / t).masked_fill(mask, -torch.inf), 1) for t in temperatures], 1),
    ]
    random = torch.Generator().manual_seed(9)
    outer = [torch.randn(one.shape, generator=random, dtype=torch.float64) for one in expected]
    for got, wanted in zip((found.chosen, found.log_sums, found.log_rests), expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)
    values = (found.chosen, found.log_sums, found.log_rests)
    mine = torch.autograd.grad(sum((a * b).sum() for a, b in zip(values, outer, strict=True)), leaves(head, states))
    theirs = torch.autograd.grad(sum((a * b).sum() for a, b in zip(expected, outer, strict=True)), leaves(head, states))
    for got, wanted in zip(mine, theirs, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-11)


def test_gradients_by_finite_differences():
    head, states, ids = make(3.0, 1.5, True)

    def said(weight: Tensor, bias: Tensor, states: Tensor) -> tuple[Tensor, ...]:
        rows = head_rows(OutputHead(weight, bias, scale=1.5, softcap=3.0), states, ids, temperatures=(2.0,))
        return rows.chosen, rows.log_sums, rows.log_rests

    assert torch.autograd.gradcheck(said, (head.weight, head.bias, states))


def test_a_second_use_of_the_values_adds_its_gradient():
    head, states, ids = make(None, 1.0, False)
    rows = head_rows(head, states, ids)
    (rows.chosen.sum() + rows.chosen.square().sum()).backward()
    got = states.grad.clone()
    states.grad = None
    chosen = whole(head, states).gather(1, ids)
    (chosen.sum() + chosen.square().sum()).backward()
    torch.testing.assert_close(got, states.grad)


def test_where_all_ids_are_chosen_nothing_is_left_and_nothing_is_nan():
    head, states, _ = make(None, 1.0, False)
    ids = torch.arange(VOCABULARY).expand(ROWS, -1)
    rows = head_rows(head, states, ids)
    assert torch.isneginf(rows.log_rests).all()
    (gradient,) = torch.autograd.grad(rows.log_sums.sum() + rows.chosen.sum(), states)
    assert torch.isfinite(gradient).all()


def test_no_rows_give_nothing():
    head, states, ids = make(None, 1.0, True)
    rows = head_rows(head, states[:0], ids[:0], temperatures=(1.0, 2.0))
    assert rows.chosen.shape == (0, CHOSEN)
    assert rows.log_sums.shape == rows.log_rests.shape == (0, 2)
    assert top_k_ids(head, states[:0], 3).shape == (0, 3)


def test_token_log_probabilities_are_a_log_softmax():
    head, states, ids = make(3.0, 1.5, True)
    expected = torch.log_softmax(whole(head, states) / 2, 1)
    torch.testing.assert_close(token_log_probs(head, states, ids, temperature=2.0), expected.gather(1, ids))
    torch.testing.assert_close(token_log_probs(head, states, ids[:, 0], temperature=2.0), expected.gather(1, ids)[:, 0])


@pytest.mark.parametrize("rows_at_once", [2, 100])
def test_top_k_ids_are_the_largest_of_each_row(rows_at_once):
    head, states, _ = make(None, 2.0, True)
    found = top_k_ids(head, states, 5, chunk_bytes=8 * VOCABULARY * rows_at_once)
    assert found.tolist() == whole(head, states).topk(5, dim=1).indices.tolist()


def test_sums_over_rows_carry_the_gradient():
    values = torch.arange(6.0).reshape(3, 2).requires_grad_()
    sums = sum_rows(values, torch.tensor([1, 0, 1]), 3)
    assert sums.tolist() == [[2.0, 3.0], [4.0, 6.0], [0.0, 0.0]]
    (sums * torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])).sum().backward()
    assert values.grad.tolist() == [[3.0, 4.0], [1.0, 2.0], [3.0, 4.0]]


def test_half_precision_states_give_float32_values_near_the_exact_ones():
    head, states, ids = make(None, 1.0, True)
    small = OutputHead(head.weight.detach().bfloat16(), head.bias.detach().bfloat16(), scale=1.0, softcap=None)
    rows = head_rows(small, states.detach().bfloat16(), ids)
    assert rows.chosen.dtype == rows.log_sums.dtype == torch.float32
    exact = whole(
        OutputHead(small.weight.double(), small.bias.double(), scale=1.0, softcap=None), states.bfloat16().double()
    )
    torch.testing.assert_close(rows.chosen.double(), exact.gather(1, ids), rtol=0.02, atol=0.05)
