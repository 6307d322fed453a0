"""The chunked head: chunks, autocast, memory, and what its terms do at the edges."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from sra_data.errors import ConfigError, ShardError
from sra_data.models.output_head import OutputHead
from sra_train.contract import MethodSetting, ModelShape, StudentOutput, TeacherKnowledge, TeacherSetting
from sra_train.methods.sra import SRA, SRAOptions
from sra_train.methods.terms import head_loss
from sra_train.methods.terms.cross_entropy import CrossEntropyTerm
from sra_train.methods.terms.distributions import TopKTerm, top_k_outcomes
from sra_train.methods.terms.divergence import divergence_of_logits
from sra_train.methods.terms.head_loss import RowGroup, head_losses
from tests.unit.methods import worlds


def problem(rows: int = 23, *, dtype: torch.dtype = torch.float64, vocabulary: int = 31, width: int = 5):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(rows, width, generator=generator, dtype=torch.float64).to(dtype).requires_grad_(True)
    weight = torch.randn(vocabulary, width, generator=generator, dtype=torch.float64).to(dtype).requires_grad_(True)
    bias = torch.randn(vocabulary, generator=generator, dtype=torch.float64).to(dtype).requires_grad_(True)
    targets = torch.randint(0, vocabulary, (rows,), generator=generator)
    coefficients = torch.rand(rows, generator=generator, dtype=torch.float64)
    return hidden, weight, bias, targets, coefficients


def cross_entropy_by_torch(hidden, head: OutputHead, targets, coefficients):
    losses = torch.nn.functional.cross_entropy(head.logits(hidden), targets, reduction="none")
    return (losses * coefficients).sum(), losses


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("chunk_bytes", [1, 1000, 10**9])
def test_chunks_change_nothing(chunk_bytes: int, softcap: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(head_loss.BLOCK_BYTES, "cpu", 600)
    monkeypatch.setitem(head_loss.PANEL_COLUMNS, "cpu", 7)
    hidden, weight, bias, targets, coefficients = problem()
    head = OutputHead(weight, bias, scale=0.6, softcap=softcap)
    expected, losses = cross_entropy_by_torch(hidden, head, targets, coefficients)
    wanted = torch.autograd.grad(expected, [hidden, weight, bias])
    group = RowGroup(hidden, [CrossEntropyTerm(targets, coefficients)])
    total, [[values]] = head_losses(head, [group], chunk_bytes=chunk_bytes)
    torch.testing.assert_close(total, expected)
    torch.testing.assert_close(values, losses.detach())
    for actual, one in zip(torch.autograd.grad(3 * total, [hidden, weight, bias]), wanted, strict=True):
        torch.testing.assert_close(actual, 3 * one)


def test_a_term_that_reads_some_columns_is_the_term_of_the_head_cut_to_them() -> None:
    hidden, weight, bias, _, coefficients = problem()
    head = OutputHead(weight, bias)
    chosen = torch.randperm(len(weight), generator=torch.Generator().manual_seed(1))[:9]
    targets = torch.arange(len(hidden)) % len(chosen)

    class OverColumns(CrossEntropyTerm):
        columns = chosen

        def evaluate(self, logits, start, stop):
            return super().evaluate(logits.index_select(1, chosen), start, stop)

    plain = CrossEntropyTerm(chosen[targets], coefficients)
    found = []
    for terms in ([OverColumns(targets, coefficients)], [OverColumns(targets, coefficients), plain]):
        total, _ = head_losses(head, [RowGroup(hidden, terms)])
        found.append([total, *torch.autograd.grad(total, [hidden, weight, bias])])
    part, _ = head_losses(head.restrict(chosen), [RowGroup(hidden, [CrossEntropyTerm(targets, coefficients)])])
    whole, _ = head_losses(head, [RowGroup(hidden, [plain])])
    expected = [part, *torch.autograd.grad(part, [hidden, weight, bias])]
    both = [
        one + other
        for one, other in zip(expected, [whole, *torch.autograd.grad(whole, [hidden, weight, bias])], strict=True)
    ]
    for actual, wanted in zip([*found[0], *found[1]], [*expected, *both], strict=True):
        torch.testing.assert_close(actual, wanted)


def test_groups_that_share_chunks_and_terms_are_their_rows_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(head_loss.BLOCK_BYTES, "cpu", 600)
    hidden, weight, bias, targets, coefficients = problem()
    head, term = OutputHead(weight, bias), CrossEntropyTerm(targets, coefficients)
    whole, [[losses]] = head_losses(head, [RowGroup(hidden, [term])])
    wanted = torch.autograd.grad(whole, [hidden, weight, bias])
    groups = [
        RowGroup(hidden[start:stop], [term], first_row=start) for start, stop in ((0, 4), (4, 4), (4, 15), (15, 23))
    ]
    total, values = head_losses(head, groups, chunk_bytes=31 * 8 * 6)
    torch.testing.assert_close(total, whole)
    torch.testing.assert_close(torch.cat([value for (value,) in values]), losses)
    for actual, one in zip(torch.autograd.grad(total, [hidden, weight, bias]), wanted, strict=True):
        torch.testing.assert_close(actual, one)


def test_a_distribution_taught_at_a_span_of_one_token_costs_no_row_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []
    product = head_loss.ChunkedHead.logits

    def counted(self, states):
        if len(self.weight) == worlds.STUDENT_VOCABULARY:
            rows.append(len(states))
        return product(self, states)

    monkeypatch.setattr(head_loss.ChunkedHead, "logits", counted)
    examples = [worlds.make_example(0, sizes=[(1, 2), (2, 1), (1, 1), (3, 2)]), worlds.make_example(1, sizes=[(1, 3)])]
    teacher = worlds.make_head(11, worlds.TEACHER_VOCABULARY, worlds.TEACHER_WIDTH)
    student = worlds.make_head(12, worlds.STUDENT_VOCABULARY, worlds.STUDENT_WIDTH)
    worlds.run(worlds.make_method(SRAOptions(), teacher), examples, student)
    num_labels, num_longer_spans = sum(len(one.labels) for one in examples), 2
    assert sum(rows) == num_labels + num_longer_spans


@pytest.mark.parametrize("spread", [1.0, 300.0])
def test_forward_divergence_of_logits_is_the_sum_over_outcomes(spread: float) -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(5, 9, generator=generator, dtype=torch.float64) * spread for _ in range(2))
    teacher[0] = student[0]
    logits = student.clone().requires_grad_(True)
    expected = torch.nn.functional.kl_div(
        torch.log_softmax(logits, 1), torch.log_softmax(teacher, 1), reduction="none", log_target=True
    ).sum(1)
    (slopes,) = torch.autograd.grad(expected.sum(), [logits])
    values, gradient = divergence_of_logits(
        student_logits=student.clone(), teacher_logits=teacher.clone(), kind="forward"
    )
    torch.testing.assert_close(values, expected.detach())
    torch.testing.assert_close(gradient, slopes)
    assert float(values[0]) == 0


def test_half_precision_gradients_do_not_underflow() -> None:
    hidden, weight, _, targets, coefficients = problem(dtype=torch.float16)
    tiny = coefficients * 1e-7  # 1 / labels of a large step; float16 has no such number times a probability
    total, _ = head_losses(OutputHead(weight), [RowGroup(hidden, [CrossEntropyTerm(targets, tiny)])])
    (found,) = torch.autograd.grad(total * 2.0**20, [weight])  # a loss scaler
    double = [one.detach().double().requires_grad_(True) for one in (hidden, weight)]
    expected, _ = cross_entropy_by_torch(double[0], OutputHead(double[1]), targets, tiny)
    (wanted,) = torch.autograd.grad(expected * 2.0**20, [double[1]])
    torch.testing.assert_close(found.double(), wanted, rtol=2e-2, atol=2e-3 * float(wanted.abs().max()))


def test_autocast_computes_products_in_bfloat16_and_softmaxes_in_float32() -> None:
    hidden, weight, bias, targets, coefficients = problem(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        group = RowGroup(hidden, [CrossEntropyTerm(targets, coefficients.float())])
        total, [[values]] = head_losses(OutputHead(weight, bias), [group])
        gradients = torch.autograd.grad(total, [hidden, weight, bias])
    assert total.dtype == values.dtype == torch.float32
    assert all(gradient.dtype == torch.float32 for gradient in gradients)
    expected, _ = cross_entropy_by_torch(hidden, OutputHead(weight, bias), targets, coefficients.float())
    torch.testing.assert_close(total, expected, rtol=2e-2, atol=2e-2)
    for actual, one in zip(gradients, torch.autograd.grad(expected, [hidden, weight, bias]), strict=True):
        torch.testing.assert_close(actual, one, rtol=5e-2, atol=5e-2 * float(one.abs().max()))


def test_the_whole_method_runs_on_bfloat16_states() -> None:
    examples = [worlds.make_example(s, sizes=[(1, 2), (2, 1)], dtype=torch.float32) for s in range(3)]
    heads = [
        worlds.make_head(12, worlds.STUDENT_VOCABULARY, worlds.STUDENT_WIDTH, dtype=torch.float32),
        worlds.make_head(11, worlds.TEACHER_VOCABULARY, worlds.TEACHER_WIDTH, dtype=torch.float32),
    ]
    worlds.add_top_k(examples, heads[1], k=5)
    batch, hidden, attention = worlds.make_batch(examples)
    for options in ({}, {"kd_position": "boundary"}, {"kd_position": "boundary", "kd_source": "top_k"}):
        method = worlds.make_method(SRAOptions(**options), heads[1], torch.float32)
        exact = method(StudentOutput(hidden, attention, heads[0].live()), batch, worlds.totals_of(examples))
        small = {layer: states.bfloat16().requires_grad_(True) for layer, states in hidden.items()}
        rough = method(StudentOutput(small, attention, heads[0].live()), batch, worlds.totals_of(examples))
        torch.testing.assert_close(rough.total.detach(), exact.total, rtol=3e-2, atol=3e-2)
        rough.total.backward()
        gradient = small[worlds.STUDENT_LAYERS].grad
        assert gradient is not None
        assert gradient.dtype == torch.bfloat16
        assert torch.isfinite(gradient).all()


def test_no_gradient_is_formed_where_none_is_wanted() -> None:
    hidden, weight, bias, targets, coefficients = problem()
    with torch.no_grad():
        total, _ = head_losses(OutputHead(weight, bias), [RowGroup(hidden, [CrossEntropyTerm(targets, coefficients)])])
    assert not total.requires_grad


def test_no_rows_give_zero() -> None:
    hidden, weight, _, targets, coefficients = problem()
    group = RowGroup(hidden[:0], [CrossEntropyTerm(targets[:0], coefficients[:0])])
    total, [[values]] = head_losses(OutputHead(weight), [group])
    assert float(total.detach()) == 0
    assert values.shape == (0,)
    assert float(torch.autograd.grad(total, [weight])[0].abs().max()) == 0


def test_a_second_backward_is_refused() -> None:
    hidden, weight, _, targets, coefficients = problem()
    total, _ = head_losses(OutputHead(weight), [RowGroup(hidden, [CrossEntropyTerm(targets, coefficients)])])
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="for one backward"):
        total.backward()


def test_no_tensor_of_all_rows_by_the_vocabulary_is_ever_allocated() -> None:
    """The largest tensor made is a chunk, not [rows, vocabulary]."""
    from torch.utils._python_dispatch import TorchDispatchMode

    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            out = function(*args, **(kwargs or {}))
            for one in out if isinstance(out, (tuple, list)) else (out,):
                if isinstance(one, torch.Tensor):
                    largest = max(largest, one.numel())
            return out

    hidden, weight, _, targets, coefficients = problem(rows=400, vocabulary=200, dtype=torch.float32)
    with Watch():
        group = RowGroup(hidden, [CrossEntropyTerm(targets, coefficients.float())])
        head_losses(OutputHead(weight), [group], chunk_bytes=200 * 4 * 16)[0].backward()
    assert largest == 200 * 16


def test_outcomes_add_up_ids_of_one_string_and_put_the_unmatched_into_the_rest() -> None:
    probs = torch.tensor([[0.4, 0.2, 0.1, 0.1]], dtype=torch.float64)
    found = top_k_outcomes(
        top_k_ids=torch.tensor([[3, 1, 0, 9]]),
        top_k_values=probs.log(),
        log_tail=torch.tensor([0.2], dtype=torch.float64).log(),
        teacher_to_student=torch.tensor([-1, 5, -1, 5]),  # id 9 is beyond the tokenizer's: padding of the head
        student_vocabulary=7,
        temperature=1.0,
    )
    assert found.student_ids[0, 0] == 5
    assert (found.student_ids[0, 1:] == 7).all()
    torch.testing.assert_close(found.log_probs[0, [0, -1]].exp(), torch.tensor([0.6, 0.4], dtype=torch.float64))
    torch.testing.assert_close(found.log_probs.exp().sum(), torch.tensor(1.0, dtype=torch.float64))


@pytest.mark.parametrize("kind", ["forward", "reverse", "js"])
def test_a_rest_of_zero_mass_contributes_nothing_and_gives_no_nan(kind) -> None:
    """The teacher has no rest; the student's may be anything, even empty."""
    outcomes = top_k_outcomes(
        top_k_ids=torch.tensor([[0, 1]]),
        top_k_values=torch.tensor([[0.7, 0.3]], dtype=torch.float64).log(),
        log_tail=torch.tensor([-math.inf], dtype=torch.float64),
        teacher_to_student=torch.tensor([0, 1]),
        student_vocabulary=2,
        temperature=1.0,
    )
    term = TopKTerm(outcomes, torch.ones(1), temperature=1.0, kind=kind)
    equal = torch.tensor([[0.7, 0.3]], dtype=torch.float64).log()
    values, gradient = term.evaluate(equal, 0, 1)
    torch.testing.assert_close(values, torch.zeros(1, dtype=torch.float64))
    torch.testing.assert_close(gradient, torch.zeros(1, 2, dtype=torch.float64))
    wider = replace(outcomes, student_ids=outcomes.student_ids)
    values, gradient = TopKTerm(
        replace(wider, student_ids=torch.tensor([[0, 1]])), torch.ones(1), temperature=1.0, kind=kind
    ).evaluate(torch.cat([equal, torch.full((1, 3), -2.0, dtype=torch.float64)], 1), 0, 1)
    assert torch.isfinite(values).all()
    assert torch.isfinite(gradient).all()


