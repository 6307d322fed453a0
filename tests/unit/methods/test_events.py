"""Distributions compared over events: value and gradient in float64, and what no event may do."""

import pytest
import torch
from torch import Tensor

from sra_data.models.output_head import OutputHead
from sra_train.methods.terms.divergence import Divergence
from sra_train.methods.terms.events import Events, EventTerm, event_log_probs
from sra_train.methods.terms.head_loss import ChunkedHead, RowGroup, head_losses

ROWS, WIDTH = 7, 5


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def value(events: Events, student: Tensor, teacher: Tensor, kind: Divergence, temperature: float) -> Tensor:
    """The divergence of each row by slow loops and autograd; logits [R, S] and [R, T]."""
    p, q = (torch.softmax(logits / temperature, 1) for logits in (teacher, student))
    values = []
    for row in range(len(p)):
        sums = []
        for event in range(events.count):
            mass = [p[row, events.teacher == event].sum(), q[row, events.student == event].sum()]
            sums.append(mass)
        total = p.new_zeros(())
        for a, b in sums:
            m = (a + b) / 2
            if kind == "forward" and a > 0:
                total = total + a * (a.log() - b.log())
            if kind == "reverse" and b > 0 and a > 0:
                total = total + b * (b.log() - a.log())
            if kind == "js":
                total = (
                    total
                    + (a * (a.log() - m.log()) / 2 if a > 0 else 0)
                    + (b * (b.log() - m.log()) / 2 if b > 0 else 0)
                )
        values.append(total)
    return torch.stack(values)


def term_value(events: Events, kind: Divergence, temperature: float, chunk_bytes: int | None = None):
    """(values, student states, student weight, total) through `head_losses`."""
    weight, states = (
        draw(len(events.student), WIDTH, seed=1).requires_grad_(),
        draw(ROWS, WIDTH, seed=2).requires_grad_(),
    )
    teacher_weight, teacher_states = draw(len(events.teacher), WIDTH, seed=3), draw(ROWS, WIDTH, seed=4)
    coefficients = draw(ROWS, seed=6).abs()
    head = ChunkedHead(teacher_weight, None, scale=1.0, softcap=None)
    term = EventTerm(teacher_states, head, coefficients, events=events, temperature=temperature, kind=kind)
    total, [[values]] = head_losses(OutputHead(weight), [RowGroup(states, [term])], chunk_bytes=chunk_bytes)
    expected = value(events, states @ weight.T, teacher_states @ teacher_weight.T, kind, temperature)
    return total, values, (expected * coefficients).sum(), expected, (states, weight)


IMAGES = torch.tensor([3, 3, 0, -1, 5, 99, 2, 0, -1])  # of nine teacher ids, into a student of seven


@pytest.mark.parametrize("kind", ["forward", "reverse", "js"])
@pytest.mark.parametrize("chunk_bytes", [None, 8 * 7 * 2])
def test_value_and_gradient_are_those_of_slow_loops(kind, chunk_bytes):
    events = Events.of_images(IMAGES, student_vocabulary=7, teacher_vocabulary=11)
    total, values, expected_total, expected, leaves = term_value(events, kind, 1.7, chunk_bytes)
    torch.testing.assert_close(values, expected.detach(), rtol=1e-12, atol=1e-12)
    mine, theirs = torch.autograd.grad(total, leaves), torch.autograd.grad(expected_total, leaves)
    for got, wanted in zip(mine, theirs, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-12)


def test_images_are_their_own_events_and_all_else_is_residual():
    events = Events.of_images(IMAGES, student_vocabulary=7, teacher_vocabulary=11)
    assert events.count == 5  # images 0, 2, 3, 5 and the residual
    assert events.student.tolist() == [0, 4, 1, 2, 4, 3, 4]
    assert events.teacher.tolist() == [2, 2, 0, 4, 3, 4, 1, 0, 4, 4, 4]
    assert events.student_has_residual
    assert not Events.of_images(torch.arange(3), student_vocabulary=3, teacher_vocabulary=3).student_has_residual


def test_divergence_is_never_negative_and_zero_for_equal_distributions_over_events():
    events = Events.of_images(IMAGES, student_vocabulary=7, teacher_vocabulary=9)
    for kind in ("forward", "reverse", "js"):
        _, values, *_ = term_value(events, kind, 1.0)
        assert (values >= 0).all()
    # A teacher whose ids of one event share the student's probability in any way says the same.
    student = draw(ROWS, 7, seed=8)
    shares = torch.softmax(draw(ROWS, 9, seed=9), 1)
    q = event_log_probs(torch.log_softmax(student, 1), events.student, events.count)
    within = torch.zeros(ROWS, events.count, dtype=torch.float64).scatter_add_(
        1, events.teacher.expand(ROWS, -1), shares
    )
    teacher = (
        q.gather(1, events.teacher.expand(ROWS, -1))
        + shares.log()
        - within.log().gather(1, events.teacher.expand(ROWS, -1))
    )
    torch.testing.assert_close(
        value(events, student, teacher, "forward", 1.0), torch.zeros(ROWS, dtype=torch.float64), atol=1e-12, rtol=0
    )


def test_events_of_next_bytes_see_only_the_distribution_over_bytes():
    # Student ids begin with bytes a a b, teacher ids with a b b; two models of one distribution over the next byte.
    events = Events(torch.tensor([0, 0, 1]), torch.tensor([0, 1, 1]), 3)
    student = torch.tensor([[0.2, 0.3, 0.5]], dtype=torch.float64).log()
    teacher = torch.tensor([[0.5, 0.1, 0.4]], dtype=torch.float64).log()
    assert value(events, student, teacher, "forward", 1.0).abs() < 1e-12


def test_an_event_nobody_can_be_counts_nothing():
    log_probs = torch.log_softmax(draw(2, 3, seed=1), 1)
    found = event_log_probs(log_probs, torch.tensor([0, 0, 2]), 4)
    assert (found[:, [1, 3]] < -1e29).all()
    torch.testing.assert_close(found[:, [0, 2]].exp().sum(1), torch.ones(2, dtype=torch.float64))
