"""MultiLevelOT: scaled logits by rank and Sinkhorn's distance, against slow float64 loops and by hand."""

from __future__ import annotations

import math

import pytest
import torch

from sra_data.errors import ConfigError
from sra_data.models.output_head import OutputHead
from sra_train.contract import MethodSetting, ModelShape
from sra_train.methods.multilevel_ot import MultiLevelOT, MultiLevelOTOptions
from sra_train.methods.terms.scaled_logits import scaled_log_probabilities, scaled_logits, sequence_top_k
from sra_train.methods.terms.sinkhorn import sinkhorn_distance
from tests.reference import losses as slow
from tests.reference import ranks
from tests.unit.methods import taught, worlds

CASES = {
    "published defaults": {},
    "five ranks": {"top_k": 5, "sinkhorn_iterations": 3},
    "every row in its own order": {"top_k": 5, "ranking": "token", "lambda_ce": 0.7},
    "scaled logits": {"top_k": 5, "compared": "logits"},
    "every row's scaled logits": {"top_k": 5, "compared": "logits", "ranking": "token"},
    "cost between logits": {"top_k": 4, "compared": "logits", "sinkhorn_of": "compared", "epsilon": 5.0},
    "cost between probabilities": {"top_k": 4, "sinkhorn_of": "compared", "lambda_sinkhorn": 2.0},
    "sum": {"top_k": 6, "kd_reduction": "sum", "alpha": 0.3},
    "token": {"top_k": 6, "kd_reduction": "token"},
    "no cross entropy": {"top_k": 3, "alpha": 0.0, "lambda_ce": 0.0},
}
ROWS, WIDTH, VOCABULARY = 9, 6, 17


def expected_terms(options: MultiLevelOTOptions, example, head, teacher_head) -> dict[str, torch.Tensor]:
    beside = taught.rows_beside(example)
    k = min(options.top_k, worlds.STUDENT_VOCABULARY, worlds.TEACHER_VOCABULARY)
    ranked = ranks.sequence_ranks if options.ranking == "sequence" else ranks.token_ranks
    student = ranked([slow.head_logits(one, head.for_reference()) for one, _ in beside], k, compared=options.compared)
    theirs = [slow.head_logits(one, teacher_head.for_reference()) for _, one in beside]
    teacher = ranked(theirs, k, compared=options.compared)
    pairs = list(zip(student, teacher, strict=True))
    moved = student, teacher
    if options.sinkhorn_of == "softmax":
        moved = tuple([ranks.probabilities(row, 2.0) for row in side] for side in moved)
    costs = [[ranks.l1(x, y) for y in moved[1]] for x in moved[0]]
    mass = 1 if options.kd_reduction == "mean" else len(beside)
    found = {
        "l1": taught.reduced([ranks.l1(x, y) for x, y in pairs], options.kd_reduction),
        "soft_ce": taught.reduced([ranks.soft_cross_entropy(x, y) for x, y in pairs], options.kd_reduction),
        "sinkhorn": mass * ranks.transport(costs, options.epsilon, options.sinkhorn_iterations),
    }
    weights = {"l1": 1.0, "soft_ce": options.lambda_ce, "sinkhorn": options.lambda_sinkhorn}
    return found | {"total": sum(weights[name] * value for name, value in found.items())}