def test_a_peaked_student_keeps_a_finite_rest() -> None:
    """1 - sum would be 0 here, and the loss infinite."""
    outcomes = top_k_outcomes(
        top_k_ids=torch.tensor([[0]]),
        top_k_values=torch.tensor([[0.9]]).log(),
        log_tail=torch.tensor([0.1]).log(),
        teacher_to_student=torch.tensor([0, 1, 2]),
        student_vocabulary=3,
        temperature=1.0,
    )
    logits = torch.tensor([[200.0, 0.0, 0.0]])
    values, gradient = TopKTerm(outcomes, torch.ones(1), temperature=1.0, kind="forward").evaluate(logits, 0, 1)
    expected = 0.9 * math.log(0.9) + 0.1 * (math.log(0.1) - (math.log(2) - 200))
    torch.testing.assert_close(values, torch.tensor([expected]), rtol=1e-5, atol=0)
    torch.testing.assert_close(gradient, torch.tensor([[0.1, -0.05, -0.05]]), rtol=1e-5, atol=1e-7)


def test_missing_columns_are_named_with_the_command_that_makes_them() -> None:
    examples = [worlds.make_example(0, sizes=[(1, 2)])]
    head = worlds.make_head(11, worlds.TEACHER_VOCABULARY, worlds.TEACHER_WIDTH)
    student = worlds.make_head(12, worlds.STUDENT_VOCABULARY, worlds.STUDENT_WIDTH)
    top_k = worlds.make_method(SRAOptions(kd_position="boundary", kd_source="top_k"), head)
    with pytest.raises(ShardError, match="no top-k columns; run `sra-data cache-teacher --top-k 64`"):
        worlds.run(top_k, examples, student)
    worlds.add_top_k(examples, head, k=3, temperatures=(1.0,))
    with pytest.raises(ShardError, match=r"no log tail at temperature=2 \(cached: 1\).*--temperatures 2"):
        worlds.run(top_k, examples, student)
    batch, hidden, attention = worlds.make_batch(examples)
    bare = replace(batch, teachers=(replace(batch.teachers[0], attention={}),))
    with pytest.raises(ShardError, match="no attention of layer 4"):
        worlds.make_method(SRAOptions(), head)(
            StudentOutput(hidden, attention, student.live()), bare, worlds.totals_of(examples)
        )


