"""ALM: chunk probabilities, against slow float64 loops, by hand, and at the ends of what floats hold."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from sra_data.errors import ConfigError, ShardError
from sra_train.contract import CacheNeeds, KnowledgeNeeds, MethodSetting, ModelShape, StudentOutput
from sra_train.methods.alm import ALM, ALMOptions
from sra_train.methods.terms.chunk_likelihood import chunk_cross_entropy, log1mexp
from tests.reference import chunks, losses
from tests.unit.methods import taught, worlds

CASES = {
    "published defaults": {},
    "temperature 1": {"temperature": 1.0},
    "sum": {"kd_reduction": "sum", "alpha": 0.3, "temperature": 7.0},
    "token": {"kd_reduction": "token"},
    "no cross entropy": {"alpha": 0.0},
}


@pytest.mark.parametrize("form", taught.HEADS, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_values_and_gradients_equal_the_slow_reference(case: str, form: str) -> None:
    options = ALMOptions(**CASES[case])

    def expected(example, head, _):
        found = []
        states = example.student_hidden[worlds.STUDENT_LAYERS]
        for span, teacher_span in zip(example.student_spans, example.teacher_spans, strict=True):
            student = [
                losses.log_softmax(losses.head_logits(states[token - 1], head.for_reference()))[example.ids[token]]
                for token in span
            ]
            teacher = [example.next_log_prob[row - 1] for row in teacher_span]
            found.append(chunks.chunk_cross_entropy(teacher, student, options.temperature))
        value = taught.reduced(found, options.kd_reduction)
        return {"alm": value, "total": value}

    taught.compare_with_reference(taught.make("alm", **CASES[case]), form, expected)


def loss(p: list[float], q: list[float], temperature: float = 100.0, dtype=torch.float64):
    student = torch.tensor(q, dtype=dtype).requires_grad_()
    teacher = torch.tensor(p, dtype=dtype)
    values = chunk_cross_entropy(teacher_log_probs=teacher, student_log_probs=student, temperature=temperature)
    (gradient,) = torch.autograd.grad(values.sum(), student)
    return values.detach(), gradient


def test_two_chunks_by_hand() -> None:
    """T = 2. p = 0.25 and q = 0.01: a = 0.5, b = 0.1. p = 0.04 and q = 0.64: a = 0.2, b = 0.8."""
    values, gradient = loss([math.log(0.25), math.log(0.04)], [math.log(0.01), math.log(0.64)], temperature=2.0)
    # -0.5 log 0.1 - 0.5 log 0.9 and -0.2 log 0.8 - 0.8 log 0.2
    torch.testing.assert_close(values, torch.tensor([1.2039728, 1.3321790], dtype=torch.float64), rtol=0, atol=1e-7)
    # d / d log q = (b - a) / (1 - b) / T: -0.4 / 0.9 / 2 and 0.6 / 0.2 / 2
    torch.testing.assert_close(gradient, torch.tensor([-0.2222222, 1.5], dtype=torch.float64), rtol=0, atol=1e-7)


def test_the_loss_is_least_and_flat_where_both_are_equally_sure() -> None:
    for log_prob in (-1e-3, -0.5, -3.0, -40.0, -3000.0):
        at, gradient = loss([log_prob], [log_prob])
        below, _ = loss([log_prob], [log_prob * 1.01])
        above, _ = loss([log_prob], [log_prob * 0.99])
        assert abs(float(gradient)) < 1e-9
        assert float(at) < min(float(below), float(above))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("x", [-1e-30, -1e-12, -1e-4, -0.6931, -0.6932, -1.0, -20.0, -80.0])
def test_what_is_left_over_is_exact_near_certainty_and_far_from_it(x: float, dtype) -> None:
    given = torch.tensor([x], dtype=dtype, requires_grad=True)
    exact = float(given.detach())
    wanted = math.log(-math.expm1(exact)) if exact > -0.1 else math.log1p(-math.exp(exact))
    slope = -1 / math.expm1(-exact)
    value = log1mexp(given)
    (gradient,) = torch.autograd.grad(value.sum(), given)
    tolerance = 1e-6 if dtype == torch.float32 else 1e-13
    assert float(value.detach()) == pytest.approx(wanted, rel=tolerance, abs=0)
    assert float(gradient) == pytest.approx(slope, rel=tolerance, abs=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_certain_and_impossible_chunks_give_finite_numbers(dtype) -> None:
    values, gradient = loss([0.0, -1.0, 0.0, -math.inf, -1e4], [0.0, 0.0, -1e4, -1.0, 1e-7], dtype=dtype)
    assert torch.isfinite(values).all()
    assert torch.isfinite(gradient).all()
    assert float(gradient[0]) == float(gradient[1]) == 0  # what is left of a certain student's slope is rounding


def test_a_chunk_at_temperature_100_in_float32_agrees_with_float64() -> None:
    p, q = [-0.001, -0.7, -12.0, -90.0], [-0.1, -0.002, -30.0, -11.0]
    for one, other in zip(loss(p, q, dtype=torch.float32), loss(p, q), strict=True):
        torch.testing.assert_close(one.double(), other, rtol=2e-5, atol=1e-7)


def test_padding_of_the_pages_is_not_read_not_even_nan() -> None:
    examples, head = taught.build(), taught.student_head()
    head.weight.requires_grad_()
    method = taught.make("alm")
    found = taught.run(method, examples, head, extra_positions=2, garbage=float("nan"))
    expected = taught.run(method, examples, head)
    torch.testing.assert_close(found.total, expected.total)


def test_chunks_are_counted() -> None:
    found = taught.run(taught.make("alm"), taught.build(), taught.student_head())
    assert int(found.counts["chunks"]) == 9
    assert int(found.counts["examples_without_chunk"]) == 1
    assert int(found.counts["rows_without_teacher"]) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": 1.0}, r"alpha=1.0: must lie in \[0, 1\); with 1 nothing is distilled: method=sft"),
        ({"temperature": -1.0}, "temperature=-1.0: must be a positive finite number"),
        ({"temperature": float("nan")}, "temperature=nan: must be a positive"),
    ],
)
def test_what_means_nothing_is_refused_in_one_line(options, message) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        ALMOptions(**options)
    assert "\n" not in str(caught.value)


def test_pages_without_the_log_probabilities_and_shards_without_pages_are_refused() -> None:
    with pytest.raises(ConfigError, match="method=alm: the shards hold no teacher's pages; run `sra-data cache-teach"):
        ALM(ALMOptions(), MethodSetting(ModelShape(2, 4, 13)))
    batch, hidden, attention = worlds.make_batch(taught.build(), chunks=True)
    bare = replace(batch, teachers=(replace(batch.teachers[0], next_log_prob=None),))
    output = StudentOutput(hidden, attention, taught.student_head().live())
    with pytest.raises(ShardError, match="hold no next_log_prob, which the method reads; run `sra-data cache-teacher"):
        taught.make("alm")(output, bare, worlds.totals_of(taught.build()))


def test_it_reads_the_probabilities_of_next_tokens_and_nothing_else() -> None:
    (needs,) = taught.make("alm").needs
    assert needs == CacheNeeds(next_log_prob=True, chunks=True, tokens=needs.tokens)
    assert needs.tokens is not None
    assert ALM.knowledge_needs(ALMOptions()) == KnowledgeNeeds()
    assert list(taught.make("alm").parameters()) == []