@pytest.mark.parametrize("form", taught.HEADS, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_values_and_gradients_equal_the_slow_reference(case: str, form: str) -> None:
    options = MultiLevelOTOptions(**CASES[case])
    teacher = worlds.teacher_setting(taught.teacher_head(**taught.HEADS[form]))
    taught.compare_with_reference(
        taught.make("multilevel-ot", [teacher], **CASES[case]),
        form,
        lambda example, head, teacher_head: expected_terms(options, example, head, teacher_head),
    )


# --------------------------------------------------------------------------- scaled logits


def make(softcap: float | None, scale: float, with_bias: bool) -> tuple[OutputHead, torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(5)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=random, dtype=torch.float64)

    weight = draw(VOCABULARY, WIDTH).requires_grad_()
    bias = draw(VOCABULARY).requires_grad_() if with_bias else None
    states = (2 * draw(ROWS, WIDTH)).requires_grad_()
    ids = torch.stack([torch.randperm(VOCABULARY, generator=random)[:4] for _ in range(ROWS)])
    return OutputHead(weight, bias, scale=scale, softcap=softcap), states, ids


def whole(head: OutputHead, states: torch.Tensor) -> torch.Tensor:
    logits = head.logits(states)
    return logits / logits.std(1, correction=0, keepdim=True)


@pytest.mark.parametrize(("softcap", "scale", "with_bias"), [(None, 1.0, False), (None, 0.5, True), (3.0, 1.5, True)])
@pytest.mark.parametrize("rows_at_once", [1, 4, 100])
@pytest.mark.parametrize("softmax", [False, True])
def test_values_and_gradients_are_those_of_the_whole_product(softcap, scale, with_bias, rows_at_once, softmax):
    head, states, ids = make(softcap, scale, with_bias)
    leaves = [one for one in (head.weight, head.bias, states) if one is not None]
    chosen = scaled_log_probabilities if softmax else scaled_logits
    found = chosen(head, states, ids, chunk_bytes=8 * VOCABULARY * rows_at_once)
    logits = whole(head, states)
    wanted = (torch.log_softmax(logits, 1) if softmax else logits).gather(1, ids)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    outer = torch.randn(found.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    mine, theirs = (torch.autograd.grad((one * outer).sum(), leaves) for one in (found, wanted))
    for own, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-10, atol=1e-11)


def test_the_deviation_of_logits_far_from_zero_keeps_its_digits_in_float32() -> None:
    """GPT-2's logits lie around -100 with a deviation of 2: E[z^2] less the squared mean would be mostly noise."""
    head, states, ids = make(None, 1.0, True)
    exact = OutputHead(head.weight.detach() * 0.3, head.bias.detach() - 1000)
    small = OutputHead(exact.weight.float(), exact.bias.float())
    found = scaled_logits(small, states.detach().float(), ids)
    torch.testing.assert_close(found.double(), whole(exact, states.detach()).gather(1, ids), rtol=2e-4, atol=0)


def test_equal_logits_are_left_as_they_are() -> None:
    head = OutputHead(torch.zeros(5, 3, dtype=torch.float64, requires_grad=True), torch.full((5,), 2.0).double())
    states = torch.ones(2, 3, dtype=torch.float64, requires_grad=True)
    ids = torch.tensor([[0, 1], [2, 3]])
    found = scaled_logits(head, states, ids)
    assert found.tolist() == [[2.0, 2.0], [2.0, 2.0]]
    assert torch.isfinite(torch.autograd.grad(found.sum(), head.weight)[0]).all()
    found = scaled_log_probabilities(head, states, ids).exp()
    torch.testing.assert_close(found, torch.full((2, 2), 0.2, dtype=torch.float64))
    assert torch.isfinite(torch.autograd.grad(found.sum(), head.weight)[0]).all()


@pytest.mark.parametrize("rows_at_once", [1, 4, 100])
def test_ranks_of_a_sequence_are_those_of_the_sums_over_its_rows(rows_at_once) -> None:
    head, states, _ = make(3.0, 1.5, True)
    example = torch.tensor([0, 0, 0, 2, 2, 2, 2, 2, 3])
    found = sequence_top_k(head, states, example, count=4, k=5, chunk_bytes=8 * VOCABULARY * rows_at_once)
    scaled = whole(head, states)
    for place in (0, 2, 3):
        assert found[place].tolist() == scaled[example == place].sum(0).topk(5).indices.tolist()


# --------------------------------------------------------------------------- Sinkhorn


def distance(student, teacher, **options: float) -> torch.Tensor:
    sides = [torch.tensor([rows], dtype=torch.float64) for rows in (student, teacher)]
    return sinkhorn_distance(*sides, torch.tensor([len(student)]), **{"epsilon": 0.1, "iterations": 20, **options})


def test_two_rows_by_hand() -> None:
    """Rows 0 and 1 against 1 and 0 cost 1 0 / 0 1. With e = exp(-1 / epsilon) and epsilon = 1 / log 3, e = 1/3.

    The kernel (1/3 1 / 1 1/3) scales to (1/8 3/8 / 3/8 1/8) at once; moving the diagonal costs 1/8 + 1/8.
    """
    found = distance([[0.0], [1.0]], [[1.0], [0.0]], epsilon=1 / math.log(3), iterations=1)
    assert float(found) == pytest.approx(0.25)


def test_a_hard_plan_is_the_cheapest_assignment_and_a_soft_one_the_mean_cost() -> None:
    student, teacher = [[0.0], [10.0], [25.0]], [[26.0], [1.0], [12.0]]
    assert float(distance(student, teacher, epsilon=0.01)) == pytest.approx((1 + 2 + 1) / 3)  # exp(-2600) is no float
    costs = [abs(x[0] - y[0]) for x in student for y in teacher]
    assert float(distance(student, teacher, epsilon=1e6)) == pytest.approx(sum(costs) / 9, rel=1e-4)


def test_equal_sequences_in_any_order_are_near_and_one_row_is_its_cost() -> None:
    assert float(distance([[0.0, 3.0], [5.0, 1.0]], [[5.0, 1.0], [0.0, 3.0]])) == pytest.approx(0, abs=1e-12)
    assert float(distance([[0.0, 3.0]], [[1.0, 1.0]])) == pytest.approx(3.0)


def test_the_gradient_of_the_distance_by_finite_differences() -> None:
    random = torch.Generator().manual_seed(3)
    student = torch.randn(3, 4, 2, generator=random, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(3, 4, 2, generator=random, dtype=torch.float64)
    lengths = torch.tensor([4, 0, 2])

    def said(student: torch.Tensor) -> torch.Tensor:
        return sinkhorn_distance(student, teacher, lengths, epsilon=0.7, iterations=4)

    assert torch.autograd.gradcheck(said, (student,))
    (gradient,) = torch.autograd.grad(said(student).sum(), student)
    assert float(gradient[1].abs().max()) == float(gradient[2, 2:].abs().max()) == 0
    assert float(said(student.detach())[1]) == 0


def test_what_stands_in_padded_rows_reaches_neither_value_nor_gradient() -> None:
    student = torch.tensor([[[0.0], [2.0], [float("nan")]]], dtype=torch.float64, requires_grad=True)
    teacher = torch.tensor([[[1.0], [5.0], [float("inf")]]], dtype=torch.float64)
    found = sinkhorn_distance(student, teacher, torch.tensor([2]), epsilon=0.1, iterations=5)
    torch.testing.assert_close(found, distance([[0.0], [2.0]], [[1.0], [5.0]], iterations=5))
    assert torch.autograd.grad(found.sum(), student)[0][0, 2].tolist() == [0.0]


# --------------------------------------------------------------------------- the method


def test_identical_sides_leave_the_entropy_of_the_soft_targets() -> None:
    """L1 is 0, Sinkhorn near it, and the soft cross entropy the teacher's own entropy, at which its gradient is 0."""
    teacher = worlds.make_head(12, worlds.STUDENT_VOCABULARY, worlds.STUDENT_WIDTH)
    examples = [worlds.make_example(s, sizes=[(n, n) for n in (2, 1, 3)], prompt=1) for s in range(2)]
    for one in examples:
        one.teacher_hidden = {
            layer: one.student_hidden[min(layer, 3)][:-1] for layer in range(1, worlds.TEACHER_LAYERS + 1)
        }
    same = worlds.Tokenizer(size=worlds.STUDENT_VOCABULARY, shared=(), doubles={}, end=(12, 12))
    setting = worlds.teacher_setting(teacher, tokenizer=same)
    states = [one.student_hidden[worlds.STUDENT_LAYERS].requires_grad_() for one in examples]
    method = taught.make("multilevel-ot", [setting], alpha=0.0, lambda_sinkhorn=0.0, top_k=8)
    found = taught.run(method, examples, worlds.make_head(12, worlds.STUDENT_VOCABULARY, worlds.STUDENT_WIDTH))
    assert float(found.per_example["l1"].abs().max()) < 1e-12
    assert float(found.per_example["soft_ce"].min()) > 0
    for gradient in torch.autograd.grad(found.total, states):
        assert float(gradient.abs().max()) < 1e-12


def test_the_gradient_reaches_no_teacher_and_nothing_is_saved() -> None:
    teacher, head = taught.teacher_head(), taught.student_head()
    teacher.weight.requires_grad_()
    head.weight.requires_grad_()
    method = taught.make("multilevel-ot", [worlds.teacher_setting(teacher)])
    taught.run(method, taught.build(), head).total.backward()
    assert teacher.weight.grad is None
    assert float(head.weight.grad.abs().max()) > 0
    assert list(method.state_dict()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": 1.0}, r"alpha=1.0: must lie in \[0, 1\); with 1 nothing is distilled: method=sft"),
        ({"top_k": 0}, "top_k=0: must be at least 1"),
        ({"sinkhorn_iterations": 0}, "sinkhorn_iterations=0: must be at least 1"),
        ({"lambda_ce": -0.1}, "lambda_ce=-0.1: must be a finite number that is not negative"),
        ({"lambda_sinkhorn": float("inf")}, "lambda_sinkhorn=inf: must be a finite"),
        ({"epsilon": 0.0}, "epsilon=0.0: must be a positive finite number"),
    ],
)
def test_what_means_nothing_is_refused_in_one_line(options, message) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        MultiLevelOTOptions(**options)
    assert "\n" not in str(caught.value)


def test_what_is_not_known_of_the_teacher_is_refused() -> None:
    shape = ModelShape(2, 4, 13)
    with pytest.raises(ConfigError, match="method=multilevel-ot: the shards hold no teacher's pages"):
        MultiLevelOT(MultiLevelOTOptions(), MethodSetting(shape))
    with pytest.raises(ConfigError, match="method=multilevel-ot: the shards hold no teacher's head"):
        MultiLevelOT(MultiLevelOTOptions(), MethodSetting(shape, (worlds.teacher_setting(None),)))


def test_it_asks_for_the_last_layer_the_head_and_the_rows_of_responses() -> None:
    (needs,) = taught.make("multilevel-ot").needs
    assert (needs.hidden, needs.attention, needs.top_k, needs.aligned) == ((4,), (), False, "response")
    assert needs.tokens is not None
    assert MultiLevelOT.knowledge_needs(MultiLevelOTOptions()).head