def test_a_student_without_a_rest_and_a_vocabulary_beyond_the_head_are_refused() -> None:
    student = ModelShape(3, worlds.STUDENT_WIDTH, worlds.STUDENT_VOCABULARY)
    teacher = ModelShape(4, worlds.TEACHER_WIDTH, worlds.TEACHER_VOCABULARY)
    teacher_head = worlds.make_head(11, worlds.TEACHER_VOCABULARY, worlds.TEACHER_WIDTH).live()
    ids = torch.arange(worlds.STUDENT_VOCABULARY)

    def build(options: SRAOptions, knowledge: TeacherKnowledge) -> SRA:
        return SRA(options, MethodSetting(student, (TeacherSetting("one", 1.0, teacher, knowledge),)))

    with pytest.raises(ConfigError, match="its rest is empty"):
        build(SRAOptions(kd_vocabulary="rest"), TeacherKnowledge(ids, ids, teacher_head))
    beyond = TeacherKnowledge(torch.tensor([1, 99]), torch.tensor([1, 2]), teacher_head)
    with pytest.raises(ConfigError, match="id 99 is beyond the output head's 13 rows"):
        build(SRAOptions(), beyond)
    none = TeacherKnowledge(torch.tensor([]), torch.tensor([]), teacher_head)
    with pytest.raises(ConfigError, match="share no vocabulary entry"):
        build(SRAOptions(), none)
